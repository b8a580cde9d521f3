"""scatter_tokens as a registered operator: backends, fake, gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvivit import _probe
from fastvivit._backends import Backend, Op
from fastvivit._checks import FLOATING, flat_ids
from fastvivit._operator import define, differentiable, only_once_differentiable

OP = Op(
    "scatter_tokens",
    (
        Backend(
            name="triton",
            module="fastvivit.ops.scatter_tokens.backend_triton",
            absent=_probe.no_triton,
            refuses=_probe.refuses_triton,
            auto=("cuda",),
        ),
        # Behind triton until both have been measured on a device: what they take there decides the order.
        Backend(
            name="cuda",
            module="fastvivit.ops.scatter_tokens.backend_cuda",
            absent=_probe.no_native_cuda,
            refuses=_probe.refuses_cuda,
            auto=("cuda",),
        ),
        Backend(
            name="cpp",
            module="fastvivit.ops.scatter_tokens.backend_cpp",
            absent=_probe.no_native,
            refuses=lambda x: _probe.refuses_native(x, FLOATING),
            auto=("cpu",),
        ),
        Backend(name="reference", module="fastvivit.ops.scatter_tokens.reference"),
    ),
)


def _batch(index: Tensor) -> int:
    return index.shape[0] if index.dim() == 2 else 1


def _forward(x: Tensor, index: Tensor, size: int, fill: Tensor | None, backend: str) -> Tensor:
    implementation = OP.choose(backend, x.device.type, x)
    ids = flat_ids("index", index, _batch(index), size, distinct=True)
    rows = implementation.forward(x if x.dim() == 2 else x.flatten(0, 1), ids, _batch(index) * size, fill)
    return rows if index.dim() == 1 else rows.view(index.shape[0], size, x.shape[-1])


def _backward(grad: Tensor, index: Tensor, needs_fill: bool, backend: str) -> tuple[Tensor, Tensor]:
    implementation = OP.choose(backend, grad.device.type, grad)
    ids = flat_ids("index", index, _batch(index), grad.shape[-2], distinct=True)
    grad_x, grad_fill = implementation.backward(grad if grad.dim() == 2 else grad.flatten(0, 1), ids, needs_fill)
    return grad_x.view(*index.shape, grad.shape[-1]), grad_fill if needs_fill else grad.new_empty(0)


SCATTER = define(
    "scatter_tokens(Tensor x, Tensor index, SymInt size, Tensor? fill, str backend) -> Tensor",
    _forward,
    lambda x, index, size, fill, backend: x.new_empty(*index.shape[:-1], size, x.shape[-1]),
)
BACKWARD = define(
    "scatter_tokens_backward(Tensor grad, Tensor index, bool needs_fill, str backend) -> (Tensor, Tensor)",
    _backward,
    lambda grad, index, needs_fill, backend: (
        grad.new_empty(*index.shape, grad.shape[-1]),
        grad.new_empty(grad.shape[-1] if needs_fill else 0),
    ),
)


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, index, size, fill, backend):
        ctx.save_for_backward(index)
        ctx.needs_fill, ctx.backend = fill is not None and fill.requires_grad, backend
        return SCATTER.below_autograd(x, index, size, fill, backend)

    @staticmethod
    def backward(ctx, grad):
        (index,) = ctx.saved_tensors
        grad_x, grad_fill = BACKWARD(grad, index, ctx.needs_fill, ctx.backend)
        return grad_x, None, None, grad_fill if ctx.needs_fill else None, None


differentiable(SCATTER, _Scatter)
only_once_differentiable(BACKWARD)
