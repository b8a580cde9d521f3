"""The feed-forward layer of a block."""

from __future__ import annotations

from torch import Tensor, nn

from fastvivit.modules.linear import Linear
from fastvivit.modules.recompute import through


class QuickGELU(nn.Module):
    """``x · sigmoid(1.702 x)``: OpenAI CLIP's activation."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return x * (1.702 * x).sigmoid()


ACTIVATIONS = {
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "quick_gelu": QuickGELU,
}


class Mlp(nn.Module):
    """Linear, activation, linear."""

    def __init__(self, width: int, ff: int, act: str = "gelu") -> None:
        super().__init__()
        self.fc1 = Linear(width, ff)
        self.act = ACTIVATIONS[act]()
        self.fc2 = Linear(ff, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier, as ViT's own code has it: right at any width."""
        for linear in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, *, norm: nn.Module | None = None, selective: bool = False) -> Tensor:
        """(M, D) → (M, D).

        ``norm`` comes first; with ``selective`` what it and the activation give is computed again in the backward.
        """
        if selective:
            hidden = self.fc1(x) if norm is None else through(self.fc1, norm, x)
            return through(self.fc2, self.act, hidden)
        return self.fc2(self.act(self.fc1(x if norm is None else norm(x))))
