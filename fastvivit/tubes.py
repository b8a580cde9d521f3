"""Tubes: tubelets of several shapes that sample a clip sparsely (TubeViT)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastvivit.ops.tubelet_embed.geometry import Size3, grid_of


@dataclass(frozen=True, kw_only=True)
class Tube:
    """A tubelet that need not tile the clip (Piergiovanni et al. 2023, section 3).

    Attributes:
        kernel: its pixels, (t, h, w).
        stride: pixels from one to the next.
        offset: pixels before the first.
    """

    kernel: Size3
    stride: Size3
    offset: Size3 = (0, 0, 0)

    def __post_init__(self) -> None:
        for name, least in (("kernel", 1), ("stride", 1), ("offset", 0)):
            values = tuple(getattr(self, name))
            if len(values) != 3 or not all(isinstance(v, int) and v >= least for v in values):
                raise ValueError(f"tubes: wanted {name} of 3 whole numbers of at least {least}, got {values}")
            object.__setattr__(self, name, values)

    def grid(self, size: Sequence[int]) -> Size3:
        """Positions (T', H', W') in a clip of ``size`` (T, H, W), without padding; 0 where the tube does not fit."""
        return grid_of(size, self.kernel, self.stride, self.offset)


# Section 4.1 of TubeViT. With the 16 frames of a short clip the second has no position: it needs 20.
TUBEVIT = (
    Tube(kernel=(8, 8, 8), stride=(16, 32, 32)),
    Tube(kernel=(16, 4, 4), stride=(6, 32, 32), offset=(4, 8, 8)),
    Tube(kernel=(4, 12, 12), stride=(16, 32, 32), offset=(0, 16, 16)),
    Tube(kernel=(1, 16, 16), stride=(32, 16, 16)),
)


def grids_of(tubes: Sequence[Tube], size: Sequence[int], name: str) -> tuple[Size3, ...]:
    """Grids of the tubes in a clip of ``size`` (T, H, W).

    Raises:
        ValueError: a tube that has no position in such a clip; it says how large the clip must be. ``name`` is
            the argument to blame.
    """
    grids = tuple(tube.grid(size) for tube in tubes)
    for index, (tube, grid) in enumerate(zip(tubes, grids, strict=True)):
        for axis, count in enumerate(grid):
            if not count:
                unit = ("frames", "pixels of height", "pixels of width")[axis]
                raise ValueError(
                    f"{name}: wanted at least {tube.kernel[axis] + tube.offset[axis]} {unit} for tube {index + 1} of "
                    f"{len(tubes)} (kernel {tube.kernel}, offset {tube.offset}), got {size[axis]}"
                )
    return grids
