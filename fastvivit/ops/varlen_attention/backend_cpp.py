"""varlen_attention by the compiled CPU kernels (csrc/attention_cpu.cpp, csrc/attention_backward_cpu.cpp).

Blocks of queries against blocks of keys, sequence by sequence and head by head, on as many threads as PyTorch has: no
padding, no copy of a view, no score in memory. Multiplied and added up in float32 whatever the dtype.
"""

from __future__ import annotations

from ctypes import byref

import torch
from torch import Tensor

from fastvivit import _native
from fastvivit.ops.varlen_attention.setting import Setting

_DTYPE = {torch.float32: 0, torch.float16: 2, torch.bfloat16: 3}


def _arguments(q: Tensor, k: Tensor, v: Tensor, setting: Setting) -> tuple[_native.Attention, tuple[Tensor, ...]]:
    """The struct, and the tensors it points into, which must outlive it."""
    q, k, v = (t if t.stride(2) == 1 else t.contiguous() for t in (q, k, v))
    cu_q, cu_k = setting.cu_seqlens_q.contiguous(), setting.cu_seqlens_k.contiguous()
    heads, width = q.shape[1:]
    made = _native.Attention(
        _DTYPE[q.dtype], q.data_ptr(), k.data_ptr(), v.data_ptr(), q.stride()[:2], k.stride()[:2], v.stride()[:2],
        cu_q.data_ptr(), cu_k.data_ptr(), cu_q.shape[0] - 1, q.shape[0], k.shape[0], heads, k.shape[1], width,
        setting.causal, setting.softmax_scale,
    )  # fmt: skip
    return made, (q, k, v, cu_q, cu_k)


def forward(q: Tensor, k: Tensor, v: Tensor, setting: Setting) -> tuple[Tensor, Tensor]:
    """Out (Mq, H, d) and lse (H, Mq) float32."""
    arguments, _alive = _arguments(q, k, v, setting)
    out = torch.empty(q.shape, dtype=q.dtype)
    lse = torch.empty(q.shape[1], q.shape[0])
    _native.load().fv_attention_forward(byref(arguments), out.data_ptr(), lse.data_ptr())
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
    arguments, _alive = _arguments(q, k, v, setting)
    grad_out, out, lse = grad_out.contiguous(), out.contiguous(), lse.contiguous()
    grad_lse = None if grad_lse is None else grad_lse.contiguous()
    grads = tuple(torch.empty(t.shape, dtype=t.dtype) for t in (q, k, v))
    _native.load().fv_attention_backward(
        byref(arguments), out.data_ptr(), lse.data_ptr(), grad_out.data_ptr(),
        None if grad_lse is None else grad_lse.data_ptr(), *(g.data_ptr() for g in grads),
    )  # fmt: skip
    return grads
