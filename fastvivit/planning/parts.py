"""The parts of a mixed batch: images beside clips, each under its own mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from fastvivit.tokens import Views


@dataclass(frozen=True, kw_only=True)
class Part:
    """What comes from one source of a mixed batch, as a ``fastvivit.contrastive.ContrastivePart`` goes into a step.

    Attributes:
        batch: its samples, to those of the other parts: a step of another size keeps the shares.
        mask_ratio: share of the tokens that are dropped.
        images: whether these are images, which go through the 2-D path.
        pixels: "clips", whole ones or whole images, or "tubelets", the kept ones alone.
    """

    batch: int
    mask_ratio: float = 0.0
    images: bool = False
    pixels: str = "clips"


def shared(batch: int, parts: Sequence[Part]) -> list[int]:
    """Samples of each part in a step of ``batch``, at least one: by their shares, the first has what is left over."""
    total, left, found = sum(part.batch for part in parts), batch, []
    for before, part in reversed(list(enumerate(parts))):
        count = min(max(batch * part.batch // total, 1), left - before) if before else left
        found.append(count)
        left -= count
    return found[::-1]


def kept_tokens(views: Views, mask_ratio: float) -> int:
    """Tokens that a clip keeps of its grids; each is masked at the ratio."""
    sizes = [prod(grid) for grid in views]
    return sum(size - int(size * mask_ratio) for size in sizes)
