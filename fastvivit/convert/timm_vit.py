"""timm's VisionTransformer and what shares its names: DINOv2's own files, open_clip models with a timm trunk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fastvivit.convert.reader import Reader, prefix_of, read_blocks
from fastvivit.convert.settings import activation, activation_of, table_grid
from fastvivit.convert.source import Source
from fastvivit.convert.weights import ImageWeights, norm_pair

KIND = "timm VisionTransformer"
_AT = "blocks.{n}."
_BLOCK = {
    "norm1": (_AT + "norm1.{p}",),
    "qkv": (_AT + "attn.qkv.{p}",),
    "proj": (_AT + "attn.proj.{p}",),
    "norm2": (_AT + "norm2.{p}",),
    "fc1": (_AT + "mlp.fc1.{p}",),
    "fc2": (_AT + "mlp.fc2.{p}",),
    "scale1": (_AT + "ls1.gamma",),
    "scale2": (_AT + "ls2.gamma",),
}
# fc_norm stands behind the pooling: it belongs to the head. Then there is no norm on the tokens.
_OUTSIDE = ("*fc_norm.*", "*head.*", "*head_dist.*", "*attn_pool.*", "*mask_token", "text.*", "logit_scale")


def prefix(state: Mapping[str, Tensor]) -> str | None:
    """What the names begin with where this is the layout, else None."""
    found = prefix_of(state, "patch_embed.proj.weight")
    return found if found is not None and f"{found}blocks.0.attn.qkv.weight" in state else None


def read(source: Source, prefix: str) -> ImageWeights:
    """Raises ``ValueError`` for register tokens, tensors that are missing, settings that nobody gave."""
    reader = Reader(source.state, prefix)
    for registers in ("reg_token", "register_tokens"):
        if registers in reader:
            raise ValueError("model_or_folder: wanted a ViT without register tokens, got one with them")
    settings = _settings(source, prefix)
    kernel, table = reader.take("patch_embed.proj.weight"), reader.take("pos_embed").flatten(0, 1)
    cls = reader.optional("cls_token")
    patches, places = tuple(kernel.shape[2:]), table.shape[0]
    # Without no_embed_class the first row is the CLS'. Nothing but the number of rows says so.
    size = settings["image_size"]
    first = 1 if cls is not None and not _is_grid(places, patches, size) else 0
    return ImageWeights(
        source=KIND,
        reader=reader,
        heads=settings["heads"],
        eps=settings["eps"],
        act=settings["act"],
        kernel=kernel,
        bias=reader.optional("patch_embed.proj.bias"),
        pos=table[first:],
        grid=table_grid(places - first, patches, size),
        cls=None if cls is None else cls[0],
        cls_pos=None if cls is None else table[:1] if first else table.new_zeros(1, table.shape[1]),
        cls_name="cls_token",
        layers=norm_pair(reader, "pre_norm", "norm_pre")
        | read_blocks(reader, _BLOCK)
        | norm_pair(reader, "norm", "norm"),
        outside=_OUTSIDE,
    )


def _settings(source: Source, prefix: str) -> dict[str, Any]:
    """Heads, eps, act and image_size: a model says them itself, a state dict's caller must."""
    config = source.config or {}
    if source.model is not None and "heads" not in config:
        model: nn.Module = source.model.get_submodule(prefix.removesuffix("."))
        block, patches = model.blocks[0], model.patch_embed.proj.weight.shape[2:]
        grid = model.patch_embed.grid_size
        return {
            "heads": block.attn.num_heads,
            "eps": block.norm1.eps,
            "act": activation_of(block.mlp.act),
            "image_size": None if grid is None else [n * p for n, p in zip(grid, patches, strict=True)],
        }
    # A folder of timm's says under model_args what its model was not made with by default.
    said = config.get("model_args", {})
    heads = config.get("heads") or said.get("num_heads")
    if heads is None:
        raise ValueError(
            "config: wanted a dict with heads (and eps, act, image_size where they are not timm's 1e-6, 'gelu' and a "
            f"square grid) beside timm's tensors, got {source.config}"
        )
    act = activation(config.get("act", said.get("act_layer", "gelu")))
    size = config.get("image_size", said.get("img_size"))
    return {"heads": heads, "eps": config.get("eps", 1e-6), "act": act, "image_size": size}


def _is_grid(places: int, patches: tuple[int, int], image_size: Any) -> bool:
    if image_size is None:
        return math.isqrt(places) ** 2 == places
    try:
        table_grid(places, patches, image_size)
    except ValueError:
        return False
    return True
