"""Multi-head self-attention over packed tokens."""

from __future__ import annotations

from torch import Tensor, nn

import fastvivit.functional as F
from fastvivit.modules.linear import Linear
from fastvivit.tokens import Grouping


class Attention(nn.Module):
    """Self-attention within the sequences of a grouping; q, k and v are views of one product."""

    def __init__(self, width: int, heads: int, *, qkv_bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width, bias=qkv_bias)
        self.proj = Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier for each of the four square matrices, as ViT's own code has it: right at any width."""
        for matrix in (*self.qkv.weight.chunk(3), self.proj.weight):
            nn.init.xavier_uniform_(matrix)
        for linear in (self.qkv, self.proj):
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, group: Grouping) -> Tensor:
        """X (M, D) in the order of ``group`` → (M, D)."""
        q, k, v = self.qkv(x).unflatten(1, (3, self.heads, -1)).unbind(1)
        longest = group.max_seqlen
        out = F.varlen_attention(q, k, v, group.cu_seqlens, None, longest, longest, schedule=group.schedule)
        return self.proj(out.flatten(1))
