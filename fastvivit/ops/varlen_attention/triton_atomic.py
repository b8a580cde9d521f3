"""Triton kernels before and after the products of the backward: row sums, and the cast of an atomic sum."""

from __future__ import annotations

import triton
import triton.language as tl

from fastvivit.ops.varlen_attention.triton_backward import row_deltas
from fastvivit.ops.varlen_attention.triton_tiles import LOG2_E, table_is_bad


@triton.jit(do_not_specialize=["rows_q", "heads"])
def _varlen_attention_backward_prepare_kernel(
    out, grad_out, lse, grad_lse, lse_log2, delta, sum_q,
    stride_gm, stride_gh, stride_lh, stride_lm, rows_q, heads,
    HEAD_DIM: tl.constexpr, HEAD_PAD: tl.constexpr, BLOCK_M: tl.constexpr, HAS_GRAD_LSE: tl.constexpr,
):  # fmt: skip
    """Write ``delta = rowsum(grad_out * out) - grad_lse``, lse in base 2, and zeros to ``sum_q``, if any.

    A program does BLOCK_M rows of one head; HEAD_PAD is a power of two from HEAD_DIM on.

    Args:
        out: (rows_q, heads, HEAD_DIM) contiguous.
        grad_out: the same shape, strides ``stride_gm``, ``stride_gh``, 1.
        lse: (heads, rows_q) float32 contiguous.
        grad_lse: (heads, rows_q), strides ``stride_lh``, ``stride_lm``; only with HAS_GRAD_LSE.
        lse_log2: (heads, rows_q) float32 contiguous.
        delta: (heads, rows_q) float32 contiguous.
        sum_q: (rows_q, heads, HEAD_DIM) float32 contiguous.
    """
    head = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0).to(tl.int64) * BLOCK_M
    row = first + tl.arange(0, BLOCK_M)
    column = tl.arange(0, HEAD_PAD)
    inside = row < rows_q
    mask = inside[:, None] & (column < HEAD_DIM)[None, :]
    places = ((row * heads + head) * HEAD_DIM)[:, None] + column[None, :]
    outputs = tl.load(out + places, mask=mask, other=0.0)
    grads = tl.load(grad_out + (row * stride_gm + head * stride_gh)[:, None] + column[None, :], mask=mask, other=0.0)
    stats = tl.load(lse + head * rows_q + row, mask=inside, other=0.0)
    grad_lse_first = grad_lse
    if HAS_GRAD_LSE:
        grad_lse_first = grad_lse + head * stride_lh + first * stride_lm
    sums = row_deltas(outputs, outputs, grads, grads, grad_lse_first, stats, stride_lm, inside, 0, HAS_GRAD_LSE)
    tl.store(delta + head * rows_q + row, sums, mask=inside)
    tl.store(lse_log2 + head * rows_q + row, stats * LOG2_E, mask=inside)
    if sum_q is not None:
        tl.store(sum_q + places, tl.zeros((BLOCK_M, HEAD_PAD), tl.float32), mask=mask)


@triton.jit(do_not_specialize=["rows_q", "rows_k", "sequences"])
def _varlen_attention_backward_finish_kernel(
    sum_q, grad_q, table, rows_q, rows_k, sequences, elements, scale, BLOCK: tl.constexpr
):
    """Write ``grad_q = scale * sum_q``, flat and contiguous; NaN where the table is bad."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < elements
    fill = tl.where(table_is_bad(table, rows_q, rows_k, sequences), float("nan"), 0.0)
    grad = tl.load(sum_q + place, mask=mask, other=0.0) * scale + fill
    tl.store(grad_q + place, grad.to(grad_q.dtype.element_ty), mask=mask)
