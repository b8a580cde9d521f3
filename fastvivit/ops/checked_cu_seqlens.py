"""An identity on ``cu_seqlens`` that checks their values, so that the check also runs in compiled code."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvivit._checks import check_cu_seqlens
from fastvivit._operator import define


def _forward(cu_seqlens: Tensor, rows: int, longest: int | None) -> Tensor:
    if cu_seqlens.device.type != "cpu":
        wide = cu_seqlens.long()
        sound = (wide[0] == 0) & (wide.diff() >= 0).all() & (wide[-1] <= rows)
        return torch.where(sound, cu_seqlens, -1)
    found = check_cu_seqlens("cu_seqlens", cu_seqlens, rows)
    if longest is not None and found > longest:
        raise ValueError(f"max_seqlen: wanted at least {found}, got {longest}")
    return cu_seqlens.clone()


_CHECKED = define(
    "checked_cu_seqlens(Tensor cu_seqlens, SymInt rows, SymInt? longest) -> Tensor",
    _forward,
    lambda cu_seqlens, rows, longest: torch.empty_like(cu_seqlens),
)


def checked_cu_seqlens(cu_seqlens: Tensor, rows: int, max_seqlen: int | None) -> Tensor:
    """``cu_seqlens`` (B + 1,) int32, on a CPU only if sound for ``rows`` rows; elsewhere unsound ones all -1.

    For modules that add to them: a fall may vanish in the sum, and attention would no longer see it. What attention
    makes of -1 is NaN.
    """
    return _CHECKED(cu_seqlens, rows, max_seqlen)
