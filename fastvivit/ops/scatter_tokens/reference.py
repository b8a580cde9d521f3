"""The definition of scatter_tokens, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def _spoiled(ids: Tensor, rows: int) -> Tensor:
    """Whether any id lies outside or repeats: 0-d bool on the device of ``ids``, so that nothing waits."""
    inside = (ids >= 0) & (ids < rows)
    hits = torch.zeros(rows + 1, dtype=torch.int64, device=ids.device)
    hits.scatter_add_(0, torch.where(inside, ids, rows), torch.ones_like(ids))
    return ~inside.all() | (hits[:rows] > 1).any()


def forward(x: Tensor, ids: Tensor, rows: int, fill: Tensor | None) -> Tensor:
    """``out[ids[m]] = x[m]``, else ``fill`` or 0; all NaN for a bad id. x (M, D), ids (M,) → (rows, D)."""
    out = x.new_zeros(rows + 1, x.shape[1])
    if fill is not None:
        out[:rows] = fill
    out[torch.where((ids >= 0) & (ids < rows), ids, rows)] = x
    return out[:rows].masked_fill(_spoiled(ids, rows), float("nan"))


def backward(grad: Tensor, ids: Tensor, needs_fill: bool) -> tuple[Tensor, Tensor | None]:
    """Gradients of x (M, D) and fill (D,). grad (rows, D), ids (M,)."""
    rows = grad.shape[0]
    spoiled = _spoiled(ids, rows)
    grad_x = grad[ids.clamp(0, max(rows - 1, 0))].masked_fill(spoiled, float("nan"))
    if not needs_fill:
        return grad_x, None
    free = torch.ones(rows + 1, dtype=torch.bool, device=ids.device)
    free[torch.where((ids >= 0) & (ids < rows), ids, rows)] = False
    wide = torch.promote_types(grad.dtype, torch.float32)
    grad_fill = torch.where(free[:rows, None], grad, 0).sum(0, dtype=wide).to(grad.dtype)
    return grad_x, grad_fill.masked_fill(spoiled, float("nan"))
