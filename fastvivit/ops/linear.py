"""linear as a registered operator, for the layers of the encoder: float32 on a CPU by ``ops/_product.py``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as nnf

from fastvivit._operator import define, differentiable, only_once_differentiable
from fastvivit.ops._product import product


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``, as ``torch.nn.functional.linear``.

    float32 on a CPU goes to oneDNN where PyTorch has it; everything else, and autocast, is PyTorch's own.

    Args:
        x: (..., K).
        weight: (D, K).
        bias: (D,) or None.

    Returns:
        (..., D).
    """
    if x.dtype != torch.float32 or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return nnf.linear(x, weight, bias)
    if x.dim() == 2:
        return LINEAR(x, weight, bias)
    return LINEAR(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], weight.shape[0])


def _backward(grad: Tensor, x: Tensor | None, weight: Tensor, needs: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    needs_x, needs_weight, needs_bias = needs
    # Outputs of an op may not share memory, not even none.
    return (
        product(grad, weight.t()) if needs_x else grad.new_empty(0),
        product(grad.t(), x.t()) if needs_weight else grad.new_empty(0),
        grad.sum(0) if needs_bias else grad.new_empty(0),
    )


def _fake_backward(grad, x, weight, needs):
    shapes = ((grad.shape[0], weight.shape[1]), weight.shape, weight.shape[:1])
    return tuple(grad.new_empty(shape if need else (0,)) for shape, need in zip(shapes, needs, strict=True))


def _flops(x, weight, bias, *_args, **_kwargs) -> int:
    return 2 * x[0] * x[1] * weight[0]


LINEAR = define(
    "linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    product,
    lambda x, weight, bias: x.new_empty(x.shape[0], weight.shape[0]),
    _flops,
)
BACKWARD = define(
    "linear_backward(Tensor grad, Tensor? x, Tensor weight, bool[] needs) -> (Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
    lambda grad, x, weight, needs, *_args, **_kwargs: (
        2 * grad[0] * weight[0] * weight[1] * (bool(needs[0]) + bool(needs[1]))
    ),
)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.needs = [t is not None and t.requires_grad for t in (x, weight, bias)]
        # The rows are for the gradient of the weight alone: many, and not wanted where it is frozen.
        ctx.save_for_backward(x if ctx.needs[1] else None, weight)
        return LINEAR.below_autograd(x, weight, bias)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grads = BACKWARD(grad, x, weight, ctx.needs)
        return tuple(g if need else None for g, need in zip(grads, ctx.needs, strict=True))


differentiable(LINEAR, _Linear)
only_once_differentiable(BACKWARD)
