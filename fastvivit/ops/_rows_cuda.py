"""Row kernels of csrc/rows_*_cuda.cu on tensors: what the ``cuda`` backends of gather, scatter and mean share.

Nothing here waits for the device, and every sum has an order that no scheduling changes. A ``guard`` is
(flag, clean): an int64 on the device, and what it holds when all ids are good. Otherwise the whole result is
NaN, with nobody having looked.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastvivit import _native

Guard = tuple[Tensor, int] | None

_DTYPE = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
# A quiet NaN, repeated over 8 bytes.
_NAN = {
    torch.float32: 0x7FC00000_7FC00000,
    torch.float64: 0x7FF80000_00000000,
    torch.float16: 0x7E007E00_7E007E00,
    torch.bfloat16: 0x7FC07FC0_7FC07FC0,
}


def _launch(name: str, like: Tensor, *arguments) -> None:
    """Call a launcher on the device and stream of ``like``; ``RuntimeError`` with CUDA's text if it fails."""
    library = _native.load_cuda()
    with torch.cuda.device_of(like):
        # Tests run the same sources on a CPU, which has no stream.
        stream = torch.cuda.current_stream(like.device).cuda_stream if like.is_cuda else None
        status = getattr(library, name)(*arguments, stream)
    if status:
        raise RuntimeError(f"{name}: {library.fv_cuda_error(status).decode()} (CUDA error {status})")


def _unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _flag(guard: Guard) -> tuple[int | None, int]:
    return (None, 0) if guard is None else (guard[0].data_ptr(), guard[1])


def gather_rows(
    x: Tensor, ids: Tensor, *, fill: Tensor | None = None, nan_outside: bool = False, guard: Guard = None
) -> Tensor:
    """``out[r] = x[ids[r]]`` in one pass; ``fill`` (D,) or 0, or NaN, where an id lies outside 0..N-1.

    x (N, D) of any floating dtype, ids (M,) int64 contiguous → (M, D).
    """
    x = _unit_stride(x)
    out = x.new_empty(ids.shape[0], x.shape[1])
    fill = fill if fill is None else fill.contiguous()
    nan, size = _NAN[x.dtype], x.element_size()
    _launch(
        "fv_cuda_gather_rows", x, x.data_ptr(), x.shape[0], x.stride(0) * size, ids.data_ptr(), out.shape[0],
        out.shape[1] * size, None if fill is None else fill.data_ptr(), nan if nan_outside else 0, nan,
        *_flag(guard), out.data_ptr(),
    )  # fmt: skip
    return out


def divide_rows(x: Tensor, ids: Tensor, divisor: Tensor, *, guard: Guard = None) -> Tensor:
    """``out[r] = x[ids[r]] / max(divisor[ids[r]], 1)``, 0 where an id lies outside.

    x (N, D), ids (M,) int64 contiguous, divisor (N,) int64 → (M, D); divided in float32 (float64 for float64).
    """
    x, divisor = _unit_stride(x), divisor.contiguous()
    out = x.new_empty(ids.shape[0], x.shape[1])
    _launch(
        "fv_cuda_divide_rows", x, _DTYPE[x.dtype], x.data_ptr(), x.shape[0], x.stride(0), ids.data_ptr(), *out.shape,
        divisor.data_ptr(), *_flag(guard), out.data_ptr(),
    )  # fmt: skip
    return out


def invert_ids(ids: Tensor, size: int, *, outside_spoils: bool = True) -> tuple[Tensor, Guard]:
    """The row that addresses each of ``size`` slots, (size,) int64, -1 where nobody does; and its guard.

    ids (M,) int64 contiguous. A repeated one spoils, and with ``outside_spoils`` one outside 0..size-1.
    """
    state = ids.new_empty(size + 1)
    _launch("fv_cuda_invert_ids", ids, ids.data_ptr(), ids.shape[0], size, outside_spoils, state.data_ptr())
    return state[:size], (state[size:], -1)


def sum_sorted(x: Tensor, offsets: Tensor, order: Tensor, *, mean: bool = False) -> Tensor:
    """``out[s] = sum of x[order[i]] over offsets[s] <= i < offsets[s + 1]``.

    x (M, D), offsets (S + 1,), order (M,) as `sort_ids` gives them → (S, D); sums in float32 (float64 for
    float64). With ``mean`` it is divided by the segment's rows, 0 where it has none, and all NaN if some row
    is in no segment.
    """
    return _sum(x, offsets.shape[0] - 1, offsets=offsets, order=order, mean=mean, all_rows=mean)


def sum_free(x: Tensor, inverse: Tensor, *, guard: Guard = None) -> Tensor:
    """Sum the rows of x (N, D) that no id addresses, those with ``inverse[n] < 0``: (D,)."""
    return _sum(x, 1, occupant=inverse, guard=guard)[0]


def _sum(x, segments, *, offsets=None, order=None, occupant=None, mean=False, all_rows=False, guard=None) -> Tensor:
    x = _unit_stride(x)
    dtype, (rows, width) = _DTYPE[x.dtype], x.shape
    out = x.new_empty(segments, width)
    wide = torch.promote_types(x.dtype, torch.float32)
    size = _native.load_cuda().fv_cuda_sum_scratch(dtype, rows, segments, width) // wide.itemsize
    scratch = x.new_empty(size, dtype=wide) if size else None
    order, occupant, offsets, space = (None if t is None else t.data_ptr() for t in (order, occupant, offsets, scratch))
    _launch(
        "fv_cuda_sum_rows", x, dtype, x.data_ptr(), x.stride(0), rows, order, occupant, offsets, segments, width,
        mean, all_rows, *_flag(guard), space, out.data_ptr(),
    )  # fmt: skip
    return out
