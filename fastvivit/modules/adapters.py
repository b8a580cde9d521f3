"""Small trainable modules in a frozen encoder: bottleneck adapters, and linear layers of low-rank updates."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from fastvivit.modules.linear import Linear
from fastvivit.ops.linear import linear


class Adapter(nn.Module):
    """``h + W_u ReLU(LN(W_d h + b_d)) + b_u``, a bottleneck adapter (paper, appendix A; Houlsby et al. 2019).

    Args:
        width: D.
        bottleneck: width inside.
        eps: of the LayerNorm.
        init: "houlsby", W_d from a normal of deviation 0.01 cut at twice that, the rest 0: the identity at first,
            and W_u learns at once. "paper", every weight and bias 0 as the paper has it: the identity for good,
            since the LayerNorm of zeros is 0 and with it every gradient but that of b_u.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self,
        width: int,
        bottleneck: int,
        *,
        eps: float,
        init: str = "houlsby",
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.down = Linear(width, bottleneck, device=device, dtype=dtype)
        self.norm = nn.LayerNorm(bottleneck, eps, device=device, dtype=dtype)
        self.up = Linear(bottleneck, width, device=device, dtype=dtype)
        self.reset_parameters(init)

    def reset_parameters(self, init: str = "houlsby") -> None:
        """The initial values; ``init`` is "houlsby" or "paper"."""
        for layer in (self.down, self.up):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.norm.reset_parameters()
        if init == "houlsby":
            nn.init.trunc_normal_(self.down.weight, std=0.01, a=-0.02, b=0.02)

    def forward(self, h: Tensor) -> Tensor:
        """(M, D) → (M, D)."""
        return h + self.up(nnf.relu(self.norm(self.down(h))))


class LoRALinear(Linear):
    """``W x + b + scale · B A x``: a linear layer that learns a matrix of low rank beside its own.

    LoRA (Hu et al. 2022, section 4.1; paper, equation 4). It takes over the parameters of the layer it replaces,
    under their names. A starts as LoRA's own code has it, uniform within ``1 / sqrt(in)``; B at 0, and so the layer
    as the one before it.

    Args:
        layer: the linear layer.
        rank: r.
        scale: what multiplies ``B A x``.
        parts: equal parts of the output with an A and a B each, 3 for separate queries, keys and values. They
            lie under each other in ``lora_a (parts · r, in)`` and ``lora_b (out, r)``.
    """

    def __init__(self, layer: nn.Linear, rank: int, *, scale: float, parts: int = 1) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.scale, self.parts = scale, parts
        self.lora_a = nn.Parameter(layer.weight.new_empty(parts * rank, layer.in_features))
        self.lora_b = nn.Parameter(layer.weight.new_zeros(layer.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def extra_repr(self) -> str:
        """What ``print`` says of it."""
        return f"{super().extra_repr()}, rank={self.lora_b.shape[1]}, scale={self.scale:g}, parts={self.parts}"

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) → (..., out)."""
        low = linear(x, self.lora_a) * self.scale
        pairs = zip(low.chunk(self.parts, -1), self.lora_b.chunk(self.parts), strict=True)
        update = [linear(part, b) for part, b in pairs]
        return super().forward(x) + (update[0] if self.parts == 1 else torch.cat(update, -1))

    def merge(self) -> Linear:
        """Fold ``scale · B A`` into the weight, in place, and hand the parameters over to a plain layer."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        pairs = zip(self.lora_a.detach().chunk(self.parts), self.lora_b.detach().chunk(self.parts), strict=True)
        update = torch.cat([b.to(wide) @ a.to(wide) for a, b in pairs]) * self.scale
        with torch.no_grad():
            self.weight.copy_(self.weight + update)
        plain = Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        plain.weight, plain.bias = self.weight, self.bias
        return plain.train(self.training)
