"""varlen_attention by an installed flash-attn 2, 3 or 4, through its public function.

The public function is what the three have in common; its gradient is asked of its own autograd, so the backward runs
the forward again.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from fastvivit import _probe
from fastvivit._backends import BackendError
from fastvivit._operator import recording_gradients
from fastvivit.ops.varlen_attention.outside_kernels import Packed, add_gradient_of_lse, positive_scale
from fastvivit.ops.varlen_attention.setting import Setting


def forward(q: Tensor, k: Tensor, v: Tensor, setting: Setting) -> tuple[Tensor, Tensor]:
    """Out (Mq, H, d) and lse (H, Mq) float32."""
    packed = Packed(q, k, setting)
    if packed.empty:
        return packed.rows_q(None, q), packed.lse(None, q)
    q, scale, _ = positive_scale(q, setting.softmax_scale)
    out, lse = _attend(packed, q, k, v, scale, setting.causal, False)
    return packed.rows_q(out, q), packed.lse(lse, q)


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
    """Gradients of q, k, v; ``BackendError`` where this flash-attn can't repeat them bitwise and that is asked for."""
    packed = Packed(q, k, setting)
    if packed.empty:
        return packed.rows_q(None, q), packed.rows_k(None, k), packed.rows_k(None, v)
    if setting.deterministic and "deterministic" not in _arguments():
        raise BackendError("varlen_attention: backend 'flash' can't promise deterministic gradients; ask for others")
    q, scale, sign = positive_scale(q, setting.softmax_scale)

    def gradients(value: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        inputs = [t.detach().requires_grad_() for t in (q, k, value)]
        with recording_gradients():
            again, _ = _attend(packed, *inputs, scale, setting.causal, setting.deterministic)
        return torch.autograd.grad(again, inputs, grad.contiguous())

    grads = gradients(v, grad_out)
    if grad_lse is not None:
        grads = add_gradient_of_lse(
            grads,
            lambda value: _attend(packed, q, k, value, scale, setting.causal, setting.deterministic)[0],
            lambda grad: gradients(k, grad)[2],
            q,
            k,
            grad_lse,
            lse,
            scale,
        )
    grad_q, grad_k, grad_v = grads
    return packed.rows_q(grad_q * sign, q), packed.rows_k(grad_k, k), packed.rows_k(grad_v, v)


def _attend(packed: Packed, q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, deterministic: bool) -> tuple:
    """Out (Mq, H, d) and lse (H, Mq): the first two of what every version returns when asked for lse."""
    wanted = {"deterministic": deterministic, "return_attn_probs": True, "return_lse": True}
    options = {name: value for name, value in wanted.items() if name in _arguments()}
    return _function()(
        q, k, v, cu_seqlens_q=packed.cu_q, cu_seqlens_k=packed.cu_k, max_seqlen_q=packed.max_q,
        max_seqlen_k=packed.max_k, softmax_scale=scale, causal=causal, **options,
    )[:2]  # fmt: skip


@cache
def _function() -> Callable:
    return _probe.flash_attn()


@cache
def _arguments() -> frozenset[str]:
    return frozenset(inspect.signature(_function()).parameters)
