"""The definition of segment_mean, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def forward(x: Tensor, ids: Tensor, segments: int) -> tuple[Tensor, Tensor]:
    """Mean (S, D) and count (S,) of the rows of each segment; all NaN for a bad id. x (M, D), ids (M,)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    inside = (ids >= 0) & (ids < segments)
    slot = torch.where(inside, ids, segments)
    count = torch.zeros(segments + 1, dtype=torch.int64, device=x.device).scatter_add_(0, slot, torch.ones_like(slot))
    # A stable sort brings a segment's rows together, so the order of its sum is fixed on every device.
    rows = x[slot.argsort(stable=True)].to(wide)
    sums = torch.segment_reduce(rows, "sum", lengths=count, axis=0, unsafe=True, initial=0.0)[:segments]
    mean = sums / count[:segments].clamp(min=1).unsqueeze(1)
    return mean.to(x.dtype).masked_fill(~inside.all(), float("nan")), count[:segments].clone()


def backward(grad: Tensor, ids: Tensor, count: Tensor) -> Tensor:
    """``grad_x[m] = grad[ids[m]] / count[ids[m]]``. grad (S, D), ids (M,), count (S,) → (M, D)."""
    segments = grad.shape[0]
    wide = torch.promote_types(grad.dtype, torch.float32)
    spoiled = ((ids < 0) | (ids >= segments)).any()
    slot = ids.clamp(0, max(segments - 1, 0))
    rows = grad[slot].to(wide) / count[slot].clamp(min=1).unsqueeze(1)
    return rows.to(grad.dtype).masked_fill(spoiled, float("nan"))
