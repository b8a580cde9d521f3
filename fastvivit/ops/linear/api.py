"""The function of linear."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as nnf

from fastvivit.ops.linear.op import LINEAR


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
