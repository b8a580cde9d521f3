"""transformers VideoMAE: no CLS, fixed sine positions, keys without a bias."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastvivit.convert.build import account, load
from fastvivit.convert.hf_names import PROJECTION, VIT_BLOCK
from fastvivit.convert.reader import Reader, check_waive, prefix_of, read_blocks
from fastvivit.convert.settings import hf_config
from fastvivit.convert.source import read_source
from fastvivit.convert.video import video_config
from fastvivit.convert.weights import norm_pair
from fastvivit.modules.vivit import ViViT

_KIND = "transformers VideoMAE"
# Version 4 and files keep the two biases beside the matrices, not in them.
_AT = "encoder.layer.{n}.attention.attention."
_BLOCK = VIT_BLOCK | {"q": (*VIT_BLOCK["q"], _AT + "q_{p}"), "v": (*VIT_BLOCK["v"], _AT + "v_{p}")}
_DEFAULTS = {
    "num_attention_heads": 12,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
    "image_size": 224,
    "num_frames": 16,
}
# fc_norm stands behind the mean: it belongs to the classifier.
_OUTSIDE = ("fc_norm.*", "classifier.*", "decoder.*", "encoder_to_decoder.weight", "mask_token")


def from_hf_videomae(
    model_or_folder: nn.Module | Mapping[str, Tensor] | str | os.PathLike,
    *,
    config: Any = None,
    waive: Sequence[str] = (),
    pool: str | None = "mean",
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> ViViT:
    """The encoder of a transformers VideoMAE (``VideoMAEModel``, ``ForPreTraining``, ``ForVideoClassification``).

    ``last_hidden_state`` is theirs; ``pooled`` is the mean that their classifier norms and reads. There is a
    final norm where the source has one on its tokens (``use_mean_pooling=False``). Positions are their sines
    and cosines in ``embed.pos``, frozen (requires_grad False); ``fv.tune`` thaws them with the embedding, and
    files do not remember it. Clips are (B, C, T, H, W) here, (B, T, C, H, W) there. Decoder, mask token and
    classifier are left out. Parameters are float32. Dropout is not taken over.

    Args:
        model_or_folder: a model, its state dict (of version 5 in memory, of files, or of version 4), or a
            local folder. Nothing is downloaded.
        config: a ``VideoMAEConfig`` or its dict, needed beside a state dict.
        waive: patterns (``fnmatch``) of the source's names to leave out beside its heads.
        pool: "mean", "attention" or None.
        mean: of uint8 pixels in units of 0..1. None: that of the folder's image processor, or 0.5.
        std: see ``mean``.

    Returns:
        The encoder, in eval mode, with ``encoder.imported``: an ``ImportReport``. It has no image path.

    Raises:
        ValueError: another layout, tensors that are missing, unknown or of a wrong shape, no config.
    """
    waive = check_waive(waive)
    source = read_source(model_or_folder, config)
    prefix = prefix_of(source.state, f"{PROJECTION}.weight")
    if prefix is None or source.state[f"{prefix}{PROJECTION}.weight"].dim() != 5 or _has_cls(source.state, prefix):
        few = ", ".join(list(source.state)[:4]) or "none"
        raise ValueError(f"model_or_folder: wanted the tensors of a {_KIND}, got {few}, ...")
    settings = hf_config(source.config, _DEFAULTS)
    reader = Reader(source.state, prefix)
    kernel = reader.take(f"{PROJECTION}.weight")
    layers = read_blocks(reader, _BLOCK) | norm_pair(reader, "norm", "layernorm")
    encoder = ViViT(video_config(source, settings, kernel, layers, pool=pool, cls=False, mean=mean, std=std))
    tensors = layers | {
        "embed.weight": kernel,
        "embed.pos": sine_positions(encoder.config.tokens, encoder.config.width),
    }
    bias = reader.optional(f"{PROJECTION}.bias")
    if bias is not None:
        tensors["embed.bias"] = bias
    missing = load(encoder, tensors)
    encoder.embed.pos.requires_grad_(False)
    return account(encoder, _KIND, reader, outside=_OUTSIDE, waive=waive, missing=missing, reshaped={})


def _has_cls(state: Mapping[str, Tensor], prefix: str) -> bool:
    return f"{prefix}embeddings.cls_token" in state


def sine_positions(places: int, width: int) -> Tensor:
    """(places, width) float32: sines at even and cosines at odd columns (Vaswani et al. 2017, section 3.5)."""
    column = torch.arange(width, dtype=torch.float64)
    angle = torch.arange(places, dtype=torch.float64).unsqueeze(1) / 10000 ** (2 * (column // 2) / width)
    return torch.where(column % 2 == 0, angle.sin(), angle.cos()).float()
