"""varlen_attention as a registered operator: backends, fake, FLOPs, gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvivit import _probe
from fastvivit._backends import Backend, Op
from fastvivit._checks import check_cu_seqlens
from fastvivit._operator import define, differentiable, only_once_differentiable
from fastvivit.ops.varlen_attention.setting import Setting


def _refuses_triton(q: Tensor, max_seqlen_q, max_seqlen_k, return_lse: bool) -> str | None:
    if q.dtype == torch.float64:
        return "dtype float64, wanted float32 | float16 | bfloat16"
    if q.shape[2] % 8 or q.shape[2] > 256:
        return f"head dim {q.shape[2]}, wanted a multiple of 8 up to 256"
    return _probe.refuses_triton(q)


def _refuses_cpp(q: Tensor, max_seqlen_q, max_seqlen_k, return_lse: bool) -> str | None:
    return _probe.refuses_native(q, (torch.float32, torch.float16, torch.bfloat16))


def _refuses_outside(q: Tensor, max_seqlen_q, max_seqlen_k, *_args) -> str | None:
    from fastvivit.ops.varlen_attention import outside_kernels

    return outside_kernels.refuses(q, max_seqlen_q, max_seqlen_k)


def _refuses_sdpa(q: Tensor, max_seqlen_q, max_seqlen_k, return_lse: bool) -> str | None:
    if q.device.type == "cpu":
        return None
    if max_seqlen_q is None or max_seqlen_k is None:
        return f"max_seqlen_q or max_seqlen_k is None; reading lengths would stall {q.device}"
    return "returns no lse on " + q.device.type if return_lse else None


def _refuses_reference(q: Tensor, *_args) -> str | None:
    return None if q.device.type == "cpu" else f"reads cu_seqlens, which would stall {q.device}; ask for it by name"


OP = Op(
    "varlen_attention",
    (
        Backend(
            name="triton",
            module="fastvivit.ops.varlen_attention.backend_triton",
            absent=_probe.no_triton,
            refuses=_refuses_triton,
            auto=("cuda",),
        ),
        Backend(
            name="flash",
            module="fastvivit.ops.varlen_attention.backend_flash",
            absent=_probe.no_flash_attn,
            refuses=_refuses_outside,
            auto=("cuda",),
        ),
        Backend(
            name="torch",
            module="fastvivit.ops.varlen_attention.backend_torch",
            absent=_probe.no_cuda,
            refuses=_refuses_outside,
            auto=("cuda",),
        ),
        Backend(
            name="cpp",
            module="fastvivit.ops.varlen_attention.backend_cpp",
            absent=_probe.no_native,
            refuses=_refuses_cpp,
            auto=("cpu",),
        ),
        Backend(name="sdpa", module="fastvivit.ops.varlen_attention.backend_sdpa", refuses=_refuses_sdpa),
        Backend(name="reference", module="fastvivit.ops.varlen_attention.reference", auto=("cpu",)),
    ),
)


def _check_values(cu_seqlens_q, cu_seqlens_k, max_q, max_k, rows_q: int, rows_k: int) -> None:
    """On a CPU, where looking costs nothing: lengths and their bounds must be right."""
    sides = [("q", cu_seqlens_q, max_q, rows_q)]
    if cu_seqlens_k is not cu_seqlens_q or rows_k < rows_q or max_k != max_q:
        sides.append(("k", cu_seqlens_k, max_k, rows_k))
    for name, cu, longest, rows in sides:
        found = check_cu_seqlens(f"cu_seqlens_{name}", cu, rows)
        if longest is not None and found > longest:
            raise ValueError(f"max_seqlen_{name}: wanted at least {found}, got {longest}")


def _forward(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_q, max_k, scale, causal, return_lse, schedule, precision,
    deterministic, backend,
):  # fmt: skip
    implementation = OP.choose(backend, q.device.type, q, max_q, max_k, return_lse)
    if q.device.type == "cpu":
        _check_values(cu_seqlens_q, cu_seqlens_k, max_q, max_k, q.shape[0], k.shape[0])
    return implementation.forward(
        q, k, v, Setting(cu_seqlens_q, cu_seqlens_k, max_q, max_k, scale, causal, deterministic, schedule, precision)
    )


def _backward(
    grad_out, grad_lse, q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, max_q, max_k, scale, causal, schedule,
    precision, deterministic, backend,
):  # fmt: skip
    implementation = OP.choose(backend, q.device.type, q, max_q, max_k, grad_lse is not None)
    if q.device.type == "cpu":
        _check_values(cu_seqlens_q, cu_seqlens_k, max_q, max_k, q.shape[0], k.shape[0])
    for name, tensor, shape, dtype in (
        ("grad_out", grad_out, q.shape, q.dtype),
        ("out", out, q.shape, q.dtype),
        ("lse", lse, (q.shape[1], q.shape[0]), torch.float32),
        ("grad_lse", grad_lse, (q.shape[1], q.shape[0]), torch.float32),
    ):
        if tensor is not None and (tensor.shape != shape or tensor.dtype != dtype):
            raise ValueError(f"{name}: wanted shape {tuple(shape)}, {dtype}, got {tuple(tensor.shape)}, {tensor.dtype}")
    setting = Setting(cu_seqlens_q, cu_seqlens_k, max_q, max_k, scale, causal, deterministic, schedule, precision)
    return implementation.backward(grad_out, grad_lse, q, k, v, out, lse, setting)


def _fake(q, *_args, **_kwargs):
    return torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(
        q.shape[1], q.shape[0], dtype=torch.float32
    )


def _fake_backward(grad_out, grad_lse, q, k, v, *_args):
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q, k, v))


def _flops(q, k, v, cu_seqlens_q, cu_seqlens_k, *_args, out_val=None, **_kwargs) -> int:
    """``4 · d · H · Σ Lq·Lk`` (2 products); from shapes alone the sum is taken as that of equal lengths."""
    (rows_q, heads, width), rows_k = q, k[0]
    return 4 * width * heads * rows_q * rows_k // max(cu_seqlens_q[0] - 1, 1)


_TAIL = (
    "Tensor cu_seqlens_q, Tensor cu_seqlens_k, SymInt? max_seqlen_q, SymInt? max_seqlen_k, "
    "float softmax_scale, bool causal, {}Tensor? schedule, str precision, bool deterministic, str backend)"
)
ATTENTION = define(
    f"varlen_attention(Tensor q, Tensor k, Tensor v, {_TAIL.format('bool return_lse, ')} -> (Tensor, Tensor)",
    _forward,
    _fake,
    _flops,
)
BACKWARD = define(
    "varlen_attention_backward(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, Tensor out, "
    f"Tensor lse, {_TAIL.format('')} -> (Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
    lambda grad_out, grad_lse, q, k, v, out, lse, *lengths, **_kwargs: 5 * _flops(q, k, v, *lengths) // 2,
)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, cu_seqlens_q, cu_seqlens_k, max_q, max_k, scale, causal, return_lse, schedule, *rest):
        ctx.set_materialize_grads(False)
        ctx.settings = (max_q, max_k, scale, causal, rest)
        out, lse = ATTENTION.below_autograd(
            q,
            k,
            v,
            cu_seqlens_q,
            cu_seqlens_k,
            max_q,
            max_k,
            scale,
            causal,
            return_lse,
            schedule,
            *rest,
        )
        ctx.save_for_backward(q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, schedule)
        if not return_lse:
            ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    def backward(ctx, grad_out, grad_lse):
        q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, schedule = ctx.saved_tensors
        max_q, max_k, scale, causal, rest = ctx.settings
        grad_out = torch.zeros_like(out) if grad_out is None else grad_out
        grads = BACKWARD(
            grad_out,
            grad_lse,
            q,
            k,
            v,
            out,
            lse,
            cu_seqlens_q,
            cu_seqlens_k,
            max_q,
            max_k,
            scale,
            causal,
            schedule,
            *rest,
        )
        return (*grads, *(None for _ in range(11)))


differentiable(ATTENTION, _Attention)
only_once_differentiable(BACKWARD)
