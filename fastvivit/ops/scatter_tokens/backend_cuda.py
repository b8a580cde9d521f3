"""scatter_tokens in CUDA C++ (csrc/rows_move_cuda.cu): a gather through the inverse map."""

from __future__ import annotations

from torch import Tensor

from fastvivit.ops._rows_cuda import gather_rows, invert_ids, sum_free


def forward(x: Tensor, ids: Tensor, rows: int, fill: Tensor | None) -> Tensor:
    """``out[ids[m]] = x[m]``, else ``fill`` or 0; all NaN for a bad id. x (M, D), ids (M,) → (rows, D)."""
    inverse, guard = invert_ids(ids, rows)
    return gather_rows(x, inverse, fill=fill, guard=guard)


def backward(grad: Tensor, ids: Tensor, needs_fill: bool) -> tuple[Tensor, Tensor | None]:
    """Gradients of x (M, D) and fill (D,). grad (rows, D), ids (M,)."""
    inverse, guard = invert_ids(ids, grad.shape[0])
    grad_x = gather_rows(grad, ids, guard=guard)
    return grad_x, sum_free(grad, inverse, guard=guard) if needs_fill else None
