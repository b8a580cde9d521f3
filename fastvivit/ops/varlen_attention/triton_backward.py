"""Triton kernels of the backward of varlen_attention.

Two kernels, each owning the rows that it writes, so that nothing is added atomically and repeats are bitwise equal.
With ``P = exp(scale * q k^T - lse)`` and ``delta = rowsum(grad_out * out) - grad_lse``::

    dS = P * (grad_out v^T - delta)     grad_v = P^T grad_out     grad_k = scale * dS^T q     grad_q = scale * dS k
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastvivit.ops.varlen_attention.triton_tiles import (
    FIELDS,
    GRANULE,
    HEADER,
    LOG2_E,
    load_tile,
    program_entry,
    read_entry,
    store_tile,
    table_is_bad,
    tile_offsets,
)


@triton.jit(do_not_specialize=["rows_q", "heads"])
def _varlen_attention_backward_delta_kernel(
    out, grad_out, lse, grad_lse, delta,
    stride_gm, stride_gh, stride_lh, stride_lm, rows_q, heads,
    HEAD_DIM: tl.constexpr, HEAD_PAD: tl.constexpr, BLOCK_M: tl.constexpr, HAS_GRAD_LSE: tl.constexpr,
):  # fmt: skip
    """Write ``delta = rowsum(grad_out * out) - grad_lse`` of BLOCK_M rows of one head.

    Args:
        out: (rows_q, heads, HEAD_DIM) contiguous.
        grad_out: the same shape, strides ``stride_gm``, ``stride_gh``, 1.
        lse: (heads, rows_q) float32 contiguous.
        grad_lse: (heads, rows_q), strides ``stride_lh``, ``stride_lm``; only with HAS_GRAD_LSE.
        delta: (heads, rows_q) float32 contiguous.
    """
    head = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.arange(0, HEAD_PAD)
    inside = row < rows_q
    mask = inside[:, None] & (column < HEAD_DIM)[None, :]
    outputs = tl.load(out + ((row * heads + head) * HEAD_DIM)[:, None] + column[None, :], mask=mask, other=0.0)
    grads = tl.load(grad_out + (row * stride_gm + head * stride_gh)[:, None] + column[None, :], mask=mask, other=0.0)
    sums = tl.sum(outputs.to(tl.float32) * grads.to(tl.float32), 1)
    if HAS_GRAD_LSE:
        sums -= tl.load(grad_lse + head * stride_lh + row * stride_lm, mask=inside, other=0.0).to(tl.float32)
        # lse is constant where a row sees nothing, and what flows back there (often NaN) must not meet P = 0.
        sums = tl.where(tl.load(lse + head * rows_q + row, mask=inside, other=0.0) == float("-inf"), 0.0, sums)
    tl.store(delta + head * rows_q + row, sums, mask=inside)


@triton.jit
def _grads_of_keys(
    grad_k, grad_v, k, v, q_first, grad_first, lse_first, delta_first, q_offsets, grad_offsets,
    queries_left, first_seeing, scale_log2,
    HEAD_DIM: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add what one block of queries gives to ``grad_k`` (unscaled) and ``grad_v`` of a block of keys.

    Scores are held transposed, (keys, queries), so that P and dS enter the products straight from registers.
    ``first_seeing`` is the first query that sees each key, counted from this block's first; CAUSAL looks at it.

    A short last block needs no work per score, and so no loop of its own: a query past the end is loaded as zeros,
    then P = 1 meets grad_out = 0, and dS = 1 * (0 - 0).
    """
    local = tl.arange(0, q_offsets.shape[0])
    inside = local < queries_left
    q = load_tile(q_first, q_offsets, queries_left, HEAD_DIM, True)
    lse = tl.load(lse_first + local, mask=inside, other=0.0)
    delta = tl.load(delta_first + local, mask=inside, other=0.0)
    scores = tl.dot(k, tl.trans(q), input_precision=PRECISION)
    weights = tl.exp2(scores * scale_log2 - (lse * LOG2_E)[None, :])
    if CAUSAL:
        weights = tl.where(local[None, :] >= first_seeing[:, None], weights, 0.0)
    grad_out = load_tile(grad_first, grad_offsets, queries_left, HEAD_DIM, True)
    grad_v = tl.dot(weights.to(grad_out.dtype), grad_out, grad_v, input_precision=PRECISION)
    grad_weights = tl.dot(v, tl.trans(grad_out), input_precision=PRECISION)
    grad_scores = weights * (grad_weights - delta[None, :])
    grad_k = tl.dot(grad_scores.to(q.dtype), q, grad_k, input_precision=PRECISION)
    return grad_k, grad_v


@triton.jit(do_not_specialize=["rows_q", "rows_k", "sequences", "entries", "kv_heads", "kv_heads_at_once"])
def _varlen_attention_backward_dkdv_kernel(
    q, k, v, grad_out, lse, delta, grad_k, grad_v, table,
    stride_qm, stride_qh, stride_km, stride_kh, stride_vm, stride_vh, stride_gm, stride_gh,
    rows_q, rows_k, sequences, query_entries, entries, kv_heads, kv_heads_at_once, scale, scale_log2,
    HEAD_DIM: tl.constexpr, HEAD_PAD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    GROUP: tl.constexpr, CAUSAL: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write ``grad_k`` and ``grad_v`` of one block of keys of one key head.

    The GROUP query heads that share the key head are summed here, in order. Arguments as in the forward;
    ``grad_k`` and ``grad_v`` are contiguous, ``query_entries`` lie before the ``entries`` of this kernel.
    """
    entry, part, kv_head = program_entry(entries, kv_heads, kv_heads_at_once, BLOCK_N)
    bad = table_is_bad(table, rows_q, rows_k, sequences)
    fields = table + HEADER + (query_entries + entry) * FIELDS
    sequence, block, k_start, k_end, q_start, q_end = read_entry(fields, entry, rows_k, bad)
    first_key = block * GRANULE + part * BLOCK_N
    keys = k_end - k_start
    if (sequence < 0) | (first_key >= keys):
        return
    queries = q_end - q_start
    keys_left = keys - first_key

    row = (k_start + first_key).to(tl.int64)
    head64 = kv_head.to(tl.int64)
    k_tile = load_tile(
        k + row * stride_km + head64 * stride_kh, tile_offsets(stride_km, BLOCK_N, HEAD_PAD, WIDE), keys_left,
        HEAD_DIM, True,
    )  # fmt: skip
    v_tile = load_tile(
        v + row * stride_vm + head64 * stride_vh, tile_offsets(stride_vm, BLOCK_N, HEAD_PAD, WIDE), keys_left,
        HEAD_DIM, True,
    )  # fmt: skip
    q_offsets = tile_offsets(stride_qm, BLOCK_M, HEAD_PAD, WIDE)
    g_offsets = tile_offsets(stride_gm, BLOCK_M, HEAD_PAD, WIDE)
    q_step = tl.cast(stride_qm, tl.int64)
    g_step = tl.cast(stride_gm, tl.int64)

    # Query i sees key j when i >= j - (keys - queries): blocks before `interior` see some of these keys, others all.
    first_seeing = first_key + tl.arange(0, BLOCK_N) - (keys - queries)
    start = 0
    interior = 0
    if CAUSAL:
        start = tl.maximum(first_key - (keys - queries), 0) // BLOCK_M * BLOCK_M
        all_see = tl.maximum(first_key + BLOCK_N - 1 - (keys - queries), 0)
        interior = (all_see + BLOCK_M - 1) // BLOCK_M * BLOCK_M

    sum_k = tl.zeros((BLOCK_N, HEAD_PAD), tl.float32)
    sum_v = tl.zeros((BLOCK_N, HEAD_PAD), tl.float32)
    for member in range(GROUP):
        head = head64 * GROUP + member
        q_first = q + q_start * q_step + head * stride_qh
        g_first = grad_out + q_start * g_step + head * stride_gh
        lse_first = lse + head * rows_q + q_start
        delta_first = delta + head * rows_q + q_start
        for query in range(interior, queries, BLOCK_M):
            sum_k, sum_v = _grads_of_keys(
                sum_k, sum_v, k_tile, v_tile, q_first + query * q_step, g_first + query * g_step,
                lse_first + query, delta_first + query, q_offsets, g_offsets, queries - query,
                first_seeing - query, scale_log2, HEAD_DIM, False, PRECISION,
            )  # fmt: skip
        # After the long loop and not pipelined: else ptxas lets the wgmma of both loops wait for each other (C7515).
        if CAUSAL:
            for query in tl.range(start, tl.minimum(interior, queries), BLOCK_M, num_stages=1):
                sum_k, sum_v = _grads_of_keys(
                    sum_k, sum_v, k_tile, v_tile, q_first + query * q_step, g_first + query * g_step,
                    lse_first + query, delta_first + query, q_offsets, g_offsets, queries - query,
                    first_seeing - query, scale_log2, HEAD_DIM, True, PRECISION,
                )  # fmt: skip

    fill = tl.where(bad, float("nan"), 0.0)
    store_tile(grad_k, sum_k * scale + fill, row, keys_left, kv_head, kv_heads, HEAD_DIM)
    store_tile(grad_v, sum_v + fill, row, keys_left, kv_head, kv_heads, HEAD_DIM)


@triton.jit
def _grad_of_queries(
    grad_q, q, grad_out, lse, delta, k_first, v_first, k_offsets, v_offsets, keys_left, last_key, scale_log2,
    HEAD_DIM: tl.constexpr, MASKED: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add what one block of keys gives to ``grad_q`` (unscaled) of a block of queries; ``lse`` is in base 2."""
    k = load_tile(k_first, k_offsets, keys_left, HEAD_DIM, MASKED)
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    weights = tl.exp2(scores * scale_log2 - lse[:, None])
    if MASKED:
        key = tl.arange(0, k_offsets.shape[0])[None, :]
        seen = key < keys_left
        if CAUSAL:
            seen = seen & (key <= last_key[:, None])
        weights = tl.where(seen, weights, 0.0)
    v = load_tile(v_first, v_offsets, keys_left, HEAD_DIM, MASKED)
    if PRECISION == "ieee":
        # Products without matrix instructions: else both are scheduled as one, with the operands of both in registers.
        tl.debug_barrier()
    grad_weights = tl.dot(grad_out, tl.trans(v), input_precision=PRECISION)
    grad_scores = weights * (grad_weights - delta[:, None])
    return tl.dot(grad_scores.to(k.dtype), k, grad_q, input_precision=PRECISION)


@triton.jit(do_not_specialize=["rows_q", "rows_k", "sequences", "entries", "heads", "group", "heads_at_once"])
def _varlen_attention_backward_dq_kernel(
    q, k, v, grad_out, lse, delta, grad_q, table,
    stride_qm, stride_qh, stride_km, stride_kh, stride_vm, stride_vh, stride_gm, stride_gh,
    rows_q, rows_k, sequences, entries, heads, group, heads_at_once, scale, scale_log2,
    HEAD_DIM: tl.constexpr, HEAD_PAD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write ``grad_q`` (contiguous) of one block of queries of one head; arguments as in the forward."""
    entry, part, head = program_entry(entries, heads, heads_at_once, BLOCK_M)
    bad = table_is_bad(table, rows_q, rows_k, sequences)
    sequence, block, q_start, q_end, k_start, k_end = read_entry(table + HEADER + entry * FIELDS, entry, rows_q, bad)
    first_query = block * GRANULE + part * BLOCK_M
    queries = q_end - q_start
    if (sequence < 0) | (first_query >= queries):
        return
    keys = k_end - k_start
    queries_left = queries - first_query

    head64 = head.to(tl.int64)
    kv_head = (head // group).to(tl.int64)
    row = (q_start + first_query).to(tl.int64)
    local = tl.arange(0, BLOCK_M)
    q_offsets = tile_offsets(stride_qm, BLOCK_M, HEAD_PAD, WIDE)
    g_offsets = tile_offsets(stride_gm, BLOCK_M, HEAD_PAD, WIDE)
    q_tile = load_tile(q + row * stride_qm + head64 * stride_qh, q_offsets, queries_left, HEAD_DIM, True)
    g_tile = load_tile(grad_out + row * stride_gm + head64 * stride_gh, g_offsets, queries_left, HEAD_DIM, True)
    lse_tile = tl.load(lse + head64 * rows_q + row + local, mask=local < queries_left, other=float("inf")) * LOG2_E
    delta_tile = tl.load(delta + head64 * rows_q + row + local, mask=local < queries_left, other=0.0)

    k_offsets = tile_offsets(stride_km, BLOCK_N, HEAD_PAD, WIDE)
    v_offsets = tile_offsets(stride_vm, BLOCK_N, HEAD_PAD, WIDE)
    k_step = tl.cast(stride_km, tl.int64)
    v_step = tl.cast(stride_vm, tl.int64)
    k_first = k + k_start * k_step + kv_head * stride_kh
    v_first = v + k_start * v_step + kv_head * stride_vh
    last_key = first_query + local + (keys - queries)
    end = keys
    if CAUSAL:
        end = tl.maximum(tl.minimum(keys, first_query + BLOCK_M + (keys - queries)), 0)
        interior = tl.minimum(tl.maximum(first_query + (keys - queries) + 1, 0), keys) // BLOCK_N * BLOCK_N
    else:
        interior = keys // BLOCK_N * BLOCK_N

    total = tl.zeros((BLOCK_M, HEAD_PAD), tl.float32)
    for key in range(0, interior, BLOCK_N):
        total = _grad_of_queries(
            total, q_tile, g_tile, lse_tile, delta_tile, k_first + key * k_step, v_first + key * v_step,
            k_offsets, v_offsets, keys - key, last_key - key, scale_log2, HEAD_DIM, False, CAUSAL, PRECISION,
        )  # fmt: skip
    for key in tl.range(interior, end, BLOCK_N, num_stages=1):
        total = _grad_of_queries(
            total, q_tile, g_tile, lse_tile, delta_tile, k_first + key * k_step, v_first + key * v_step,
            k_offsets, v_offsets, keys - key, last_key - key, scale_log2, HEAD_DIM, True, CAUSAL, PRECISION,
        )  # fmt: skip

    fill = tl.where(bad, float("nan"), 0.0)
    store_tile(grad_q, total * scale + fill, row, queries_left, head, heads, HEAD_DIM)
