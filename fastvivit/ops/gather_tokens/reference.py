"""The definition of gather_tokens, in plain PyTorch."""

import torch
from torch import Tensor


def forward(x: Tensor, ids: Tensor) -> Tensor:
    """``out[m] = x[ids[m]]``; a row of NaN for an id out of range. x (N, D), ids (M,) → (M, D)."""
    outside = (ids < 0) | (ids >= x.shape[0])
    return x[ids.clamp(0, max(x.shape[0] - 1, 0))].masked_fill_(outside.unsqueeze(1), float("nan"))


def backward(grad: Tensor, ids: Tensor, rows: int) -> Tensor:
    """``grad_x[n] = sum of grad[m] over ids[m] == n``, in the order of m. grad (M, D), ids (M,) → (rows, D).

    Half types are summed in float32. A stable sort brings equal ids together, so that the order of the sum is
    fixed on every device (``index_add`` on a GPU has none).
    """
    wide = torch.promote_types(grad.dtype, torch.float32)
    inside = (ids >= 0) & (ids < rows)
    slot = torch.where(inside, ids, rows)
    order = slot.argsort(stable=True)
    lengths = torch.zeros(rows + 1, dtype=torch.int64, device=ids.device).scatter_add_(0, slot, torch.ones_like(slot))
    sums = torch.segment_reduce(grad[order].to(wide), "sum", lengths=lengths, axis=0, unsafe=True, initial=0.0)
    return sums[:rows].to(grad.dtype)
