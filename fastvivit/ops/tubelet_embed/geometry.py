"""Where the tubelets of a batch lie, and how their pixels are normalised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

Size3 = tuple[int, int, int]


@dataclass(frozen=True)
class Geometry:
    """The tubelets of a batch of clips.

    Pixel ``(c, i, j, k)`` of token ``(t, h, w)`` is at ``t·stride + offset + i`` along time, and so on.

    Attributes:
        clips: B.
        channels: C.
        kernel: pixels of a tubelet, (t, h, w).
        stride: pixels between tubelets, (t, h, w).
        offset: pixels before the first tubelet, (t, h, w).
        grid: tubelets of a clip, (T', H', W'); 0 where none fits.
        scale: a pixel becomes ``x * scale[c] + shift[c]``; None is the identity. The 1/255 of uint8 is in it.
        shift: see ``scale``.
        tokens: tubelets of one clip, N.
        patch: pixels of one tubelet over its channels, C·t·h·w.
    """

    clips: int
    channels: int
    kernel: Size3
    stride: Size3
    offset: Size3
    grid: Size3
    scale: tuple[float, ...] | None
    shift: tuple[float, ...] | None
    tokens: int = field(init=False)
    patch: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", prod(self.grid))
        object.__setattr__(self, "patch", self.channels * prod(self.kernel))


def grid_of(size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], offset: Sequence[int]) -> Size3:
    """Tubelets that fit along each axis, floored as conv3d does; 0 where none fits."""
    (t, h, w), (kt, kh, kw), (st, sh, sw), (ot, oh, ow) = size, kernel, stride, offset
    return (max((t - ot - kt) // st + 1, 0), max((h - oh - kh) // sh + 1, 0), max((w - ow - kw) // sw + 1, 0))


def geometry(
    video: Tensor,
    weight: Tensor,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    stride: Sequence[int],
    offset: Sequence[int],
) -> Geometry:
    """Geometry of ``video`` (B, C, T, H, W) under ``weight`` (D, C, t, h, w)."""
    mean = mean if mean is None else tuple(mean)
    std = std if std is None else tuple(std)
    is_bytes = video.dtype == torch.uint8
    return _geometry(video.shape, weight.shape[2:], is_bytes, mean, std, tuple(stride), tuple(offset))


@lru_cache(maxsize=256)
def _geometry(size, kernel, is_bytes: bool, mean, std, stride, offset) -> Geometry:
    # Cached, because at 512 tokens a call is microseconds, and a batch has the geometry of the last one.
    clips, channels = size[:2]
    scale = shift = None
    if is_bytes or mean is not None or std is not None:
        mean = mean or (0.0,) * channels
        std = std or (1.0,) * channels
        scale = tuple(1.0 / (255.0 * s if is_bytes else s) for s in std)
        shift = tuple(-m / s for m, s in zip(mean, std, strict=True))
    grid = grid_of(size[2:], kernel, stride, offset)
    return Geometry(clips, channels, tuple(kernel), stride, offset, grid, scale, shift)
