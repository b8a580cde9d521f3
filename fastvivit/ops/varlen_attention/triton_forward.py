"""Triton kernel of the forward of varlen_attention."""

from __future__ import annotations

import triton
import triton.language as tl

from fastvivit.ops.varlen_attention.triton_tiles import (
    FIELDS,
    GRANULE,
    HEADER,
    LN_2,
    dot_columns,
    dot_rows,
    load_tile,
    program_entry,
    read_entry,
    store_tile,
    table_is_bad,
    tile_offsets,
    zero_tile,
)


@triton.jit
def _attend(
    acc, acc_rest, total, pivot, q, q_rest, k_first, v_first, k_offsets, k_rests, v_offsets, v_rests,
    keys_left, last_key, scale_log2,
    HEAD_DIM: tl.constexpr, REST: tl.constexpr, MASKED: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Take one block of keys into the running softmax of a block of queries.

    ``pivot`` and ``total`` are the running maximum, in base 2 with the scale, and sum; ``last_key`` is the last key
    that each query sees, counted from this block's first. Only a MASKED block looks at ``keys_left``, ``last_key``.
    """
    k, k_rest = load_tile(k_first, k_offsets, k_rests, keys_left, HEAD_DIM, REST, MASKED)
    scores = dot_columns(q, q_rest, k, k_rest, REST, PRECISION)
    if MASKED:
        key = tl.arange(0, k_offsets.shape[0])[None, :]
        seen = key < keys_left
        if CAUSAL:
            seen = seen & (key <= last_key[:, None])
        highest = tl.max(tl.where(seen, scores, float("-inf")), 1)
        # A row that sees nothing keeps -inf: times a scale of 0 that would be NaN, and so would -inf - -inf below.
        highest = tl.where(highest == float("-inf"), highest, highest * scale_log2)
        new_pivot = tl.maximum(pivot, highest)
        guarded = tl.where(new_pivot == float("-inf"), 0.0, new_pivot)
        weights = tl.where(seen, tl.exp2(scores * scale_log2 - guarded[:, None]), 0.0)
        decay = tl.exp2(pivot - guarded)
    else:
        new_pivot = tl.maximum(pivot, tl.max(scores, 1) * scale_log2)
        weights = tl.exp2(scores * scale_log2 - new_pivot[:, None])
        decay = tl.exp2(pivot - new_pivot)
    total = total * decay + tl.sum(weights, 1)
    acc = acc * decay[:, None]
    if REST:
        acc_rest = acc_rest * decay[:, None]
    v, v_rest = load_tile(v_first, v_offsets, v_rests, keys_left, HEAD_DIM, REST, MASKED)
    acc, acc_rest = dot_rows(weights.to(v.dtype), v, v_rest, acc, acc_rest, REST, PRECISION)
    return acc, acc_rest, total, new_pivot


@triton.jit(do_not_specialize=["rows_q", "rows_k", "sequences", "entries", "heads", "group", "heads_at_once"])
def _varlen_attention_forward_kernel(
    q, k, v, out, lse, table, cu_seqlens_q, cu_seqlens_k,
    stride_qm, stride_qh, stride_km, stride_kh, stride_vm, stride_vh,
    rows_q, rows_k, sequences, entries, heads, group, heads_at_once, scale_log2,
    HEAD_DIM: tl.constexpr, HEAD_PAD: tl.constexpr, REST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr, NEGATE: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write ``out`` and ``lse`` of one block of queries of one head.

    Args:
        q: (rows_q, heads, HEAD_DIM), strides ``stride_qm``, ``stride_qh``, 1.
        k: (rows_k, heads / group, HEAD_DIM), likewise.
        v: as k.
        out: (rows_q, heads, HEAD_DIM) contiguous.
        lse: (heads, rows_q) float32 contiguous, natural logarithm.
        table: of ``varlen_schedule``, with ``entries`` query entries.
        cu_seqlens_q: (sequences+1,) int32; compared with the table, so that one of another batch can't pass.
        cu_seqlens_k: likewise.
        scale_log2: absolute softmax scale times log2(e). NEGATE says that the scale was below 0: the running
            maximum is one of scores times the scale only where the scale does not turn their order.
        HEAD_PAD: columns of the first part of a tile, REST those of the second, if any.
        WIDE: whether a tile spans more than 2^31 elements.
    """
    entry, part, head = program_entry(entries, heads, heads_at_once, BLOCK_M)
    bad = table_is_bad(table, rows_q, rows_k, sequences)
    sequence, block, q_start, q_end, k_start, k_end = read_entry(table + HEADER + entry * FIELDS, entry, rows_q, bad)
    first_query = block * GRANULE + part * BLOCK_M
    queries = q_end - q_start
    if (sequence < 0) | (first_query >= queries):
        return
    if sequence < sequences:
        bad = bad | (tl.load(cu_seqlens_q + sequence) != q_start) | (tl.load(cu_seqlens_k + sequence) != k_start)
        bad = bad | (tl.load(cu_seqlens_q + sequence + 1) != q_end) | (tl.load(cu_seqlens_k + sequence + 1) != k_end)
    fill = tl.where(bad, float("nan"), 0.0)
    keys = tl.where(bad, 0, k_end - k_start)
    queries_left = queries - first_query

    kv_head = (head // group).to(tl.int64)
    row = (q_start + first_query).to(tl.int64)
    q_offsets, q_rests = tile_offsets(stride_qm, BLOCK_M, HEAD_PAD, REST, WIDE)
    k_offsets, k_rests = tile_offsets(stride_km, BLOCK_N, HEAD_PAD, REST, WIDE)
    v_offsets, v_rests = tile_offsets(stride_vm, BLOCK_N, HEAD_PAD, REST, WIDE)
    k_step = tl.cast(stride_km, tl.int64)
    v_step = tl.cast(stride_vm, tl.int64)
    k_first = k + k_start * k_step + kv_head * stride_kh
    v_first = v + k_start * v_step + kv_head * stride_vh
    q_first = q + row * stride_qm + head.to(tl.int64) * stride_qh
    q_tile, q_rest = load_tile(q_first, q_offsets, q_rests, queries_left, HEAD_DIM, REST, True)
    if NEGATE:
        q_tile = -q_tile
        q_rest = -q_rest

    local = tl.arange(0, BLOCK_M)
    # Aligned bottom-right: the last query sees the last key.
    last_key = first_query + local + (keys - queries)
    end = keys
    if CAUSAL:
        end = tl.maximum(tl.minimum(keys, first_query + BLOCK_M + (keys - queries)), 0)
        interior = tl.minimum(tl.maximum(first_query + (keys - queries) + 1, 0), keys) // BLOCK_N * BLOCK_N
    else:
        interior = keys // BLOCK_N * BLOCK_N

    acc, acc_rest = zero_tile(BLOCK_M, HEAD_PAD, REST)
    total = tl.zeros((BLOCK_M,), tl.float32)
    pivot = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    for key in range(0, interior, BLOCK_N):
        acc, acc_rest, total, pivot = _attend(
            acc, acc_rest, total, pivot, q_tile, q_rest, k_first, v_first, k_offsets, k_rests, v_offsets, v_rests,
            keys - key, last_key - key, scale_log2, HEAD_DIM, REST, False, CAUSAL, PRECISION,
        )  # fmt: skip
        k_first += BLOCK_N * k_step
        v_first += BLOCK_N * v_step
    # One block or two: not pipelined, else ptxas lets every wgmma of the kernel wait for the one before (C7515).
    for key in tl.range(interior, end, BLOCK_N, num_stages=1):
        acc, acc_rest, total, pivot = _attend(
            acc, acc_rest, total, pivot, q_tile, q_rest, k_first, v_first, k_offsets, k_rests, v_offsets, v_rests,
            keys - key, last_key - key, scale_log2, HEAD_DIM, REST, True, CAUSAL, PRECISION,
        )  # fmt: skip
        k_first += BLOCK_N * k_step
        v_first += BLOCK_N * v_step

    nothing = total == 0.0
    normaliser = (1.0 / tl.where(nothing, 1.0, total))[:, None]
    acc = acc * normaliser + fill
    if REST:
        acc_rest = acc_rest * normaliser + fill
    store_tile(out, acc, acc_rest, row, queries_left, head, heads, HEAD_DIM, REST)
    logsumexp = tl.where(nothing, float("-inf"), (pivot + tl.log2(tl.where(nothing, 1.0, total))) * LN_2) + fill
    tl.store(lse + head.to(tl.int64) * rows_q + row + local, logsumexp, mask=local < queries_left)
