"""Where the pixels of a packed clip lie: which tubelets are neighbours on the disk, and at which byte each begins.

A tubelet's pixels stand together as (t, h, w, C), 1,536 bytes of 2 x 16 x 16 pixels. A disk is read by pages of 4,096,
so single tubelets drawn at random touch most pages of a clip: with three quarters of them masked about two thirds. So
a clip's tubelets are stored in a random order of its own, in groups that fill whole pages, and a mask takes whole
groups (``grouped_keep``): each is a random set of places, and exactly the kept share of the pages is read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
import torch
from torch import Tensor

PAGE = 4096
CHANNELS = 3
# What a group's last page may leave empty: a fixed cost of every read, where groups can't fill their pages.
_WASTE = 0.1


@dataclass(frozen=True)
class Layout:
    """The geometry of packed clips, or of packed images.

    Attributes:
        shape: (T, H, W) of a clip, (H, W) of an image.
        tubelet: pixels of a tubelet, (t, h, w), or (h, w) of an image's patch.

    Raises:
        ValueError: numbers that are not whole or below 1, a tubelet that does not tile the clip.
    """

    shape: tuple[int, ...]
    tubelet: tuple[int, ...]

    def __post_init__(self) -> None:
        for name, counts in (("shape", (2, 3)), ("tubelet", (len(self.shape),))):
            value = tuple(getattr(self, name))
            if len(value) not in counts or not all(type(v) is int and v >= 1 for v in value):
                wanted = " or ".join(map(str, counts))
                raise ValueError(f"{name}: wanted {wanted} whole numbers of at least 1, got {value}")
            object.__setattr__(self, name, value)
        if any(length % part for length, part in zip(self.shape, self.tubelet, strict=True)):
            raise ValueError(f"tubelet: wanted one that tiles {self.shape}, got {self.tubelet}")

    @property
    def grid(self) -> tuple[int, ...]:
        """Tubelets along each axis."""
        return tuple(length // part for length, part in zip(self.shape, self.tubelet, strict=True))

    @property
    def tokens(self) -> int:
        """Tubelets of a clip, N."""
        return prod(self.grid)

    @property
    def tubelet_bytes(self) -> int:
        """Bytes of a tubelet."""
        return prod(self.tubelet) * CHANNELS

    @cached_property
    def group(self) -> int:
        """Tubelets of a group, G: the smallest divisor of N that wastes little of its pages, else the thriftiest."""
        divisors = [g for g in range(1, self.tokens + 1) if self.tokens % g == 0]
        waste = {g: 1 - g * self.tubelet_bytes / _whole_pages(g * self.tubelet_bytes) for g in divisors}
        return next((g for g in divisors if waste[g] <= _WASTE), min(divisors, key=waste.__getitem__))

    @property
    def groups(self) -> int:
        """Groups of a clip, N / G."""
        return self.tokens // self.group

    @property
    def group_bytes(self) -> int:
        """Bytes from one group to the next: whole pages."""
        return _whole_pages(self.group * self.tubelet_bytes)

    @property
    def clip_bytes(self) -> int:
        """Bytes from one clip to the next: whole pages."""
        return self.groups * self.group_bytes

    def kept(self, mask_ratio: float) -> int:
        """Tubelets that a mask leaves of a clip, K = N - floor(N·r), as ``F.random_keep`` counts them."""
        return self.tokens - math.floor(self.tokens * mask_ratio + 1e-9)

    def offsets(self, rows: np.ndarray) -> np.ndarray:
        """Bytes (int64) after the clip's first at which storage rows ``0..N-1`` begin."""
        return rows // self.group * self.group_bytes + rows % self.group * self.tubelet_bytes


def storage_order(entry: int, tokens: int) -> np.ndarray:
    """The ids (tokens,) int64 of a clip's tubelets in the order in which they are stored.

    Part of the format: id ``i`` has the key ``mix(mix(entry) + γ·(i + 1))`` in 64 bits, mix and γ those of splitmix64
    (Steele, Lea and Flood 2014), and ids are sorted by it. mix is a bijection, so no two keys are the same.

    Args:
        entry: the clip's place in the manifest that was packed.
        tokens: N.
    """
    gamma = np.uint64(0x9E3779B97F4A7C15)
    counter = np.arange(1, tokens + 1, dtype=np.uint64) * gamma
    return np.argsort(_mix(_mix(np.array([entry], np.uint64)) + counter))


def grouped_keep(layout: Layout, order: np.ndarray, mask_ratio: float, generator: torch.Generator) -> Tensor:
    """Draw a mask of whole groups: every place is kept with probability K / N, as by ``F.random_keep``.

    With K = N - floor(N·r) = n·G + m, m < G: n groups drawn without replacement are kept whole, and m of a further
    one's tubelets. What differs from the "random" strategy: the places of a group, a random set fixed for the clip,
    come and go together, so a clip has C(N / G, n) masks over the epochs in place of C(N, K).

    Args:
        layout: of the pack.
        order: the clip's ``storage_order``.
        mask_ratio: share to drop.
        generator: source of randomness.

    Returns:
        (K,) int64 ids, ascending.
    """
    whole, rest = divmod(layout.kept(mask_ratio), layout.group)
    groups = torch.randperm(layout.groups, generator=generator)
    rows = (groups[:whole].unsqueeze(1) * layout.group + torch.arange(layout.group)).flatten()
    if rest:
        some = torch.randperm(layout.group, generator=generator)[:rest]
        rows = torch.cat([rows, groups[whole] * layout.group + some])
    return torch.from_numpy(order)[rows].sort().values


def layout_of(frames: int | None, size: int | Sequence[int], tubelet: Sequence[int]) -> Layout:
    """The layout of clips of ``frames`` pictures, or of images where that is None; ``size`` pixels or (h, w)."""
    sides = (size, size) if isinstance(size, int) else tuple(size)
    return Layout(sides if frames is None else (frames, *sides), tuple(tubelet))


def _whole_pages(count: int) -> int:
    return -(-count // PAGE) * PAGE


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
