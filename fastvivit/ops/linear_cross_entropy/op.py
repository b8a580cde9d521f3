"""linear_cross_entropy as a registered operator: fake, gradient. It has one implementation, in PyTorch's own ops."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvivit._operator import define, differentiable, only_once_differentiable
from fastvivit.ops.linear_cross_entropy.chunks import Head, Rows, checked_rows, run


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _counted(x: Tensor, rows: Rows) -> Tensor:
    return x if rows.kept is None else x[rows.kept]


def _placed(some: Tensor, rows: Rows, size: int) -> Tensor:
    """Values of the counted rows in their places, 0 elsewhere."""
    return some if rows.kept is None else some.new_zeros(size, *some.shape[1:]).index_copy_(0, rows.kept, some)


def _kernel(x, weight, bias, target, ignore_index, scale, softcap, chunk, reduction, needs):
    rows = checked_rows(target, weight.shape[0], ignore_index)
    # A sum of losses has the same gradient for every row, a loss of each row has not: see _backward.
    now = tuple(needs) if reduction != "none" else (needs[0], False, False)
    # The public function has cast what autocast asks for.
    with torch.autocast(x.device.type, enabled=False):
        losses, dx, dw, db = run(_counted(x, rows), Head(weight, bias, scale, softcap), rows, now, chunk)
    if reduction == "none":
        loss = _placed(losses, rows, x.shape[0])
    else:
        loss = losses.sum() if reduction == "sum" else losses.sum() / rows.count
    none = losses.new_empty(0)
    dx = x.new_empty(0) if dx is None else _placed(dx, rows, x.shape[0])
    return loss, rows.count, dx, none if dw is None else dw, none.clone() if db is None else db


def _fake(x, weight, bias, target, ignore_index, scale, softcap, chunk, reduction, needs):
    wide, summed = _wide(x), reduction != "none"
    return (
        x.new_empty(() if summed else target.shape, dtype=wide),
        target.new_empty(()),
        x.new_empty(x.shape if needs[0] else (0,)),
        x.new_empty(weight.shape if needs[1] and summed else (0,), dtype=wide),
        x.new_empty(weight.shape[:1] if needs[2] and summed else (0,), dtype=wide),
    )


def _backward(grad, count, dx, dw, db, x, weight, bias, target, ignore_index, scale, softcap, chunk, reduction, needs):
    by_row = shared = grad
    if reduction == "mean":
        # With no row counted the loss is NaN, its gradient 0, as PyTorch has it.
        by_row = shared = grad / count.clamp(min=1)
    elif reduction == "none":
        by_row, shared = grad.unsqueeze(1), 1.0
        if needs[1] or needs[2]:
            # Each row has a factor of its own, so its part of a sum over rows is made anew.
            rows = checked_rows(target, weight.shape[0], ignore_index)
            with torch.autocast(grad.device.type, enabled=False):
                head, now = Head(weight, bias, scale, softcap), (False, needs[1], needs[2])
                _, _, dw, db = run(_counted(x, rows), head, rows, now, chunk, _counted(grad, rows))
    none = grad.new_empty(0)
    # Multiplied before it is rounded: a 16-bit factor would cost digits, and float16 may not even hold it.
    gx = (dx.to(grad.dtype) * by_row).to(dx.dtype) if needs[0] else none
    gw = (dw * shared).to(weight.dtype) if needs[1] else none.clone()
    gb = (db * shared).to(bias.dtype) if needs[2] else none.clone()
    return gx, gw, gb


def _fake_backward(
    grad, count, dx, dw, db, x, weight, bias, target, ignore_index, scale, softcap, chunk, reduction, needs
):
    return (
        torch.empty_like(dx) if needs[0] else grad.new_empty(0),
        weight.new_empty(weight.shape) if needs[1] else grad.new_empty(0),
        bias.new_empty(bias.shape) if needs[2] else grad.new_empty(0),
    )


def _flops(x, weight, bias, target, ignore_index, scale, softcap, chunk, reduction, needs, *_args, **_kwargs) -> int:
    products = 1 + bool(needs[0]) + (bool(needs[1]) and reduction != "none")
    return 2 * x[0] * x[1] * weight[0] * products


def _backward_flops(grad, count, dx, dw, db, x, weight, *rest, **_kwargs) -> int:
    reduction, needs = rest[-2:]
    return 4 * x[0] * x[1] * weight[0] if reduction == "none" and needs[1] else 0


_ARGUMENTS = "Tensor target, int ignore_index, float scale, float softcap, SymInt chunk, str reduction, bool[] needs"
LINEAR_CROSS_ENTROPY = define(
    f"linear_cross_entropy(Tensor x, Tensor weight, Tensor? bias, {_ARGUMENTS})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _kernel,
    _fake,
    _flops,
)
BACKWARD = define(
    "linear_cross_entropy_backward(Tensor grad, Tensor count, Tensor dx, Tensor dw, Tensor db, Tensor? x, "
    f"Tensor? weight, Tensor? bias, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
    _backward_flops,
)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, target, *rest):
        outs = LINEAR_CROSS_ENTROPY.below_autograd(x, weight, bias, target, *rest)
        reduction, needs = rest[-2:]
        again = reduction == "none" and (needs[1] or needs[2])
        # What needs no gradient is not kept: under autocast it would be a copy of the weight.
        kept = [t if need or again else None for t, need in zip((x, weight, bias), needs, strict=True)]
        ctx.save_for_backward(*outs[1:], *kept, target)
        ctx.mark_non_differentiable(*outs[1:])
        # Zeros for outputs that nobody sees could be as large as the weight.
        ctx.set_materialize_grads(False)
        ctx.rest = rest
        return outs

    @staticmethod
    def backward(ctx, grad, *_others):
        nothing = (None,) * (1 + len(ctx.rest))
        if grad is None:
            return None, None, None, *nothing
        needs = ctx.rest[-1]
        grads = BACKWARD(grad, *ctx.saved_tensors, *ctx.rest)
        return *(g if need else None for g, need in zip(grads, needs, strict=True)), *nothing


differentiable(LINEAR_CROSS_ENTROPY, _LinearCrossEntropy)
only_once_differentiable(BACKWARD)
