"""The vision tower of open_clip and of OpenAI's own CLIP files; the projection into CLIP's space is left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fastvivit.convert.reader import Reader, prefix_of, read_blocks
from fastvivit.convert.settings import activation, activation_of, table_grid
from fastvivit.convert.source import Source
from fastvivit.convert.weights import ImageWeights, norm_pair

KIND = "open_clip VisionTransformer"
_AT = "transformer.resblocks.{n}."
_BLOCK = {
    "norm1": (_AT + "ln_1.{p}",),
    "qkv": (_AT + "attn.in_proj_{p}",),
    "proj": (_AT + "attn.out_proj.{p}",),
    "norm2": (_AT + "ln_2.{p}",),
    "fc1": (_AT + "mlp.c_fc.{p}",),
    "fc2": (_AT + "mlp.c_proj.{p}",),
    "scale1": (_AT + "ls_1.gamma",),
    "scale2": (_AT + "ls_2.gamma",),
}
# What follows the last norm, and beside "visual." the text tower, whose names have no prefix of their own.
_VISUAL = ("proj", "attn_pool.*", "attn_pool_contrastive.*")
_TEXT = ("transformer.*", "text.*", "token_embedding.weight", "positional_embedding", "ln_final.*")
_TEXT += ("text_projection", "text_projection.*", "attn_mask", "logit_scale", "logit_bias")
_TEXT += ("input_resolution", "context_length", "vocab_size")


def prefix(state: Mapping[str, Tensor]) -> str | None:
    """What the names begin with where this is the layout, else None."""
    found = prefix_of(state, "class_embedding")
    return found if found is not None and f"{found}conv1.weight" in state else None


def read(source: Source, prefix: str) -> ImageWeights:
    """Raises ``ValueError`` for tensors that are missing and for settings that nobody gave."""
    reader = Reader(source.state, prefix)
    kernel, pos = reader.take("conv1.weight"), reader.take("positional_embedding")
    settings = _settings(source, prefix, kernel.shape[0])
    return ImageWeights(
        source=KIND,
        reader=reader,
        heads=settings["heads"],
        eps=settings["eps"],
        act=settings["act"],
        kernel=kernel,
        bias=reader.optional("conv1.bias"),
        pos=pos[1:],
        grid=table_grid(pos.shape[0] - 1, tuple(kernel.shape[2:]), settings["image_size"]),
        cls=reader.take("class_embedding").unsqueeze(0),
        cls_pos=pos[:1],
        cls_name="class_embedding",
        layers=norm_pair(reader, "pre_norm", "ln_pre")
        | read_blocks(reader, _BLOCK)
        | norm_pair(reader, "norm", "ln_post"),
        outside=tuple(prefix + name for name in _VISUAL) + (_TEXT if prefix else ()),
    )


def _settings(source: Source, prefix: str, width: int) -> dict[str, Any]:
    """Heads, eps, act and image_size: a model says them itself, a state dict's caller or open_clip's file must."""
    config = source.config or {}
    if source.model is not None and "heads" not in config:
        tower: nn.Module = source.model.get_submodule(prefix.removesuffix("."))
        block = tower.transformer.resblocks[0]
        act = activation_of(block.mlp.gelu)
        return {"heads": block.attn.num_heads, "eps": block.ln_1.eps, "act": act, "image_size": tower.image_size}
    if "model_cfg" in config:
        model, vision = config["model_cfg"], config["model_cfg"]["vision_cfg"]
        act = "quick_gelu" if model.get("quick_gelu") else "gelu"
        config = {"heads": width // vision.get("head_width", 64), "act": act, "image_size": vision.get("image_size")}
    if config.get("heads") is None:
        raise ValueError(
            "config: wanted a dict with heads (and eps, act, image_size where they are not open_clip's 1e-5, 'gelu' "
            "and a square grid; OpenAI's weights want act='quick_gelu') beside open_clip's tensors, "
            f"got {source.config}"
        )
    act, size = activation(config.get("act", "gelu")), config.get("image_size")
    return {"heads": config["heads"], "eps": config.get("eps", 1e-5), "act": act, "image_size": size}
