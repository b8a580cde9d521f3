"""Multi-head self-attention over packed tokens."""

from __future__ import annotations

from torch import Tensor, nn

import fastvivit.functional as F
from fastvivit.tokens import Grouping


class Attention(nn.Module):
    """Self-attention within the sequences of a grouping; q, k and v are views of one product."""

    def __init__(self, width: int, heads: int, *, qkv_bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, group: Grouping) -> Tensor:
        """X (M, D) in the order of ``group`` → (M, D)."""
        q, k, v = self.qkv(x).unflatten(1, (3, self.heads, -1)).unbind(1)
        longest = group.max_seqlen
        out = F.varlen_attention(q, k, v, group.cu_seqlens, None, longest, longest, schedule=group.schedule)
        return self.proj(out.flatten(1))
