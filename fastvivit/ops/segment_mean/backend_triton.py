"""segment_mean in Triton (ops/_rows_triton.py)."""

from __future__ import annotations

from torch import Tensor

from fastvivit.ops._rows_sorted import sort_ids
from fastvivit.ops._rows_triton import gather_rows, sum_sorted


def forward(x: Tensor, ids: Tensor, segments: int) -> tuple[Tensor, Tensor]:
    """Mean (S, D) and count (S,) of the rows of each segment; all NaN for a bad id. x (M, D), ids (M,)."""
    offsets, order = sort_ids(ids, segments)
    count = offsets.diff()
    # Rows that no segment counts have a bad id.
    return sum_sorted(x, offsets, order, divisor=count, guard=(count.sum(), ids.shape[0])), count


def backward(grad: Tensor, ids: Tensor, count: Tensor) -> Tensor:
    """``grad_x[m] = grad[ids[m]] / count[ids[m]]``. grad (S, D), ids (M,), count (S,) → (M, D)."""
    return gather_rows(grad, ids, divisor=count, guard=(count.sum(), ids.shape[0]))
