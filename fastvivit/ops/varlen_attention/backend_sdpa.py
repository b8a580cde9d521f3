"""varlen_attention by PyTorch's scaled_dot_product_attention.

On a CPU, where lengths can be read for nothing, neighbours of equal length go into one batched call on views:
equal clips cost one call and no copy, and there is no padding. Elsewhere sequences are padded to the given
maxima and masked.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as nnf

from fastvivit._operator import recording_gradients
from fastvivit.ops.varlen_attention.setting import Setting

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def forward(q: Tensor, k: Tensor, v: Tensor, setting: Setting) -> tuple[Tensor, Tensor]:
    """Out (Mq, H, d) and lse (H, Mq) float32 (NaN where a device's SDPA returns none)."""
    if q.device.type != "cpu":
        out = _padded(q, k, v, *setting[:6])
        return out, q.new_full((q.shape[1], q.shape[0]), float("nan"), dtype=torch.float32)
    k, v = _per_query_head(k, q), _per_query_head(v, q)
    rows, heads, _ = q.shape
    out = lse = None
    for run in _runs(setting.cu_seqlens_q, setting.cu_seqlens_k, setting.causal):
        o, s = _flash(*run.views(q, k, v), 0.0, run.square, attn_mask=run.mask(q), scale=setting.softmax_scale)
        if run.covers(rows):
            return o.transpose(1, 2).reshape(q.shape), s.float().transpose(0, 1).reshape(heads, rows).contiguous()
        if out is None:
            out = q.new_zeros(q.shape)
            lse = q.new_full((heads, rows), float("-inf"), dtype=torch.float32)
        run.queries(out).copy_(o.transpose(1, 2))
        run.queries(lse.T).copy_(s.transpose(1, 2))
    if out is None:
        return q.new_zeros(q.shape), q.new_full((heads, rows), float("-inf"), dtype=torch.float32)
    return out, lse


def backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    setting: Setting,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v."""
    if q.device.type != "cpu":
        inputs = [t.detach().requires_grad_() for t in (q, k, v)]
        with recording_gradients():
            again = _padded(*inputs, *setting[:6])
        return torch.autograd.grad(again, inputs, grad_out)
    kv_heads = k.shape[1]
    k, v = _per_query_head(k, q), _per_query_head(v, q)
    grads = None
    for run in _runs(setting.cu_seqlens_q, setting.cu_seqlens_k, setting.causal):
        found = _backward_of_run(run, grad_out, grad_lse, q, k, v, out, lse, setting.softmax_scale)
        if run.covers(q.shape[0]) and run.count * run.len_k == k.shape[0]:
            grads = [g.transpose(1, 2).reshape(t.shape) for g, t in zip(found, (q, k, v), strict=True)]
            break
        if grads is None:
            grads = [t.new_zeros(t.shape) for t in (q, k, v)]
        for rows, grad, part in zip((run.queries, run.keys, run.keys), grads, found, strict=True):
            rows(grad).copy_(part.transpose(1, 2))
    grad_q, grad_k, grad_v = grads or [t.new_zeros(t.shape) for t in (q, k, v)]
    return grad_q, _sum_groups(grad_k, kv_heads), _sum_groups(grad_v, kv_heads)


def _backward_of_run(run: _Run, grad_out, grad_lse, q, k, v, out, lse, scale: float) -> list[Tensor]:
    """Gradients of one run's queries, keys and values, each (count, H, L, d)."""
    views, mask = run.views(q, k, v), run.mask(q)
    do, o = (run.queries(t).transpose(1, 2) for t in (grad_out, out))
    stats = run.queries(lse.T).transpose(1, 2).contiguous().to(torch.promote_types(q.dtype, torch.float32))
    dq, dk, dv = _flash_backward(do, *views, o, stats, 0.0, run.square, attn_mask=mask, scale=scale)
    if grad_lse is not None:
        dq_lse, dk_lse = _through_lse(run, grad_lse, views, stats, mask, scale)
        dq, dk = dq + dq_lse, dk + dk_lse
    return [dq, dk, dv]


def _through_lse(run: _Run, grad_lse: Tensor, views, stats: Tensor, mask, scale: float) -> tuple[Tensor, Tensor]:
    """What a gradient of lse adds to those of q and k: ``scale · g · P k`` and ``scale · Pᵀ (g · q)``.

    Both are products with the attention weights P that the fused kernels already make: P k is attention with
    k as its values, and Pᵀ x is the gradient of the values when x arrives as the gradient of the output.
    """
    q, k, _ = views
    weight = run.queries(grad_lse.T).transpose(1, 2).unsqueeze(-1).to(q.dtype) * scale
    pk, _ = _flash(q, k, k, 0.0, run.square, attn_mask=mask, scale=scale)
    arriving = weight * q
    *_, dk = _flash_backward(arriving, q, k, k, pk, stats, 0.0, run.square, attn_mask=mask, scale=scale)
    return weight * pk, dk


class _Run:
    """``count`` neighbouring sequences of equal lengths: where their rows are, and who sees whom.

    Causal rows that see nothing (the first Lq - Lk, bottom-right aligned) are left out: they stay 0. With
    more keys than queries the diagonal is shifted, which takes a mask; equal lengths take the kernel's own.
    """

    __slots__ = ("causal", "count", "first_k", "first_q", "len_k", "len_q", "skip", "square")

    def __init__(self, first_q: int, first_k: int, count: int, len_q: int, len_k: int, causal: bool) -> None:
        self.first_q, self.first_k, self.count, self.len_q, self.len_k = first_q, first_k, count, len_q, len_k
        self.causal = causal
        self.skip = max(len_q - len_k, 0) if causal else 0
        self.square = causal and len_q >= len_k

    def covers(self, rows: int) -> bool:
        return self.skip == 0 and self.count * self.len_q == rows

    def queries(self, t: Tensor) -> Tensor:
        """View of (M, ...) as (count, Lq - skip, ...)."""
        rows = _cut(t, self.first_q, self.count, self.len_q)
        return rows[:, self.skip :] if self.skip else rows

    def keys(self, t: Tensor) -> Tensor:
        """View of (M, ...) as (count, Lk, ...)."""
        return _cut(t, self.first_k, self.count, self.len_k)

    def views(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(count, H, L, d) each."""
        return self.queries(q).transpose(1, 2), self.keys(k).transpose(1, 2), self.keys(v).transpose(1, 2)

    def mask(self, q: Tensor) -> Tensor | None:
        if not self.causal or self.square:
            return None
        return q.new_full((self.len_q, self.len_k), float("-inf")).triu_(self.len_k - self.len_q + 1)


def _cut(t: Tensor, first: int, count: int, length: int) -> Tensor:
    """View of (M, ...) from row ``first`` as (count, length, ...)."""
    rows = count * length
    t = t if rows == t.shape[0] else t[first : first + rows]
    return t.view(count, length, *t.shape[1:])


def _runs(cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, causal: bool) -> Iterator[_Run]:
    """Runs of neighbours with equal lengths, those with something to compute."""
    same = cu_seqlens_k is cu_seqlens_q
    if cu_seqlens_q.shape[0] > 16:
        # Many sequences are mostly equal ones: frames, places. Then no list of them is needed.
        steps = [int(v) for cu in (cu_seqlens_q, cu_seqlens_k)[: 2 - same] for v in cu.diff().aminmax()] * (1 + same)
        if steps[0] == steps[1] and steps[2] == steps[3]:
            if steps[0] and steps[2]:
                yield _Run(0, 0, cu_seqlens_q.shape[0] - 1, steps[0], steps[2], causal)
            return
    cu_q = cu_seqlens_q.tolist()
    cu_k = cu_q if same else cu_seqlens_k.tolist()
    start, total = 0, len(cu_q) - 1
    while start < total:
        len_q, len_k = cu_q[start + 1] - cu_q[start], cu_k[start + 1] - cu_k[start]
        stop = start + 1
        while stop < total and cu_q[stop + 1] - cu_q[stop] == len_q and cu_k[stop + 1] - cu_k[stop] == len_k:
            stop += 1
        if len_q and len_k:
            yield _Run(cu_q[start], cu_k[start], stop - start, len_q, len_k, causal)
        start = stop


def _per_query_head(x: Tensor, q: Tensor) -> Tensor:
    return x if x.shape[1] == q.shape[1] else x.repeat_interleave(q.shape[1] // x.shape[1], 1)


def _sum_groups(grad: Tensor, heads: int) -> Tensor:
    if grad.shape[1] == heads:
        return grad
    wide = torch.promote_types(grad.dtype, torch.float32)
    return grad.unflatten(1, (heads, -1)).sum(2, dtype=wide).to(grad.dtype)


def _slots(cu_seqlens: Tensor, longest: int, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Row of each padded slot (S, longest), whether it is real, and the length of each sequence (S,)."""
    start, length = cu_seqlens[:-1].long(), cu_seqlens.diff()
    place = torch.arange(longest, device=cu_seqlens.device)
    real = place < length.unsqueeze(1)
    return (start.unsqueeze(1) + place).clamp(0, max(rows - 1, 0)), real, length


def _padded(q, k, v, cu_seqlens_q, cu_seqlens_k, max_q: int, max_k: int, scale: float, causal: bool) -> Tensor:
    """Padded, masked SDPA that never waits for the device: (Mq, H, d). Too small a maximum gives NaN."""
    rows, sequences = q.shape[0], cu_seqlens_q.shape[0] - 1
    if rows == 0 or sequences == 0 or max_q == 0 or max_k == 0:
        return q * 0.0
    slot_q, _, len_q = _slots(cu_seqlens_q, max_q, rows)
    slot_k, real_k, len_k = _slots(cu_seqlens_k, max_k, k.shape[0])
    # Memory past a sequence may hold NaN, and 0 · NaN is NaN: rows that are not real are replaced, not only
    # masked.
    k, v = (torch.where(real_k[..., None, None], t[slot_k], 0.0).transpose(1, 2) for t in (k, v))
    seen = real_k[:, None, None, :]
    if causal:
        place_q, place_k = (torch.arange(n, device=q.device) for n in (max_q, max_k))
        shift = (len_k - len_q).view(-1, 1, 1, 1)
        seen = seen & (place_k <= place_q.unsqueeze(1) + shift)
    some = seen.any(-1, keepdim=True)
    grouped = q.shape[1] != k.shape[1]
    out = nnf.scaled_dot_product_attention(
        torch.nan_to_num(q)[slot_q].transpose(1, 2),
        k,
        v,
        attn_mask=seen | ~some,
        scale=scale,
        enable_gqa=grouped,
    )
    out = torch.where(some, out, 0.0).transpose(1, 2)
    row = torch.arange(rows, device=q.device, dtype=cu_seqlens_q.dtype)
    owner = (torch.searchsorted(cu_seqlens_q, row, right=True) - 1).clamp(0, sequences - 1)
    place = row - cu_seqlens_q[owner]
    short = (len_q[owner] > max_q) | (len_k[owner] > max_k)
    found = out[owner, place.clamp(0, max_q - 1)].masked_fill(short[:, None, None], float("nan"))
    return torch.where((row < cu_seqlens_q[-1])[:, None, None], found, 0.0)
