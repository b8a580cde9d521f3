"""Calls of csrc's kernels on tensors whose surroundings are watched."""

import numpy as np
import pytest
import torch

from fastvivit import _native

LIB = _native.load()
BUILT = pytest.mark.skipif(LIB is None, reason=_native.reason() or "built")
CANARY = 77
DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3, torch.uint8: 4}


def guarded(*shape, dtype=torch.float32):
    """A tensor with canaries on both sides, and a check that they are still alive."""
    size = int(np.prod(shape))
    buffer = torch.full((size + 128,), CANARY, dtype=dtype)

    def check():
        assert (buffer[:64] == CANARY).all() and (buffer[64 + size :] == CANARY).all(), "written out of bounds"

    return buffer[64 : 64 + size].view(shape), check


def ints(*values):
    return torch.tensor(values, dtype=torch.int64)


def sort_ids(ids, segments):
    offsets, check_offsets = guarded(segments + 1, dtype=torch.int64)
    order, check_order = guarded(len(ids), dtype=torch.int64)
    LIB.fv_sort_ids(ids.data_ptr(), len(ids), segments, offsets.data_ptr(), order.data_ptr())
    check_offsets()
    check_order()
    return offsets, order


def segment_sum(src, segment, segments, mean):
    offsets, order = sort_ids(segment, segments)
    out, check = guarded(segments, src.shape[1], dtype=src.dtype)
    LIB.fv_segment_sum(
        DTYPES[src.dtype], src.data_ptr(), src.stride(0), order.data_ptr(), offsets.data_ptr(), segments,
        src.shape[1], int(mean), out.data_ptr(),
    )  # fmt: skip
    check()
    return out
