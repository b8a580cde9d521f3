"""What a layer does beside attention: its products, and an activation that transformers spells out in eight steps."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as nnf

from fastvivit.hf.patches import replace
from fastvivit.ops.linear import linear


def patch_layers(model: nn.Module) -> None:
    """Replace the forwards of plain ``nn.Linear`` and of ``FastGELUActivation`` ("gelu_fast") within ``model``."""
    for module in model.modules():
        if type(module) is nn.Linear:
            replace(module, linear_forward)
        elif type(module).__name__ == "FastGELUActivation":
            replace(module, gelu_forward)


def linear_forward(module: nn.Module, original: Callable, /, input: Tensor) -> Tensor:
    """(..., in) → (..., out): float32 on a CPU goes to oneDNN."""
    if type(module.weight) is not nn.Parameter:  # quantised or sharded: a tensor with products of its own
        return original(input)
    return linear(input, module.weight, module.bias)


def gelu_forward(module: nn.Module, original: Callable, /, input: Tensor) -> Tensor:
    """``0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))`` in one pass, which keeps x alone for the backward."""
    return nnf.gelu(input, approximate="tanh")
