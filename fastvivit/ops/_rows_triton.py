"""Row kernels in Triton: what the ``triton`` backends of gather, scatter, segment mean and the embedding share.

Nothing here waits for the device, and nothing depends on the order in which programs run: every sum has a fixed order.
Sizes that must be known to be aligned are passed in units of VEC elements (16 bytes where the shapes allow it), so that
a row of 200 half-precision numbers still moves 16 bytes to a thread: Triton only looks for multiples of 16 elements.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import torch
import triton
import triton.language as tl
from torch import Tensor

# Bytes of a row that one program moves: one 16-byte access for each thread of a warp.
_ROW_BYTES = 512
# Elements of a tile: 4 warps with four 16-byte accesses in flight each (for 16-bit rows).
_TILE = 4096
# Above this many rows a segment (on average) a segment is split: one program a segment would leave the device idle.
_LONG_SEGMENT = 64
# Rows of one piece of a split segment.
_CHUNK = 256


@triton.jit(do_not_specialize=["size", "rows", "clean"])
def _gather_rows_kernel(
    x, ids, fill, divisor, flag, out, size, rows, width_units, stride_units, clean,
    NAN_OUTSIDE: tl.constexpr, VEC: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """``out[r] = x[ids[r]] / divisor[ids[r]]``; NaN, or ``fill`` or 0, outside; all NaN where ``flag`` is not ``clean``."""
    width = width_units * VEC
    blocks = tl.cdiv(width, BLOCK_COLS)
    row = (tl.program_id(0) // blocks).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    col = (tl.program_id(0) % blocks) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    live, within = row < rows, col < width
    source = tl.load(ids + row, mask=live, other=-1)
    inside = (source >= 0) & (source < size)
    source = tl.where(inside, source, 0).to(tl.int64)
    address = x + source[:, None] * (stride_units * VEC) + col[None, :]
    values = tl.load(address, mask=inside[:, None] & within[None, :], other=0.0)
    if divisor is not None:
        count = tl.load(divisor + source, mask=inside, other=1)
        wide = values if values.dtype == tl.float64 else values.to(tl.float32)
        values = (wide / tl.maximum(count, 1).to(wide.dtype)[:, None]).to(values.dtype)
    if fill is not None:
        values = tl.where(inside[:, None], values, tl.load(fill + col, mask=within, other=0.0)[None, :])
    bad = live & (row < 0)
    if NAN_OUTSIDE:
        bad = live & (inside == 0)
    if flag is not None:
        bad = bad | (tl.load(flag) != clean)
    values = tl.where(bad[:, None], float("nan"), values).to(values.dtype)
    tl.store(out + row[:, None] * width + col[None, :], values, mask=live[:, None] & within[None, :])


@triton.jit(do_not_specialize=["rows", "size"])
def _invert_ids_kernel(ids, state, rows, size, OUTSIDE_SPOILS: tl.constexpr, BLOCK: tl.constexpr):
    """``state[ids[m]] = m``, state (size + 1,) of -1; ``state[size] = 0`` where an id repeats (or lies outside)."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = row < rows
    slot = tl.load(ids + row, mask=live, other=-1)
    inside = (slot >= 0) & (slot < size)
    # The maximum is the same in any order, and what it replaced says whether somebody was here before.
    before = tl.atomic_max(state + tl.where(inside, slot, 0), row, mask=inside, sem="relaxed")
    bad = inside & (before >= 0)
    if OUTSIDE_SPOILS:
        bad = bad | (live & (inside == 0))
    if tl.sum(bad.to(tl.int32), 0) > 0:
        tl.store(state + size, 0)


@triton.jit(do_not_specialize=["segments", "clean"])
def _sum_segments_kernel(
    x, order, offsets, divisor, flag, out, segments, width_units, stride_units, clean,
    ACC: tl.constexpr, VEC: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """``out[s] = sum of x[order[i]] over offsets[s] <= i < offsets[s + 1]``, one by one: for short segments."""
    width = width_units * VEC
    blocks = tl.cdiv(width, BLOCK_COLS)
    segment = (tl.program_id(0) // blocks).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    col = (tl.program_id(0) % blocks) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    live, within = segment < segments, col < width
    first = tl.load(offsets + segment, mask=live, other=0)
    last = tl.load(offsets + segment + 1, mask=live, other=0)
    acc = tl.zeros((BLOCK_ROWS, BLOCK_COLS), ACC)
    for step in range(tl.max(last - first, 0)):
        taken = first + step < last
        row = tl.load(order + first + step, mask=taken, other=0)
        address = x + row[:, None] * (stride_units * VEC) + col[None, :]
        acc += tl.load(address, mask=taken[:, None] & within[None, :], other=0.0).to(ACC)
    if divisor is not None:
        acc = acc / tl.maximum(tl.load(divisor + segment, mask=live, other=1), 1).to(ACC)[:, None]
    if flag is not None:
        acc = tl.where(tl.load(flag) != clean, float("nan"), acc)
    address = out + segment[:, None] * width + col[None, :]
    tl.store(address, acc.to(out.dtype.element_ty), mask=live[:, None] & within[None, :])


@triton.jit(do_not_specialize=["rows", "chunk", "size", "clean"])
def _sum_chunks_kernel(
    x, index, firsts, lasts, divisor, flag, out, rows, chunk, size, width_units, stride_units, clean,
    HOW: tl.constexpr, ACC: tl.constexpr, VEC: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """One sum of rows ``firsts[p] <= i < lasts[p]`` (None: ``p·chunk`` and a chunk on) to a program ``p``.

    HOW "all" takes row i; "order" takes row index[i]; "inside" takes row i where index[i] is in 0..size-1, and
    "outside" where it is not.
    """
    width = width_units * VEC
    blocks = tl.cdiv(width, BLOCK_COLS)
    piece = (tl.program_id(0) // blocks).to(tl.int64)
    col = (tl.program_id(0) % blocks) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    within = col < width
    if firsts is None:
        first = piece * chunk
        last = tl.minimum(first + chunk, rows)
    else:
        first = tl.load(firsts + piece)
        last = tl.load(lasts + piece)
    acc = tl.zeros((BLOCK_ROWS, BLOCK_COLS), ACC)
    for start in range(first, last, BLOCK_ROWS):
        row = start + tl.arange(0, BLOCK_ROWS).to(tl.int64)
        taken = row < last
        if HOW != "all":
            at = tl.load(index + row, mask=taken, other=0)
            if HOW == "order":
                row = at
            elif HOW == "inside":
                taken = taken & (at >= 0) & (at < size)
            else:
                taken = taken & ((at < 0) | (at >= size))
        address = x + row[:, None] * (stride_units * VEC) + col[None, :]
        acc += tl.load(address, mask=taken[:, None] & within[None, :], other=0.0).to(ACC)
    total = tl.sum(acc, 0)
    if divisor is not None:
        total = total / tl.maximum(tl.load(divisor + piece), 1).to(ACC)
    if flag is not None:
        total = tl.where(tl.load(flag) != clean, float("nan"), total)
    tl.store(out + piece * width + col, total.to(out.dtype.element_ty), mask=within)


@dataclass(frozen=True)
class RowTile:
    """How rows of one width are cut: VEC elements to an access, and rows by columns to a program."""

    vec: int
    rows: int
    cols: int

    @classmethod
    def of(cls, width: int, stride: int, element_size: int) -> RowTile:
        cols = min(_ROW_BYTES // element_size, max(triton.next_power_of_2(width), 16))
        return cls(gcd(16 // element_size, width, stride), max(_TILE * 2 // (cols * element_size), 1), cols)

    def programs(self, rows: int, width: int) -> tuple[int]:
        return (triton.cdiv(rows, self.rows) * triton.cdiv(width, self.cols),)

    def options(self) -> dict[str, object]:
        return {"VEC": self.vec, "BLOCK_ROWS": self.rows, "BLOCK_COLS": self.cols, "enable_fp_fusion": True}


def _accumulator(x: Tensor) -> tuple[torch.dtype, tl.dtype]:
    return (torch.float64, tl.float64) if x.dtype == torch.float64 else (torch.float32, tl.float32)


def _unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def gather_rows(
    x: Tensor,
    ids: Tensor,
    *,
    fill: Tensor | None = None,
    nan_outside: bool = False,
    divisor: Tensor | None = None,
    flag: Tensor | None = None,
    clean: int = 0,
) -> Tensor:
    """``out[r] = x[ids[r]]`` in one pass.

    Args:
        x: (N, D), any row stride.
        ids: (M,) int64.
        fill: (D,) for rows whose id lies outside 0..N-1; None is 0.
        nan_outside: such rows become NaN instead.
        divisor: (N,) int64; row n of ``x`` is divided by max(divisor[n], 1).
        flag: one int64; all of ``out`` is NaN unless it equals ``clean``.

    Returns:
        (M, D) in the dtype of ``x``.
    """
    x = _unit_stride(x)
    width, rows = x.shape[1], ids.shape[0]
    out = x.new_empty(rows, width)
    if out.numel() == 0:
        return out
    fill = fill if fill is None else fill.contiguous()
    tile = RowTile.of(width, x.stride(0), x.element_size())
    with torch.cuda.device_of(x):
        _gather_rows_kernel[tile.programs(rows, width)](
            x, ids, fill, divisor, flag, out, x.shape[0], rows, width // tile.vec, x.stride(0) // tile.vec, clean,
            NAN_OUTSIDE=nan_outside, **tile.options(),
        )  # fmt: skip
    return out


def invert_ids(ids: Tensor, size: int, *, outside_spoils: bool = True) -> tuple[Tensor, Tensor]:
    """The row that addresses each of ``size`` slots.

    Args:
        ids: (M,) int64, distinct.
        size: slots.
        outside_spoils: whether an id outside 0..size-1 sets the flag; a repeated one always does.

    Returns:
        inverse (size,) int64, -1 where nobody points; flag (1,) int64, -1 unless an id is bad.
    """
    state = ids.new_full((size + 1,), -1)
    if ids.shape[0]:
        with torch.cuda.device_of(ids):
            _invert_ids_kernel[(triton.cdiv(ids.shape[0], 1024),)](
                ids, state, ids.shape[0], size, OUTSIDE_SPOILS=outside_spoils, BLOCK=1024
            )
    return state[:size], state[size:]


def sort_ids(ids: Tensor, segments: int) -> tuple[Tensor, Tensor]:
    """Rows by segment, each segment's in order: offsets (segments + 1,), order (M,). Ids outside are in no segment."""
    values, order = ids.sort(stable=True)
    return torch.searchsorted(values, torch.arange(segments + 1, device=ids.device)), order


def sum_sorted(
    x: Tensor,
    offsets: Tensor,
    order: Tensor,
    *,
    divisor: Tensor | None = None,
    flag: Tensor | None = None,
    clean: int = 0,
) -> Tensor:
    """``out[s] = sum of x[order[i]] over offsets[s] <= i < offsets[s + 1]``, in a fixed order, in float32 (or float64).

    Args:
        x: (M, D), any row stride.
        offsets: (S + 1,) int64.
        order: (M,) int64.
        divisor: (S,) int64; segment s is divided by max(divisor[s], 1).
        flag: one int64; all of ``out`` is NaN unless it equals ``clean``.

    Returns:
        (S, D) in the dtype of ``x``.
    """
    x = _unit_stride(x)
    segments, width = offsets.shape[0] - 1, x.shape[1]
    out = x.new_empty(segments, width)
    if out.numel() == 0:
        return out
    if x.shape[0] > _LONG_SEGMENT * segments:
        return _sum_long(x, offsets, order, out, divisor, flag, clean)
    tile = RowTile.of(width, x.stride(0), x.element_size())
    with torch.cuda.device_of(x):
        _sum_segments_kernel[tile.programs(segments, width)](
            x, order, offsets, divisor, flag, out, segments, width // tile.vec, x.stride(0) // tile.vec, clean,
            ACC=_accumulator(x)[1], **tile.options(),
        )  # fmt: skip
    return out


def _sum_long(x, offsets, order, out, divisor, flag, clean) -> Tensor:
    """Every segment in pieces of _CHUNK rows, then the pieces of each segment. Nobody asks the device how many there are."""
    segments = offsets.shape[0] - 1
    bounds = offsets.new_zeros(segments + 1)
    torch.cumsum((offsets.diff() + (_CHUNK - 1)) // _CHUNK, 0, out=bounds[1:])
    piece = torch.arange(x.shape[0] // _CHUNK + segments, device=x.device)
    segment = (torch.searchsorted(bounds, piece, right=True) - 1).clamp_(max=segments - 1)
    firsts = offsets[segment] + (piece - bounds[segment]) * _CHUNK
    lasts = torch.minimum(firsts + _CHUNK, offsets[segment + 1])
    partial = x.new_empty(piece.shape[0], x.shape[1], dtype=_accumulator(x)[0])
    _sum_chunks(x, order, "order", firsts, lasts, partial)
    return _sum_chunks(partial, None, "all", bounds, bounds[1:], out, divisor=divisor, flag=flag, clean=clean)


def _sum_chunks(
    x, index, how, firsts, lasts, out, *, chunk=0, size=0, divisor=None, flag=None, clean=0
) -> Tensor:
    width = x.shape[1]
    tile = RowTile.of(width, x.stride(0), x.element_size())
    with torch.cuda.device_of(x):
        _sum_chunks_kernel[(out.shape[0] * triton.cdiv(width, tile.cols),)](
            x, index, firsts, lasts, divisor, flag, out, x.shape[0], chunk, size, width // tile.vec,
            x.stride(0) // tile.vec, clean, HOW=how, ACC=_accumulator(x)[1], **tile.options(),
        )  # fmt: skip
    return out


def sum_by_id(x: Tensor, ids: Tensor, segments: int) -> Tensor:
    """``out[s] = sum of x[m] over ids[m] == s``, in the order of m. x (M, D), ids (M,) → (segments, D)."""
    return sum_sorted(x, *sort_ids(ids, segments))


def sum_columns(
    x: Tensor,
    index: Tensor | None = None,
    size: int = 0,
    *,
    inside: bool = True,
    dtype: torch.dtype | None = None,
    flag: Tensor | None = None,
    clean: int = 0,
) -> Tensor:
    """Sum of the rows m of ``x`` (M, D) whose index[m] is in 0..size-1 (or is not); None: of all. (D,), ``dtype`` or x's."""
    x = _unit_stride(x)
    rows, width = x.shape
    how = "all" if index is None else "inside" if inside else "outside"
    out = x.new_empty(1, width, dtype=dtype)
    if width and rows > _CHUNK:
        partial = x.new_empty(triton.cdiv(rows, _CHUNK), width, dtype=_accumulator(x)[0])
        x = _sum_chunks(x, index, how, None, None, partial, chunk=_CHUNK, size=size)
        index, how = None, "all"
    if width:
        _sum_chunks(x, index, how, None, None, out, chunk=x.shape[0], size=size, flag=flag, clean=clean)
    return out[0]
