"""Encoders of transformers, random weights, our sizes: VideoMAE, which masks, and ViViT, which does not.

Both get what they like best, ready before the clock starts: normalised float32 pixels in their own layout,
SDPA, no dropout, the exact GELU (ViViT's default is a slower one of many operations), no pooler.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor, nn

from fastvivit import ViViT
from fastvivit.models import ViViTConfig


def missing() -> str | None:
    """Why these peers can't take part, or None."""
    return None if find_spec("transformers") else "transformers is not installed (pip install fastvivit[hf])"


def _sizes(config: ViViTConfig) -> dict[str, object]:
    return {
        "image_size": config.size[0],
        "num_frames": config.frames,
        "num_channels": config.channels,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.ff,
        "hidden_act": "gelu",
        "layer_norm_eps": config.eps,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "attn_implementation": "sdpa",
    }


def videomae(config: ViViTConfig) -> nn.Module:
    """``VideoMAEModel`` with a final LayerNorm, as ours has."""
    from transformers import VideoMAEConfig, VideoMAEModel

    tubelet, patch, _ = config.tubelet
    return VideoMAEModel(
        VideoMAEConfig(**_sizes(config), tubelet_size=tubelet, patch_size=patch, use_mean_pooling=False)
    )


def vivit(config: ViViTConfig) -> nn.Module:
    """``VivitModel``: a class token more than ours has."""
    from transformers import VivitConfig, VivitModel

    return VivitModel(VivitConfig(**_sizes(config), tubelet_size=list(config.tubelet)), add_pooling_layer=False)


def pixels(video: Tensor) -> Tensor:
    """uint8 (B, C, T, H, W) as both want it: float32 (B, T, C, H, W), normalised by 0.5 and 0.5."""
    return video.transpose(1, 2).float().mul_(2 / 255).sub_(1).contiguous()


def masked(keep: Tensor, tokens: int) -> Tensor:
    """VideoMAE's ``bool_masked_pos`` (B, N) of kept ids (B, K)."""
    return torch.ones(keep.shape[0], tokens, dtype=torch.bool, device=keep.device).scatter_(1, keep, False)


def late(model: nn.Module, pixels: Tensor, keep: Tensor) -> Tensor:
    """A ViViT's or VideoMAE's tokens (B, K, D), by its own layers on those of its embeddings that are kept."""
    if not hasattr(model.embeddings, "cls_token"):
        return model(pixels, masked(keep, model.embeddings.num_patches)).last_hidden_state
    x = model.embeddings(pixels)
    x = torch.cat([x[:, :1], x[:, 1:].gather(1, keep.unsqueeze(2).expand(-1, -1, x.shape[2]))], 1)
    for layer in model.layers if hasattr(model, "layers") else model.encoder.layer:
        x = layer(x)
        x = x[0] if isinstance(x, tuple) else x
    return model.layernorm(x)


@torch.no_grad()
def copy_weights(theirs: nn.Module, ours: ViViT) -> None:
    """Give ``ours`` the weights of a ``VideoMAEModel``, so that both compute the same function."""
    projection = theirs.embeddings.patch_embeddings.projection
    _copy(projection, ours.embed)
    ours.embed.pos.copy_(theirs.embeddings.position_embeddings[0])
    for layer, block in zip(theirs.encoder.layer, ours.blocks, strict=True):
        attention = layer.attention.attention
        block.attn.qkv.weight.copy_(torch.cat([attention.query.weight, attention.key.weight, attention.value.weight]))
        # Their keys have no bias. Nor does a softmax feel one.
        none = torch.zeros_like(attention.query.bias)
        block.attn.qkv.bias.copy_(torch.cat([attention.query.bias, none, attention.value.bias]))
        _copy(layer.attention.output.dense, block.attn.proj)
        _copy(layer.layernorm_before, block.norm1)
        _copy(layer.layernorm_after, block.norm2)
        _copy(layer.intermediate.dense, block.mlp.fc1)
        _copy(layer.output.dense, block.mlp.fc2)
    _copy(theirs.layernorm, ours.norm)


def _copy(source: nn.Module, target: nn.Module) -> None:
    target.weight.copy_(source.weight)
    target.bias.copy_(source.bias)
