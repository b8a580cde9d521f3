"""gather_tokens in Triton (ops/_rows_triton.py)."""

from __future__ import annotations

from torch import Tensor

from fastvivit.ops._rows_sorted import sort_ids
from fastvivit.ops._rows_triton import gather_rows, sum_sorted


def forward(x: Tensor, ids: Tensor) -> Tensor:
    """``out[m] = x[ids[m]]``; a row of NaN for an id out of range. x (N, D), ids (M,) → (M, D)."""
    return gather_rows(x, ids, nan_outside=True)


def backward(grad: Tensor, ids: Tensor, rows: int) -> Tensor:
    """``grad_x[n] = sum of grad[m] over ids[m] == n``, in order of m. grad (M, D), ids (M,) → (rows, D)."""
    return sum_sorted(grad, *sort_ids(ids, rows))
