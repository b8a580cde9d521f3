"""The configuration of an encoder that is read from a video model of transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fastvivit.convert.settings import activation, whole_clip
from fastvivit.convert.source import Source
from fastvivit.convert.weights import block_sizes
from fastvivit.models import ViViTConfig


def video_config(
    source: Source,
    settings: Mapping[str, Any],
    kernel: Tensor,
    layers: dict[str, Tensor],
    *,
    pool: str | None,
    cls: bool,
    mean: float | Sequence[float] | None,
    std: float | Sequence[float] | None,
) -> ViViTConfig:
    """What ``settings`` (transformers' names), the kernel (D, C, t, h, w) and the blocks say of an encoder."""
    return ViViTConfig(
        **whole_clip(settings, kernel.shape[2:]),
        tubelet=tuple(kernel.shape[2:]),
        channels=kernel.shape[1],
        heads=settings["num_attention_heads"],
        eps=settings["layer_norm_eps"],
        act=activation(settings["hidden_act"]),
        pool=pool,
        cls=cls,
        images=False,
        **_pixel_norm(source.preprocessing(), mean, std),
        **block_sizes(layers),
    )


def _pixel_norm(
    said: tuple[list[float], list[float]] | None,
    mean: float | Sequence[float] | None,
    std: float | Sequence[float] | None,
) -> dict[str, Any]:
    """``mean`` and ``std`` of a configuration: the caller's, else the image processor's, else the default."""
    both = dict(zip(("mean", "std"), said or (0.5, 0.5), strict=True))
    both |= {name: value for name, value in (("mean", mean), ("std", std)) if value is not None}
    return {k: (v[0] if len(v) == 1 else tuple(v)) if isinstance(v, list | tuple) else v for k, v in both.items()}
