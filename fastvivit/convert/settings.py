"""What no tensor tells: heads, eps, activation, the shape of the position table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fastvivit.modules.mlp import ACTIVATIONS

# transformers' and timm's names. Its "gelu_fast" and "gelu_new" are the same tanh formula.
_ACT = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}


def activation(name: Any) -> str:
    """This library's name of an activation. Raises ``ValueError`` for one it does not have."""
    if name not in _ACT:
        raise ValueError(f"config: wanted an activation of {', '.join(map(repr, _ACT))}, got {name!r}")
    return _ACT[name]


def activation_of(module: nn.Module) -> str:
    """This library's name of an activation module, by what it computes: classes are renamed and wrapped.

    Raises:
        ValueError: none of ours computes the same.
    """
    x = torch.linspace(-4, 4, 65)
    like = next(module.parameters(), x)
    with torch.no_grad():
        got = module(x.to(like)).to(x)
        for name, make in ACTIVATIONS.items():
            # The tanh formula is 5e-4 away from the exact one, float32 rounding 1e-6.
            if (got - make()(x)).abs().max() < 2e-5:
                return name
    raise ValueError(f"model_or_folder: wanted an activation of {', '.join(ACTIVATIONS)}, got {type(module).__name__}")


def hf_config(config: Mapping[str, Any] | None, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A transformers configuration with the defaults of its class, which its files leave out.

    Args:
        config: the configuration's dict.
        defaults: those of its class, for what is read here.

    Raises:
        ValueError: None, or a dict that is no transformers configuration.
    """
    if config is None:
        raise ValueError("config: wanted the model's transformers config (or its dict) beside a state dict, got None")
    if "num_attention_heads" not in config and "model_type" not in config:
        raise ValueError(f"config: wanted a transformers config with num_attention_heads, got {sorted(config)}")
    return {**defaults, **config}


def pair(value: Any) -> tuple[int, int]:
    """Height and width of a number or a pair."""
    return (value, value) if isinstance(value, int) else tuple(value)


def whole_clip(config: Mapping[str, Any], kernel: Sequence[int]) -> dict[str, Any]:
    """Frames and size of a video model's clips, as ``ViViTConfig`` wants them: transformers floors the rest away."""
    said = (config["num_frames"], *pair(config["image_size"]))
    frames, *size = (length - length % part for length, part in zip(said, kernel, strict=True))
    return {"frames": frames, "size": tuple(size)}


def table_grid(places: int, kernel: tuple[int, int], image_size: Any) -> tuple[int, int]:
    """(H', W') of a position table with so many places.

    Args:
        places: rows of the table that stand for patches.
        kernel: (h, w) of a patch.
        image_size: pixels of the source's images, a number or a pair; None for a square grid.

    Raises:
        ValueError: no such grid has so many places.
    """
    if image_size is None:
        side = math.isqrt(places)
        grid = (side, side)
    else:
        height, width = pair(image_size)
        grid = (height // kernel[0], width // kernel[1])
    if math.prod(grid) != places:
        raise ValueError(f"config: wanted an image_size whose grid has {places} places like the positions, got {grid}")
    return grid
