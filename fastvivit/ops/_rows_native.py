"""Row kernels of csrc/rows_cpu.cpp on tensors: what the ``cpp`` backends of the row moves share."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvivit import _native

_DTYPE = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}


def gather_rows(x: Tensor, ids: Tensor, fill: Tensor | None = None) -> Tensor:
    """``out[r] = x[ids[r]]``, ``fill`` (D,) (else 0) for an id outside. x (N, D), ids (M,) → (M, D)."""
    if x.stride(-1) != 1:
        x = x.contiguous()
    fill = fill if fill is None else fill.contiguous()
    width, size = x.shape[1], x.element_size()
    out = x.new_empty(ids.shape[0], width)
    _native.load().fv_gather_rows(
        x.data_ptr(), x.shape[0], x.stride(0) * size, ids.data_ptr(), ids.shape[0], width * size,
        None if fill is None else fill.data_ptr(), out.data_ptr(),
    )  # fmt: skip
    return out


def invert_ids(ids: Tensor, size: int) -> Tensor:
    """The row that addresses each of ``size`` slots, or -1. ids (M,) distinct → (size,) int64."""
    inverse = ids.new_empty(size)
    _native.load().fv_invert_ids(ids.data_ptr(), ids.shape[0], size, inverse.data_ptr())
    return inverse


def sort_ids(ids: Tensor, segments: int) -> tuple[Tensor, Tensor]:
    """Rows by segment, each segment's in order: offsets (segments + 1,), order (M,)."""
    offsets, order = ids.new_empty(segments + 1), torch.empty_like(ids)
    _native.load().fv_sort_ids(ids.data_ptr(), ids.shape[0], segments, offsets.data_ptr(), order.data_ptr())
    return offsets, order


def sum_sorted(x: Tensor, offsets: Tensor, order: Tensor, *, mean: bool = False) -> Tensor:
    """``out[s] = sum of x[order[i]], offsets[s] <= i < offsets[s + 1]``, in that order. x (M, D) → (S, D)."""
    if x.stride(-1) != 1:
        x = x.contiguous()
    out = x.new_empty(offsets.shape[0] - 1, x.shape[1])
    _native.load().fv_segment_sum(
        _DTYPE[x.dtype], x.data_ptr(), x.stride(0), order.data_ptr(), offsets.data_ptr(), out.shape[0],
        x.shape[1], mean, out.data_ptr(),
    )  # fmt: skip
    return out


def segment_sum(x: Tensor, ids: Tensor, segments: int) -> Tensor:
    """``out[s] = sum of x[r] over ids[r] == s``, in the order of r. x (M, D), ids (M,) → (segments, D)."""
    return sum_sorted(x, *sort_ids(ids, segments))
