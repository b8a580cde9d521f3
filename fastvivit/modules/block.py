"""A pre-LayerNorm transformer block on packed tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fastvivit.functional as F
from fastvivit.modules.attention import Attention
from fastvivit.modules.mlp import Mlp
from fastvivit.tokens import Grouping


class DropPath(nn.Module):
    """Drops a branch for whole clips while training, scales the others up (Huang et al. 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor, clip: Tensor, clips: int) -> Tensor:
        """X (M, D), clip (M,) int64 clip of each row → (M, D)."""
        if not self.training or self.rate == 0:
            return x
        alive = torch.rand(clips, 1, device=x.device) >= self.rate
        return x * F.gather_tokens(alive.to(x.dtype) / (1 - self.rate), clip)


class Block(nn.Module):
    """``x + MSA(LN x)``, then ``x + MLP(LN x)``: ViT's; the paper's joint attention adds nothing to it."""

    def __init__(
        self, width: int, heads: int, ff: int, *, act: str, eps: float, qkv_bias: bool, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps)
        self.attn = Attention(width, heads, qkv_bias=qkv_bias)
        self.norm2 = nn.LayerNorm(width, eps)
        self.mlp = Mlp(width, ff, act)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, group: Grouping, clips: Grouping) -> Tensor:
        """X (M, D); attention runs within ``group``, branches are dropped by ``clips``."""
        x = x + self.drop_path(self.attn(self.norm1(x), group), clips.segment, clips.sequences)
        return x + self.drop_path(self.mlp(self.norm2(x)), clips.segment, clips.sequences)
