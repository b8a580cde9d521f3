"""transformers ViT, and those that share its names (ViT-MAE, ViT-MSN), in both key layouts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastvivit.convert.hf_names import CLS, POSITIONS, PROJECTION, VIT_BLOCK
from fastvivit.convert.reader import Names, Reader, prefix_of, read_blocks
from fastvivit.convert.settings import activation, hf_config, table_grid
from fastvivit.convert.source import Source
from fastvivit.convert.weights import ImageWeights, norm_pair

KIND = "transformers ViT"
_DEFAULTS = {"num_attention_heads": 12, "layer_norm_eps": 1e-12, "hidden_act": "gelu", "image_size": 224}
_OUTSIDE = ("*pooler.*", "classifier.*", "decoder.*", "*embeddings.mask_token")


def prefix(state: Mapping[str, Tensor]) -> str | None:
    """What the names begin with where this is the layout, else None."""
    found = prefix_of(state, f"{PROJECTION}.weight")
    ours = found is not None and any(found + name.format(n=0, p="weight") in state for name in VIT_BLOCK["norm1"])
    return found if ours else None


def read(source: Source, prefix: str) -> ImageWeights:
    """Raises ``ValueError`` for tensors that are missing and for settings that nobody gave."""
    return vit_weights(Reader(source.state, prefix), hf_config(source.config, _DEFAULTS), KIND, VIT_BLOCK, _OUTSIDE)


def vit_weights(
    reader: Reader, config: Mapping[str, Any], kind: str, block: Mapping[str, Names], outside: tuple[str, ...]
) -> ImageWeights:
    """An image ViT with transformers' names around its blocks, whose own are ``block``."""
    kernel, pos = reader.take(f"{PROJECTION}.weight"), reader.take(POSITIONS)[0]
    return ImageWeights(
        source=kind,
        reader=reader,
        heads=config["num_attention_heads"],
        eps=config["layer_norm_eps"],
        act=activation(config["hidden_act"]),
        kernel=kernel,
        bias=reader.optional(f"{PROJECTION}.bias"),
        pos=pos[1:],
        grid=table_grid(pos.shape[0] - 1, tuple(kernel.shape[2:]), config["image_size"]),
        cls=reader.take(CLS)[0],
        cls_pos=pos[:1],
        cls_name=CLS,
        layers=read_blocks(reader, block) | norm_pair(reader, "norm", "layernorm"),
        outside=outside,
    )
