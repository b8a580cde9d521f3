"""varlen_attention by the packed flash kernels inside PyTorch, those of torch.nn.attention.varlen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fastvivit.ops.varlen_attention.outside_kernels import Packed, add_gradient_of_lse, positive_scale
from fastvivit.ops.varlen_attention.setting import Setting


def forward(q: Tensor, k: Tensor, v: Tensor, setting: Setting) -> tuple[Tensor, Tensor]:
    """Out (Mq, H, d) and lse (H, Mq) float32."""
    packed = Packed(q, k, setting)
    if packed.empty:
        return packed.rows_q(None, q), packed.lse(None, q)
    q, scale, _ = positive_scale(q, setting.softmax_scale)
    out, lse, _ = _attend(packed, *(_unit_stride(t) for t in (q, k, v)), scale, setting.causal)
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
    """Gradients of q, k, v."""
    packed = Packed(q, k, setting)
    if packed.empty:
        return packed.rows_q(None, q), packed.rows_k(None, k), packed.rows_k(None, v)
    q, scale, sign = positive_scale(q, setting.softmax_scale)
    q, k, v, grad_out = (_unit_stride(t) for t in (q, k, v, grad_out))
    # +inf makes exp(score - lse) 0 whatever the score, and NaN rows are not the kernel's to read.
    stats = torch.where(lse.isfinite(), lse, float("inf"))
    with _deterministic(setting.deterministic):
        grads = _gradients(packed, grad_out, q, k, v, out, stats, scale, setting.causal)
        if grad_lse is not None:
            keys_as_values, _, _ = _attend(packed, q, k, k, scale, setting.causal)
            grads = add_gradient_of_lse(
                grads,
                lambda _: keys_as_values,
                lambda grad: _gradients(packed, grad, q, k, k, keys_as_values, stats, scale, setting.causal)[2],
                q,
                k,
                grad_lse,
                lse,
                scale,
            )
    grad_q, grad_k, grad_v = grads
    return packed.rows_q(grad_q * sign, q), packed.rows_k(grad_k, k), packed.rows_k(grad_v, v)


def _attend(packed: Packed, q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> tuple:
    """Out, lse and the state of a generator that nobody uses."""
    return torch.ops.aten._flash_attention_forward(
        q, k, v, packed.cu_q, packed.cu_k, packed.max_q, packed.max_k, 0.0, causal, False, scale=scale
    )[:3]


def _gradients(packed: Packed, grad_out, q, k, v, out, lse, scale: float, causal: bool) -> tuple:
    state = torch.zeros(2, dtype=torch.uint64, device=q.device)
    return torch.ops.aten._flash_attention_backward(
        grad_out, q, k, v, out, lse, packed.cu_q, packed.cu_k, packed.max_q, packed.max_k, 0.0, causal, state,
        torch.empty(0, device=q.device), scale=scale,
    )  # fmt: skip


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """PyTorch's kernel asks this switch, and nothing else, whether to add in a fixed order."""
    before, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    if before or not wanted:
        yield
        return
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


def _unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
