"""gather_tokens as a registered operator: backends, fake, gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvivit import _probe
from fastvivit._backends import Backend, Op
from fastvivit._checks import FLOATING, flat_ids
from fastvivit._operator import define, differentiable, only_once_differentiable
from fastvivit.ops.scatter_tokens.op import OP as SCATTER

OP = Op(
    "gather_tokens",
    (
        Backend(
            name="triton",
            module="fastvivit.ops.gather_tokens.backend_triton",
            absent=_probe.no_triton,
            refuses=_probe.refuses_triton,
            auto=("cuda",),
        ),
        # Behind triton until both have been measured on a device: what they take there decides the order.
        Backend(
            name="cuda",
            module="fastvivit.ops.gather_tokens.backend_cuda",
            absent=_probe.no_native_cuda,
            refuses=_probe.refuses_cuda,
            auto=("cuda",),
        ),
        Backend(
            name="cpp",
            module="fastvivit.ops.gather_tokens.backend_cpp",
            absent=_probe.no_native,
            refuses=lambda x: _probe.refuses_native(x, FLOATING),
            auto=("cpu",),
        ),
        Backend(name="reference", module="fastvivit.ops.gather_tokens.reference"),
    ),
)


def _batch(index: Tensor) -> int:
    return index.shape[0] if index.dim() == 2 else 1


def _forward(x: Tensor, index: Tensor, distinct: bool, backend: str) -> Tensor:
    implementation = OP.choose(backend, x.device.type, x)
    ids = flat_ids("index", index, _batch(index), x.shape[-2], distinct=distinct)
    rows = implementation.forward(x if x.dim() == 2 else x.flatten(0, 1), ids)
    return rows if index.dim() == 1 else rows.view(*index.shape, x.shape[-1])


def _backward(grad: Tensor, index: Tensor, size: int, distinct: bool, backend: str) -> Tensor:
    batch, width = _batch(index), grad.shape[-1]
    ids = flat_ids("index", index, batch, size, distinct=distinct)
    rows = grad if grad.dim() == 2 else grad.flatten(0, 1)
    if distinct:
        # The gradient of taking rows once is putting them back: no sort, each row written once.
        grad_x = SCATTER.choose(backend, grad.device.type, grad).forward(rows, ids, batch * size, None)
    else:
        grad_x = OP.choose(backend, grad.device.type, grad).backward(rows, ids, batch * size)
    return grad_x if index.dim() == 1 else grad_x.view(batch, size, width)


GATHER = define(
    "gather_tokens(Tensor x, Tensor index, bool distinct, str backend) -> Tensor",
    _forward,
    lambda x, index, distinct, backend: x.new_empty(*index.shape, x.shape[-1]),
)
BACKWARD = define(
    "gather_tokens_backward(Tensor grad, Tensor index, SymInt size, bool distinct, str backend) -> Tensor",
    _backward,
    lambda grad, index, size, distinct, backend: grad.new_empty(*index.shape[:-1], size, grad.shape[-1]),
)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, index, distinct, backend):
        ctx.save_for_backward(index)
        ctx.settings = x.shape[-2], distinct, backend
        return GATHER.below_autograd(x, index, distinct, backend)

    @staticmethod
    def backward(ctx, grad):
        (index,) = ctx.saved_tensors
        return BACKWARD(grad, index, *ctx.settings), None, None, None


differentiable(GATHER, _Gather)
only_once_differentiable(BACKWARD)
