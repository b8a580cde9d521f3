"""Row kernels in Triton: what the ``triton`` backends of gather, scatter, segment mean and embedding share.

Nothing here waits for the device, and every sum has an order that no scheduling changes. Sizes that must be
known to be aligned are passed in units of VEC elements (16 bytes where shapes allow it), so that a row of 200
16-bit numbers still moves 16 bytes to a thread: of plain integers Triton only sees multiples of 16.

A ``guard`` is (flag, clean): an int64 on the device, and what it holds when all ids are good. Otherwise the
whole result is NaN, with nobody having looked.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import torch
import triton
import triton.language as tl
from torch import Tensor

Guard = tuple[Tensor, int] | None

# Bytes of a row that one program moves: one 16-byte access for each thread of a warp.
_ROW_BYTES = 512
# Bytes of a tile: 4 warps with four such accesses to a thread in flight.
_TILE_BYTES = 8192
# Above this many rows a segment on average, segments are split: one program each would leave the device idle.
_LONG_SEGMENT = 64
# Rows of one piece of a split segment.
_CHUNK = 256
_INVERT_BLOCK = 1024


@triton.jit(do_not_specialize=["size", "rows", "clean"])
def _gather_rows_kernel(
    x, ids, fill, divisor, flag, out, size, rows, width_units, stride_units, clean,
    NAN_OUTSIDE: tl.constexpr, VEC: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """``out[r] = x[ids[r]] / divisor[ids[r]]``; NaN, or ``fill`` or 0, where the id lies outside."""
    width = width_units * VEC
    blocks = tl.cdiv(width, BLOCK_COLS)
    row = (tl.program_id(0) // blocks).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    col = (tl.program_id(0) % blocks) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    live, within = row < rows, col < width
    source = tl.load(ids + row, mask=live, other=-1)
    inside = (source >= 0) & (source < size)
    source = tl.where(inside, source, 0)
    address = x + source[:, None] * (stride_units * VEC) + col[None, :]
    values = tl.load(address, mask=inside[:, None] & within[None, :], other=0.0)
    if divisor is not None:
        count = tl.load(divisor + source, mask=inside, other=1)
        wide = values if values.dtype == tl.float64 else values.to(tl.float32)
        values = (wide / tl.maximum(count, 1).to(wide.dtype)[:, None]).to(values.dtype)
    if fill is not None:
        values = tl.where(inside[:, None], values, tl.load(fill + col, mask=within, other=0.0)[None, :])
    bad = live & (inside == 0) & NAN_OUTSIDE
    if flag is not None:
        bad = bad | (tl.load(flag) != clean)
    values = tl.where(bad[:, None], float("nan"), values).to(values.dtype)
    tl.store(out + row[:, None] * width + col[None, :], values, mask=live[:, None] & within[None, :])


@triton.jit(do_not_specialize=["rows", "size"])
def _invert_ids_kernel(ids, state, rows, size, OUTSIDE_SPOILS: tl.constexpr, BLOCK: tl.constexpr):
    """``state[ids[m]] = m``, state (size + 1,) of -1; its last is 0 where an id repeats (or lies outside)."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = row < rows
    slot = tl.load(ids + row, mask=live, other=-1)
    inside = (slot >= 0) & (slot < size)
    # The maximum is the same in any order, and what it replaced says whether somebody was here before.
    before = tl.atomic_max(state + tl.where(inside, slot, 0), row, mask=inside, sem="relaxed")
    bad = (inside & (before >= 0)) | (live & (inside == 0) & OUTSIDE_SPOILS)
    if tl.sum(bad.to(tl.int32), 0) > 0:
        tl.store(state + size, 0)


@triton.jit(do_not_specialize=["segments", "clean"])
def _sum_segments_kernel(
    x, order, offsets, divisor, flag, out, segments, width_units, stride_units, clean,
    ACC: tl.constexpr, VEC: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """``out[s] = sum of x[order[i]] over offsets[s] <= i < offsets[s + 1]``, one by one: short segments."""
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
    HOW: tl.constexpr, ACC: tl.constexpr, VEC: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """``out[p]`` = sum over ``firsts[p] <= i < lasts[p]`` (or p-th ``chunk``) of row i, or of row index[i].

    HOW "order" is the latter; "inside" takes the rows i whose index[i] is in 0..size-1, "outside" the others.
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
    """How rows of one width are cut: ``vec`` elements to an access, ``rows`` by ``cols`` to a program."""

    vec: int
    rows: int
    cols: int

    @classmethod
    def of(cls, x: Tensor) -> RowTile:
        """For the rows of ``x`` (M, D)."""
        width, size = x.shape[1], x.element_size()
        cols = min(_ROW_BYTES // size, max(triton.next_power_of_2(width), 16))
        return cls(gcd(16 // size, width, x.stride(0)), _TILE_BYTES // (cols * size), cols)

    def grid(self, rows: int, width: int) -> tuple[int]:
        """Programs for ``rows`` rows."""
        return (triton.cdiv(rows, self.rows) * triton.cdiv(width, self.cols),)

    def options(self) -> dict[str, object]:
        """What every kernel here is launched with."""
        return {"VEC": self.vec, "BLOCK_ROWS": self.rows, "BLOCK_COLS": self.cols, "enable_fp_fusion": True}

    def extent(self, x: Tensor) -> dict[str, int]:
        """Width and row stride of ``x`` in accesses."""
        return {"width_units": x.shape[1] // self.vec, "stride_units": x.stride(0) // self.vec}


def _accumulator(x: Tensor) -> tuple[torch.dtype, tl.dtype]:
    return (torch.float64, tl.float64) if x.dtype == torch.float64 else (torch.float32, tl.float32)


def _unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def gather_rows(
    x: Tensor,
    ids: Tensor,
    *,
    fill: Tensor | None = None,
    nan_outside: bool = False,
    divisor: Tensor | None = None,
    guard: Guard = None,
) -> Tensor:
    """``out[r] = x[ids[r]]`` in one pass; ``fill`` (D,) or 0, or NaN, where an id lies outside 0..N-1.

    x (N, D), ids (M,) int64 → (M, D). Row n is divided by max(divisor[n], 1), divisor (N,).
    """
    x = _unit_stride(x)
    out = x.new_empty(ids.shape[0], x.shape[1])
    if out.numel() == 0:
        return out
    fill = fill if fill is None else fill.contiguous()
    tile, (flag, clean) = RowTile.of(x), guard or (None, 0)
    with torch.cuda.device_of(x):
        _gather_rows_kernel[tile.grid(*out.shape)](
            x, ids, fill, divisor, flag, out, x.shape[0], out.shape[0], clean=clean, NAN_OUTSIDE=nan_outside,
            **tile.extent(x), **tile.options(),
        )  # fmt: skip
    return out


def invert_ids(ids: Tensor, size: int, *, outside_spoils: bool = True) -> tuple[Tensor, Guard]:
    """The row that addresses each of ``size`` slots, (size,) int64, -1 where nobody does; and its guard.

    ids (M,) int64. A repeated one spoils, and with ``outside_spoils`` one outside 0..size-1.
    """
    state = ids.new_full((size + 1,), -1)
    if ids.shape[0]:
        with torch.cuda.device_of(ids):
            _invert_ids_kernel[(triton.cdiv(ids.shape[0], _INVERT_BLOCK),)](
                ids, state, ids.shape[0], size, OUTSIDE_SPOILS=outside_spoils, BLOCK=_INVERT_BLOCK
            )
    return state[:size], (state[size:], -1)


def sum_sorted(
    x: Tensor, offsets: Tensor, order: Tensor, *, divisor: Tensor | None = None, guard: Guard = None
) -> Tensor:
    """``out[s] = sum of x[order[i]] over offsets[s] <= i < offsets[s + 1]``, over max(divisor[s], 1).

    x (M, D), offsets (S + 1,), order (M,), divisor (S,) → (S, D); sums in float32 (float64 for float64).
    """
    x = _unit_stride(x)
    segments = offsets.shape[0] - 1
    out = x.new_empty(segments, x.shape[1])
    if out.numel() == 0:
        return out
    if x.shape[0] > _LONG_SEGMENT * segments:
        return _sum_long(x, offsets, order, out, divisor, guard)
    tile, (flag, clean) = RowTile.of(x), guard or (None, 0)
    with torch.cuda.device_of(x):
        _sum_segments_kernel[tile.grid(*out.shape)](
            x, order, offsets, divisor, flag, out, segments, clean=clean, ACC=_accumulator(x)[1],
            **tile.extent(x), **tile.options(),
        )  # fmt: skip
    return out


def _sum_long(x, offsets, order, out, divisor, guard) -> Tensor:
    """Pieces of _CHUNK rows first, then each segment's pieces; how many there are stays on the device."""
    segments = offsets.shape[0] - 1
    bounds = offsets.new_zeros(segments + 1)
    bounds[1:] = ((offsets.diff() + (_CHUNK - 1)) // _CHUNK).cumsum(0)
    piece = torch.arange(x.shape[0] // _CHUNK + segments, device=x.device)
    segment = (torch.searchsorted(bounds, piece, right=True) - 1).clamp_(max=segments - 1)
    firsts = offsets[segment] + (piece - bounds[segment]) * _CHUNK
    lasts = torch.minimum(firsts + _CHUNK, offsets[segment + 1])
    partial = x.new_empty(piece.shape[0], x.shape[1], dtype=_accumulator(x)[0])
    _sum_chunks(x, partial, "order", order, firsts=firsts, lasts=lasts)
    return _sum_chunks(partial, out, "all", firsts=bounds, lasts=bounds[1:], divisor=divisor, guard=guard)


def _sum_chunks(
    x, out, how, index=None, *, firsts=None, lasts=None, chunk=0, size=0, divisor=None, guard=None
) -> Tensor:
    tile, (flag, clean) = RowTile.of(x), guard or (None, 0)
    with torch.cuda.device_of(x):
        _sum_chunks_kernel[(out.shape[0] * triton.cdiv(out.shape[1], tile.cols),)](
            x, index, firsts, lasts, divisor, flag, out, x.shape[0], chunk, size, clean=clean, HOW=how,
            ACC=_accumulator(x)[1], **tile.extent(x), **tile.options(),
        )  # fmt: skip
    return out


def sum_columns(
    x: Tensor, how: str, index: Tensor | None = None, size: int = 0, *, dtype=None, guard: Guard = None
) -> Tensor:
    """Sum "all" rows of x (M, D), or those whose index (M,) is "inside" 0..size-1, or "outside": (D,)."""
    x = _unit_stride(x)
    out = x.new_empty(1, x.shape[1], dtype=dtype)
    if out.numel() == 0:
        return out[0]
    if x.shape[0] > _CHUNK:
        partial = x.new_empty(triton.cdiv(x.shape[0], _CHUNK), x.shape[1], dtype=_accumulator(x)[0])
        x, index, how = _sum_chunks(x, partial, how, index, chunk=_CHUNK, size=size), None, "all"
    return _sum_chunks(x, out, how, index, chunk=x.shape[0], size=size, guard=guard)[0]
