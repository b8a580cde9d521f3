"""segment_mean in CUDA C++ (csrc/rows_sum_cuda.cu)."""

from __future__ import annotations

from torch import Tensor

from fastvivit.ops._rows_cuda import divide_rows, sum_sorted
from fastvivit.ops._rows_sorted import sort_ids


def forward(x: Tensor, ids: Tensor, segments: int) -> tuple[Tensor, Tensor]:
    """Mean (S, D) and count (S,) of the rows of each segment; all NaN for a bad id. x (M, D), ids (M,)."""
    offsets, order = sort_ids(ids, segments)
    return sum_sorted(x, offsets, order, mean=True), offsets.diff()


def backward(grad: Tensor, ids: Tensor, count: Tensor) -> Tensor:
    """``grad_x[m] = grad[ids[m]] / count[ids[m]]``. grad (S, D), ids (M,), count (S,) → (M, D)."""
    # Rows that no segment counts have a bad id.
    return divide_rows(grad, ids, count, guard=(count.sum(), ids.shape[0]))
