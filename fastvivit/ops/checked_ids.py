"""An identity on ids that checks their values, so that the check also runs in compiled code."""

from __future__ import annotations

from torch import Tensor

from fastvivit._checks import flat_ids
from fastvivit._operator import define


def _forward(ids: Tensor, size: int, name: str) -> Tensor:
    return flat_ids(name, ids, 1, size, distinct=True).clone()


_CHECKED_IDS = define(
    "checked_ids(Tensor ids, SymInt size, str name) -> Tensor",
    _forward,
    lambda ids, size, name: ids.new_empty(ids.shape),
)


def checked_ids(ids: Tensor, size: int, name: str) -> Tensor:
    """``ids`` (K,) int64, on a CPU only if distinct and within ``0..size-1``; elsewhere bad ones as -1."""
    return _CHECKED_IDS(ids, size, name)
