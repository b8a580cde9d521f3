"""segment_mean by the compiled CPU kernels (csrc/rows_cpu.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvivit.ops._rows_native import gather_rows, sort_ids, sum_sorted


def forward(x: Tensor, ids: Tensor, segments: int) -> tuple[Tensor, Tensor]:
    """Mean (S, D) and count (S,) of the rows of each segment. x (M, D), ids (M,)."""
    offsets, order = sort_ids(ids, segments)
    return sum_sorted(x, offsets, order, mean=True), offsets.diff()


def backward(grad: Tensor, ids: Tensor, count: Tensor) -> Tensor:
    """``grad_x[m] = grad[ids[m]] / count[ids[m]]``. grad (S, D), ids (M,), count (S,) → (M, D)."""
    wide = torch.promote_types(grad.dtype, torch.float32)
    return gather_rows((grad.to(wide) / count.clamp(min=1).unsqueeze(1)).to(grad.dtype), ids)
