"""The public function of linear_cross_entropy."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastvivit._autocast import autocast_dtype
from fastvivit._checks import require_ids, require_tensor
from fastvivit.ops.linear_cross_entropy.op import LINEAR_CROSS_ENTROPY

_REDUCTIONS = ("mean", "sum", "none")


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    scale: float = 1.0,
    softcap: float = 0.0,
    chunk: int | None = None,
) -> Tensor:
    """Cross-entropy of a language model's head, whose logits are never held whole.

    ``cross_entropy(cap(scale · (x @ weight.T + bias)), target)``. A chunk of rows at a time becomes logits, losses and,
    where a gradient is wanted, the gradient of ``x`` and of a weight and bias that need one (after Liger Kernel, Hsu et
    al. 2024, section 3.2). The backward only multiplies: nothing is computed twice, but for the gradients of weight and
    bias with ``reduction="none"``, whose rows differ: those run the chunks again. Softmax, loss and the sums over
    chunks of the gradients of weight and bias are float32 (float64 for float64), products as the dtype says; under
    autocast inputs are cast as those of ``torch.nn.functional.linear`` are.

    Args:
        x: (..., D), float32, float16, bfloat16 or float64.
        weight: (V, D) in the dtype of ``x``. A frozen one costs no memory.
        target: (...) int64, in ``0..V-1`` or ``ignore_index``.
        bias: (V,) in the dtype of ``x``.
        ignore_index: rows with this target count for nothing; on a CPU they are left out of the products as well.
        reduction: "mean" over the counted rows, "sum" or "none".
        scale: multiplies the logits (Cohere's ``logit_scale``, one over Granite's ``logits_scaling``).
        softcap: then ``cap(l) = softcap · tanh(l / softcap)`` (Gemma 2, section 2); 0 is none.
        chunk: rows at a time; None chooses: logits of 24 MiB in float32 on a CPU, 256 MiB elsewhere.

    Returns:
        0-d loss, or (...) with "none", float32 (float64 for float64). As PyTorch's: ignored rows have loss 0 and
        gradient 0; the mean over no counted row is NaN, with gradient 0.

    Raises:
        ValueError: a wrong shape, dtype, device, reduction, scale, softcap or chunk, or (on a CPU) a target out of
            range. On a GPU a bad target makes its row's loss, its row of the gradient of ``x``, and the whole gradients
            of weight and bias NaN.
        RuntimeError: differentiated twice, or by ``torch.func``.
    """
    require_tensor("x", x, (x.dim(),) if isinstance(x, Tensor) and x.dim() else (1,))
    cast = autocast_dtype(x)
    require_tensor("weight", weight, (2,), like=x)
    if weight.shape[1] != x.shape[-1] or not weight.shape[0]:
        raise ValueError(f"weight: wanted (V, {x.shape[-1]}) with V at least 1, got {tuple(weight.shape)}")
    require_ids("target", target, (x.dim() - 1,), x)
    if target.shape != x.shape[:-1]:
        raise ValueError(f"target: wanted shape {tuple(x.shape[:-1])} like x, got {tuple(target.shape)}")
    if bias is not None:
        require_tensor("bias", bias, (1,), like=x)
        if bias.shape[0] != weight.shape[0]:
            raise ValueError(f"bias: wanted shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    if cast is not None:
        x, weight, bias = (_cast(t, cast) for t in (x, weight, bias))
    for name, t in (("weight", weight), ("bias", bias)):
        if t is not None:
            require_tensor(name, t, (t.dim(),), (x.dtype,))
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction: wanted one of {', '.join(map(repr, _REDUCTIONS))}, got {reduction!r}")
    if not -math.inf < scale < math.inf:
        raise ValueError(f"scale: wanted a finite number, got {scale}")
    if not 0 <= softcap < math.inf:
        raise ValueError(f"softcap: wanted 0 (none) or a positive number, got {softcap}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk: wanted at least 1 row, or None, got {chunk}")
    needs = [torch.is_grad_enabled() and t is not None and t.requires_grad for t in (x, weight, bias)]
    rows, ids = x.reshape(-1, x.shape[-1]), target.reshape(-1)
    rest = (ids, ignore_index, float(scale), float(softcap), chunk or 0, reduction, needs)
    loss = LINEAR_CROSS_ENTROPY(rows, weight, bias, *rest)[0]
    return loss.view(target.shape) if reduction == "none" else loss


def _cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return tensor if tensor is None or tensor.dtype == torch.float64 else tensor.to(dtype)
