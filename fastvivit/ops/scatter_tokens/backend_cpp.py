"""scatter_tokens by the compiled CPU kernels (csrc/rows_cpu.cpp): a gather through the inverse map."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvivit.ops._rows_native import gather_rows, invert_ids, sum_sorted


def forward(x: Tensor, ids: Tensor, rows: int, fill: Tensor | None) -> Tensor:
    """X (M, D), ids (M,) distinct → (rows, D)."""
    return gather_rows(x, invert_ids(ids, rows), fill)


def backward(grad: Tensor, ids: Tensor, needs_fill: bool) -> tuple[Tensor, Tensor | None]:
    """Gradients of x (M, D) and fill (D,). grad (rows, D), ids (M,)."""
    grad_x = gather_rows(grad, ids)
    if not needs_fill:
        return grad_x, None
    free = (invert_ids(ids, grad.shape[0]) < 0).nonzero().view(-1)
    ends = torch.tensor([0, free.shape[0]])
    return grad_x, sum_sorted(grad, ends, free).view(-1)
