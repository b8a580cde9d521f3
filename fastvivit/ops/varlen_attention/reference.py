"""The definition of varlen_attention, in plain PyTorch: softmax(scale · q kᵀ) v, sequence by sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvivit._operator import recording_gradients
from fastvivit.ops.varlen_attention.setting import Setting


def _sequence(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    """One sequence: q (Lq, H, d), k, v (Lk, H, d) → out (Lq, H, d), lse (H, Lq)."""
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    if causal:
        # Bottom-right aligned: the last query sees every key.
        lq, lk = scores.shape[1:]
        seen = torch.arange(lk, device=q.device) <= torch.arange(lq, device=q.device).unsqueeze(1) + (lk - lq)
        scores = scores.masked_fill(~seen, float("-inf"))
    lse = scores.logsumexp(-1) if k.shape[0] else scores.new_full(scores.shape[:2], float("-inf"))
    # A row with nothing to attend to has lse -inf; 0 in its place keeps exp(-inf - lse) at 0, and its
    # gradient too.
    weights = torch.exp(scores - lse.masked_fill(lse.isneginf(), 0.0).unsqueeze(-1))
    return torch.einsum("hqk,khd->qhd", weights, v), lse


def _attend(q: Tensor, k: Tensor, v: Tensor, cu_q: list, cu_k: list, scale: float, causal: bool):
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    outs, lses = [], []
    for q0, q1, k0, k1 in zip(cu_q[:-1], cu_q[1:], cu_k[:-1], cu_k[1:], strict=True):
        out, lse = _sequence(q[q0:q1], k[k0:k1], v[k0:k1], scale, causal)
        outs.append(out)
        lses.append(lse)
    slack = q.shape[0] - cu_q[-1]
    outs.append(q.new_zeros(slack, *q.shape[1:]))
    lses.append(q.new_full((q.shape[1], slack), float("-inf")))
    return torch.cat(outs), torch.cat(lses, 1)


def forward(q: Tensor, k: Tensor, v: Tensor, setting: Setting) -> tuple[Tensor, Tensor]:
    """Out (Mq, H, d) in the dtype of q and lse (H, Mq) float32; half types are computed in float32."""
    wide = torch.promote_types(q.dtype, torch.float32)
    cu_q, cu_k = setting.cu_seqlens_q.tolist(), setting.cu_seqlens_k.tolist()
    out, lse = _attend(q.to(wide), k.to(wide), v.to(wide), cu_q, cu_k, setting.softmax_scale, setting.causal)
    return out.to(q.dtype), lse.float()


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
    """Gradients of q, k, v, by autograd of the definition."""
    wide = torch.promote_types(q.dtype, torch.float32)
    inputs = [t.detach().to(wide).requires_grad_() for t in (q, k, v)]
    with recording_gradients():
        out, lse = _attend(
            *inputs, setting.cu_seqlens_q.tolist(), setting.cu_seqlens_k.tolist(), setting.softmax_scale, setting.causal
        )
    grad_lse = torch.zeros_like(lse) if grad_lse is None else grad_lse.to(wide)
    # lse is -inf where there is nothing to attend to; whatever gradient arrives there belongs to nobody.
    grad_lse = grad_lse.masked_fill(lse.isneginf(), 0.0)
    grads = torch.autograd.grad((out, lse), inputs, (grad_out.to(wide), grad_lse), materialize_grads=True)
    return tuple(g.to(q.dtype) for g in grads)
