"""Where the tubelets of a batch lie, and how their pixels are normalised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

Size3 = tuple[int, int, int]


@dataclass(frozen=True)
class Geometry:
    """The tubelets of a batch of clips: pixel ``(c, i, j, k)`` of token ``(t, h, w)`` is at ``t·stride + offset + i``, ….

    Attributes:
        clips: B.
        channels: C.
        kernel: pixels of a tubelet, (t, h, w).
        stride: pixels between tubelets, (t, h, w).
        offset: pixels before the first tubelet, (t, h, w).
        grid: tubelets of a clip, (T', H', W'); 0 where none fits.
        scale: a pixel becomes ``x * scale[c] + shift[c]``; None is the identity. The 1/255 of uint8 is in it.
        shift: see ``scale``.
    """

    clips: int
    channels: int
    kernel: Size3
    stride: Size3
    offset: Size3
    grid: Size3
    scale: tuple[float, ...] | None
    shift: tuple[float, ...] | None

    @property
    def tokens(self) -> int:
        """Tubelets of one clip, N."""
        return prod(self.grid)

    @property
    def patch(self) -> int:
        """Pixels of one tubelet over its channels, C·t·h·w."""
        return self.channels * prod(self.kernel)


def grid_of(size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], offset: Sequence[int]) -> Size3:
    """Tubelets that fit along each axis, floored as conv3d does; 0 where none fits."""
    return tuple(max((n - o - k) // s + 1, 0) for n, k, s, o in zip(size, kernel, stride, offset, strict=True))


def geometry(
    video: Tensor,
    weight: Tensor,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    stride: Sequence[int],
    offset: Sequence[int],
) -> Geometry:
    """Geometry of ``video`` (B, C, T, H, W) under ``weight`` (D, C, t, h, w)."""
    clips, channels = video.shape[:2]
    kernel = tuple(weight.shape[2:])
    scale = shift = None
    bytes_ = video.dtype == torch.uint8
    if bytes_ or mean is not None or std is not None:
        mean = [0.0] * channels if mean is None else mean
        std = [1.0] * channels if std is None else std
        scale = tuple(1.0 / (255.0 * s if bytes_ else s) for s in std)
        shift = tuple(-m / s for m, s in zip(mean, std, strict=True))
    grid = grid_of(video.shape[2:], kernel, stride, offset)
    return Geometry(clips, channels, kernel, tuple(stride), tuple(offset), grid, scale, shift)
