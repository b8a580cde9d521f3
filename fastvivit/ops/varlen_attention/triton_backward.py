"""Triton kernels of the backward of varlen_attention.

Two kernels, each owning the rows that it writes, so that nothing is added atomically and repeats are bitwise equal:
of the queries, and of the keys. Or, faster and not repeatable, that of the keys alone, adding to the queries' gradient
atomically (triton_atomic.py holds what it needs around it).
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
def row_deltas(
    outputs, out_rest, grads, grad_rest, grad_lse, lse, stride_lm, inside,
    REST: tl.constexpr, HAS_GRAD_LSE: tl.constexpr,
):  # fmt: skip
    """Return ``rowsum(grads * outputs) - grad_lse`` of a tile; ``lse`` holds its rows, ``grad_lse`` points at them."""
    sums = tl.sum(outputs.to(tl.float32) * grads.to(tl.float32), 1)
    if REST:
        sums += tl.sum(out_rest.to(tl.float32) * grad_rest.to(tl.float32), 1)
    if HAS_GRAD_LSE:
        row = tl.arange(0, outputs.shape[0]).to(tl.int64)
        sums -= tl.load(grad_lse + row * stride_lm, mask=inside, other=0.0).to(tl.float32)
        # lse is constant where a row sees nothing, and what flows back there (often NaN) must not meet P = 0.
        sums = tl.where(lse == float("-inf"), 0.0, sums)
    return sums


@triton.jit
def _add_rows(first, part, rest, rows_left, step, HEAD_DIM: tl.constexpr, REST: tl.constexpr):
    """Add both parts of a tile atomically at ``first``, rows ``step`` apart, up to ``rows_left`` rows."""
    rows = tl.arange(0, part.shape[0])[:, None]
    columns = tl.arange(0, part.shape[1])[None, :]
    mask = (rows < rows_left) & (columns < HEAD_DIM)
    tl.atomic_add(first + rows * step + columns, part, mask=mask, sem="relaxed")
    if REST:
        columns = part.shape[1] + tl.arange(0, REST)[None, :]
        mask = (rows < rows_left) & (columns < HEAD_DIM)
        tl.atomic_add(first + rows * step + columns, rest, mask=mask, sem="relaxed")


@triton.jit
def _grads_of_keys(
    grad_k, grad_k_rest, grad_v, grad_v_rest, k, k_rest, v, v_rest, q_first, grad_first, lse_first, delta_first,
    sum_first, q_offsets, q_rests, grad_offsets, grad_rests, sum_step, queries_left, first_seeing, scale_log2,
    HEAD_DIM: tl.constexpr, REST: tl.constexpr, CAUSAL: tl.constexpr, ADD_TO_QUERIES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Add what one block of queries gives to ``grad_k`` (unscaled) and ``grad_v`` of a block of keys.

    ADD_TO_QUERIES also adds, atomically, what the keys give to the queries' gradient (unscaled) at ``sum_first``.

    Scores are held transposed, (keys, queries), so that P and dS enter the products straight from registers.
    ``first_seeing`` is the first query that sees each key, counted from this block's first; CAUSAL looks at it.

    A short last block needs no work per score, and so no loop of its own: a query past the end is loaded as zeros,
    then P = 1 meets grad_out = 0, and dS = 1 * (0 - 0).
    """
    local = tl.arange(0, q_offsets.shape[0])
    inside = local < queries_left
    q, q_rest = load_tile(q_first, q_offsets, q_rests, queries_left, HEAD_DIM, REST, True)
    lse = tl.load(lse_first + local, mask=inside, other=0.0)
    delta = tl.load(delta_first + local, mask=inside, other=0.0)
    scores = dot_columns(k, k_rest, q, q_rest, REST, PRECISION)
    weights = tl.exp2(scores * scale_log2 - lse[None, :])
    if CAUSAL:
        weights = tl.where(local[None, :] >= first_seeing[:, None], weights, 0.0)
    grad, grad_rest = load_tile(grad_first, grad_offsets, grad_rests, queries_left, HEAD_DIM, REST, True)
    grad_v, grad_v_rest = dot_rows(weights.to(grad.dtype), grad, grad_rest, grad_v, grad_v_rest, REST, PRECISION)
    grad_weights = dot_columns(v, v_rest, grad, grad_rest, REST, PRECISION)
    grad_scores = (weights * (grad_weights - delta[None, :])).to(q.dtype)
    grad_k, grad_k_rest = dot_rows(grad_scores, q, q_rest, grad_k, grad_k_rest, REST, PRECISION)
    if ADD_TO_QUERIES:
        if (q_offsets.shape[0] < 64) & (REST == 0):
            # wgmma takes 64 rows: then those are the columns of the head.
            part = tl.trans(tl.dot(tl.trans(k), grad_scores, input_precision=PRECISION))
            rest = part
        else:
            part, rest = zero_tile(q_offsets.shape[0], q_offsets.shape[1], REST)
            part, rest = dot_rows(tl.trans(grad_scores), k, k_rest, part, rest, REST, PRECISION)
        _add_rows(sum_first, part, rest, queries_left, sum_step, HEAD_DIM, REST)
    return grad_k, grad_k_rest, grad_v, grad_v_rest


@triton.jit(do_not_specialize=["rows_q", "rows_k", "sequences", "entries", "kv_heads", "kv_heads_at_once"])
def _varlen_attention_backward_dkdv_kernel(
    q, k, v, grad_out, lse_log2, delta, grad_k, grad_v, sum_q, table,
    stride_qm, stride_qh, stride_km, stride_kh, stride_vm, stride_vh, stride_gm, stride_gh,
    rows_q, rows_k, sequences, query_entries, entries, kv_heads, kv_heads_at_once, scale, scale_log2,
    HEAD_DIM: tl.constexpr, HEAD_PAD: tl.constexpr, REST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    GROUP: tl.constexpr, CAUSAL: tl.constexpr, ADD_TO_QUERIES: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Write ``grad_k`` and ``grad_v`` of one block of keys of one key head.

    The GROUP query heads that share the key head are summed here, in order. Arguments as in the forward;
    ``lse_log2`` is lse in base 2, ``grad_k`` and ``grad_v`` are contiguous, ``query_entries`` lie before the
    ``entries`` of this kernel.
    With ADD_TO_QUERIES ``sum_q``, (rows_q, heads, HEAD_DIM) float32 contiguous, takes the unscaled gradient of q,
    in whatever order programs come: 5 products in place of 7, but not bitwise repeatable.
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
    k_offsets, k_rests = tile_offsets(stride_km, BLOCK_N, HEAD_PAD, REST, WIDE)
    v_offsets, v_rests = tile_offsets(stride_vm, BLOCK_N, HEAD_PAD, REST, WIDE)
    k_first = k + row * stride_km + head64 * stride_kh
    v_first = v + row * stride_vm + head64 * stride_vh
    k_tile, k_rest = load_tile(k_first, k_offsets, k_rests, keys_left, HEAD_DIM, REST, True)
    v_tile, v_rest = load_tile(v_first, v_offsets, v_rests, keys_left, HEAD_DIM, REST, True)
    q_offsets, q_rests = tile_offsets(stride_qm, BLOCK_M, HEAD_PAD, REST, WIDE)
    g_offsets, g_rests = tile_offsets(stride_gm, BLOCK_M, HEAD_PAD, REST, WIDE)
    q_step = tl.cast(stride_qm, tl.int64)
    g_step = tl.cast(stride_gm, tl.int64)
    # A row of sum_q: 128 of them stay far below 2^31.
    s_step = kv_heads * (GROUP * HEAD_DIM)

    # Query i sees key j when i >= j - (keys - queries): blocks before `interior` see some of these keys, others all.
    first_seeing = first_key + tl.arange(0, BLOCK_N) - (keys - queries)
    start = 0
    interior = 0
    if CAUSAL:
        start = tl.maximum(first_key - (keys - queries), 0) // BLOCK_M * BLOCK_M
        all_see = tl.maximum(first_key + BLOCK_N - 1 - (keys - queries), 0)
        interior = (all_see + BLOCK_M - 1) // BLOCK_M * BLOCK_M

    sum_k, sum_k_rest = zero_tile(BLOCK_N, HEAD_PAD, REST)
    sum_v, sum_v_rest = zero_tile(BLOCK_N, HEAD_PAD, REST)
    for member in range(GROUP):
        head = head64 * GROUP + member
        q_first = q + q_start * q_step + head * stride_qh
        g_first = grad_out + q_start * g_step + head * stride_gh
        lse_first = lse_log2 + head * rows_q + q_start
        delta_first = delta + head * rows_q + q_start
        q_at = q_first + interior * q_step
        g_at = g_first + interior * g_step
        s_first = delta
        if ADD_TO_QUERIES:
            s_first = sum_q + tl.cast(q_start, tl.int64) * s_step + head * HEAD_DIM
        s_at = s_first + tl.cast(interior, tl.int64) * s_step
        for query in range(interior, queries, BLOCK_M):
            sum_k, sum_k_rest, sum_v, sum_v_rest = _grads_of_keys(
                sum_k, sum_k_rest, sum_v, sum_v_rest, k_tile, k_rest, v_tile, v_rest, q_at, g_at, lse_first + query,
                delta_first + query, s_at, q_offsets, q_rests, g_offsets, g_rests, s_step, queries - query,
                first_seeing - query, scale_log2, HEAD_DIM, REST, False, ADD_TO_QUERIES, PRECISION,
            )  # fmt: skip
            q_at += BLOCK_M * q_step
            g_at += BLOCK_M * g_step
            if ADD_TO_QUERIES:
                s_at += BLOCK_M * tl.cast(s_step, tl.int64)
        # After the long loop and not pipelined: else ptxas lets the wgmma of both loops wait for each other (C7515).
        if CAUSAL:
            for query in tl.range(start, tl.minimum(interior, queries), BLOCK_M, num_stages=1):
                sum_k, sum_k_rest, sum_v, sum_v_rest = _grads_of_keys(
                    sum_k, sum_k_rest, sum_v, sum_v_rest, k_tile, k_rest, v_tile, v_rest, q_first + query * q_step,
                    g_first + query * g_step, lse_first + query, delta_first + query,
                    s_first + tl.cast(query, tl.int64) * s_step, q_offsets, q_rests, g_offsets, g_rests, s_step,
                    queries - query, first_seeing - query, scale_log2, HEAD_DIM, REST, True, ADD_TO_QUERIES, PRECISION,
                )  # fmt: skip

    fill = tl.where(bad, float("nan"), 0.0)
    sum_k = sum_k * scale + fill
    sum_v = sum_v + fill
    if REST:
        sum_k_rest = sum_k_rest * scale + fill
        sum_v_rest = sum_v_rest + fill
    store_tile(grad_k, sum_k, sum_k_rest, row, keys_left, kv_head, kv_heads, HEAD_DIM, REST)
    store_tile(grad_v, sum_v, sum_v_rest, row, keys_left, kv_head, kv_heads, HEAD_DIM, REST)


@triton.jit
def _grad_of_queries(
    grad_q, grad_q_rest, q, q_rest, grad, grad_rest, lse, delta, k_first, v_first, k_offsets, k_rests, v_offsets,
    v_rests, keys_left, last_key, scale_log2,
    HEAD_DIM: tl.constexpr, REST: tl.constexpr, MASKED: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add what one block of keys gives to ``grad_q`` (unscaled) of a block of queries; ``lse`` is in base 2."""
    k, k_rest = load_tile(k_first, k_offsets, k_rests, keys_left, HEAD_DIM, REST, MASKED)
    scores = dot_columns(q, q_rest, k, k_rest, REST, PRECISION)
    weights = tl.exp2(scores * scale_log2 - lse[:, None])
    if MASKED:
        key = tl.arange(0, k_offsets.shape[0])[None, :]
        seen = key < keys_left
        if CAUSAL:
            seen = seen & (key <= last_key[:, None])
        weights = tl.where(seen, weights, 0.0)
    v, v_rest = load_tile(v_first, v_offsets, v_rests, keys_left, HEAD_DIM, REST, MASKED)
    if PRECISION == "ieee":
        # Products without matrix instructions: else both are scheduled as one, with the operands of both in registers.
        tl.debug_barrier()
    grad_weights = dot_columns(grad, grad_rest, v, v_rest, REST, PRECISION)
    grad_scores = weights * (grad_weights - delta[:, None])
    return dot_rows(grad_scores.to(k.dtype), k, k_rest, grad_q, grad_q_rest, REST, PRECISION)


@triton.jit(do_not_specialize=["rows_q", "rows_k", "sequences", "entries", "heads", "group", "heads_at_once"])
def _varlen_attention_backward_dq_kernel(
    q, k, v, out, grad_out, lse, grad_lse, lse_log2, delta, grad_q, table,
    stride_qm, stride_qh, stride_km, stride_kh, stride_vm, stride_vh, stride_gm, stride_gh, stride_lh, stride_lm,
    rows_q, rows_k, sequences, entries, heads, group, heads_at_once, scale, scale_log2,
    HEAD_DIM: tl.constexpr, HEAD_PAD: tl.constexpr, REST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr, HAS_GRAD_LSE: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write ``grad_q`` (contiguous), ``delta`` and ``lse_log2`` of one block of queries of one head.

    Arguments as in the forward; ``grad_lse`` is (heads, rows_q) of any strides, or None without HAS_GRAD_LSE. Every
    row of ``delta`` and of ``lse_log2`` (lse in base 2), (heads, rows_q) float32, is written by the program that
    holds its grad_out anyway, so the kernel of the keys, which needs them, comes after this one. Not in "ieee", which
    reads them.
    """
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
    q_offsets, q_rests = tile_offsets(stride_qm, BLOCK_M, HEAD_PAD, REST, WIDE)
    g_offsets, g_rests = tile_offsets(stride_gm, BLOCK_M, HEAD_PAD, REST, WIDE)
    q_first = q + row * stride_qm + head64 * stride_qh
    g_first = grad_out + row * stride_gm + head64 * stride_gh
    q_tile, q_rest = load_tile(q_first, q_offsets, q_rests, queries_left, HEAD_DIM, REST, True)
    g_tile, g_rest = load_tile(g_first, g_offsets, g_rests, queries_left, HEAD_DIM, REST, True)
    inside = local < queries_left
    place = head64 * rows_q + row + local
    if PRECISION == "ieee":
        # No registers to spare for the outputs: the kernel before this one wrote both.
        lse_tile = tl.load(lse_log2 + place, mask=inside, other=float("inf"))
        delta_tile = tl.load(delta + place, mask=inside, other=0.0)
    else:
        lse_tile = tl.load(lse + place, mask=inside, other=float("inf"))
        o_offsets, o_rests = tile_offsets(heads * HEAD_DIM, BLOCK_M, HEAD_PAD, REST, False)
        o_first = out + (row * heads + head) * HEAD_DIM
        o_tile, o_rest = load_tile(o_first, o_offsets, o_rests, queries_left, HEAD_DIM, REST, True)
        grad_lse_first = grad_lse
        if HAS_GRAD_LSE:
            grad_lse_first = grad_lse + head64 * stride_lh + row * stride_lm
        delta_tile = row_deltas(
            o_tile, o_rest, g_tile, g_rest, grad_lse_first, lse_tile, stride_lm, inside, REST, HAS_GRAD_LSE
        )
        lse_tile = lse_tile * LOG2_E
        tl.store(delta + place, delta_tile, mask=inside)
        tl.store(lse_log2 + place, lse_tile, mask=inside)

    k_offsets, k_rests = tile_offsets(stride_km, BLOCK_N, HEAD_PAD, REST, WIDE)
    v_offsets, v_rests = tile_offsets(stride_vm, BLOCK_N, HEAD_PAD, REST, WIDE)
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

    total, total_rest = zero_tile(BLOCK_M, HEAD_PAD, REST)
    for key in range(0, interior, BLOCK_N):
        total, total_rest = _grad_of_queries(
            total, total_rest, q_tile, q_rest, g_tile, g_rest, lse_tile, delta_tile, k_first, v_first, k_offsets,
            k_rests, v_offsets, v_rests, keys - key, last_key - key, scale_log2, HEAD_DIM, REST,
            False, CAUSAL, PRECISION,
        )  # fmt: skip
        k_first += BLOCK_N * k_step
        v_first += BLOCK_N * v_step
    for key in tl.range(interior, end, BLOCK_N, num_stages=1):
        total, total_rest = _grad_of_queries(
            total, total_rest, q_tile, q_rest, g_tile, g_rest, lse_tile, delta_tile, k_first, v_first, k_offsets,
            k_rests, v_offsets, v_rests, keys - key, last_key - key, scale_log2, HEAD_DIM, REST,
            True, CAUSAL, PRECISION,
        )  # fmt: skip
        k_first += BLOCK_N * k_step
        v_first += BLOCK_N * v_step

    fill = tl.where(bad, float("nan"), 0.0)
    total = total * scale + fill
    if REST:
        total_rest = total_rest * scale + fill
    store_tile(grad_q, total, total_rest, row, queries_left, head, heads, HEAD_DIM, REST)
