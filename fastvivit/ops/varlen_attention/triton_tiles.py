"""What the attention kernels share: reading the schedule, loading and storing tiles of packed rows."""

from __future__ import annotations

import triton
import triton.language as tl

from fastvivit.ops.varlen_attention import schedule

GRANULE = tl.constexpr(schedule.GRANULE)
HEADER = tl.constexpr(schedule.HEADER)
FIELDS = tl.constexpr(schedule.FIELDS)
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def program_entry(entries, heads, heads_at_once, BLOCK: tl.constexpr):
    """Return (entry, part of its GRANULE rows, head) of this program.

    ``heads_at_once`` heads advance together through the table, fastest: so the longest blocks of all of them start
    first, and no more keys and values are in use at a time than the cache holds.
    """
    parts: tl.constexpr = GRANULE // BLOCK
    program = tl.program_id(0)
    programs_at_once = entries * parts * heads_at_once
    first_head = program // programs_at_once * heads_at_once
    within = program % programs_at_once
    here = tl.minimum(heads_at_once, heads - first_head)
    block = within // here
    return block // parts, block % parts, first_head + within % here


@triton.jit
def table_is_bad(table, rows_q, rows_k, sequences):
    """Whether the table is flagged, or was built for other sizes: then none of its bounds may be used."""
    return (
        (tl.load(table) != 0)
        | (tl.load(table + 1) != rows_q)
        | (tl.load(table + 2) != rows_k)
        | (tl.load(table + 3) != sequences)
    )


@triton.jit
def read_entry(fields, entry, rows, bad):
    """Return (sequence, block, own start, own end, other start, other end) at ``fields``.

    With a bad table every program takes the rows at its own number, and they meet nothing: all rows get written.
    """
    sequence = tl.where(bad, 0, tl.load(fields))
    block = tl.where(bad, entry, tl.load(fields + 1))
    own_start = tl.where(bad, 0, tl.load(fields + 2))
    own_end = tl.where(bad, rows, tl.load(fields + 3))
    other_start = tl.where(bad, 0, tl.load(fields + 4))
    other_end = tl.where(bad, 0, tl.load(fields + 5))
    return sequence, block, own_start, own_end, other_start, other_end


@triton.jit
def tile_offsets(stride, BLOCK: tl.constexpr, HEAD_PAD: tl.constexpr, REST: tl.constexpr, WIDE: tl.constexpr):
    """Offsets (BLOCK, HEAD_PAD) and (BLOCK, REST) of a tile from its first row; 64 bits only where it spans so much.

    Everything of a tile comes in two: products take powers of two, so a head dim such as 80 is 64 columns and a rest of
    16 in place of 128. Where REST is 0 the second is the first again, and nobody uses it.
    """
    rows = tl.arange(0, BLOCK)
    if WIDE:
        rows = rows.to(tl.int64)
    offsets = rows[:, None] * stride + tl.arange(0, HEAD_PAD)[None, :]
    rest = offsets
    if REST:
        rest = rows[:, None] * stride + (HEAD_PAD + tl.arange(0, REST))[None, :]
    return offsets, rest


@triton.jit
def _load(first, offsets, rows_left, WIDTH: tl.constexpr, MASK_ROWS: tl.constexpr):
    rows = tl.arange(0, offsets.shape[0])[:, None]
    columns = tl.arange(0, offsets.shape[1])[None, :]
    if offsets.shape[1] <= WIDTH:
        if MASK_ROWS:
            tile = tl.load(first + offsets, mask=rows < rows_left, other=0.0)
        else:
            tile = tl.load(first + offsets)
    else:
        if MASK_ROWS:
            tile = tl.load(first + offsets, mask=(rows < rows_left) & (columns < WIDTH), other=0.0)
        else:
            tile = tl.load(first + offsets, mask=columns < WIDTH, other=0.0)
    return tile


@triton.jit
def load_tile(
    first, offsets, rest_offsets, rows_left, HEAD_DIM: tl.constexpr, REST: tl.constexpr, MASK_ROWS: tl.constexpr
):
    """Load the tile whose first row is at ``first``; rows from ``rows_left`` on, and columns past HEAD_DIM, are 0."""
    tile = _load(first, offsets, rows_left, HEAD_DIM, MASK_ROWS)
    rest = tile
    if REST:
        rest = _load(first, rest_offsets, rows_left, HEAD_DIM - offsets.shape[1], MASK_ROWS)
    return tile, rest


@triton.jit
def dot_columns(a, a_rest, b, b_rest, REST: tl.constexpr, PRECISION: tl.constexpr):
    """``a b^T``: the sum runs over the columns of both parts."""
    product = tl.dot(a, tl.trans(b), input_precision=PRECISION)
    if REST:
        product = tl.dot(a_rest, tl.trans(b_rest), product, input_precision=PRECISION)
    return product


@triton.jit
def dot_rows(a, b, b_rest, acc, acc_rest, REST: tl.constexpr, PRECISION: tl.constexpr):
    """``acc + a b`` of both parts: the sum runs over the rows of ``b``."""
    acc = tl.dot(a, b, acc, input_precision=PRECISION)
    if REST:
        acc_rest = tl.dot(a, b_rest, acc_rest, input_precision=PRECISION)
    return acc, acc_rest


@triton.jit
def zero_tile(BLOCK: tl.constexpr, HEAD_PAD: tl.constexpr, REST: tl.constexpr):
    """Sums (BLOCK, HEAD_PAD) and (BLOCK, REST) to start from; where REST is 0 a single number stands for the second."""
    tile = tl.zeros((BLOCK, HEAD_PAD), tl.float32)
    rest = tl.zeros((1, 1), tl.float32)
    if REST:
        rest = tl.zeros((BLOCK, REST), tl.float32)
    return tile, rest


@triton.jit
def store_tile(pointer, tile, rest, row, rows_left, head, heads, HEAD_DIM: tl.constexpr, REST: tl.constexpr):
    """Store both parts, ``rows_left`` rows at most, at ``row``, ``head`` of a contiguous (rows, heads, HEAD_DIM)."""
    rows = tl.arange(0, tile.shape[0])[:, None]
    columns = tl.arange(0, tile.shape[1])[None, :]
    first = pointer + (row.to(tl.int64) * heads + head) * HEAD_DIM
    # A head's rows are heads * HEAD_DIM apart: 128 of them stay far below 2^31.
    offsets = rows * (heads * HEAD_DIM) + columns
    mask = (rows < rows_left) & (columns < HEAD_DIM)
    tl.store(first + offsets, tile.to(pointer.dtype.element_ty), mask=mask)
    if REST:
        columns = tile.shape[1] + tl.arange(0, REST)[None, :]
        offsets = rows * (heads * HEAD_DIM) + columns
        mask = (rows < rows_left) & (columns < HEAD_DIM)
        tl.store(first + offsets, rest.to(pointer.dtype.element_ty), mask=mask)
