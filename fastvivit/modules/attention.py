"""Multi-head self-attention over packed tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fastvivit.functional as F
from fastvivit.modules.linear import Linear
from fastvivit.modules.recompute import through
from fastvivit.tokens import Grouping


class Attention(nn.Module):
    """Self-attention within the sequences of a grouping; q, k and v are views of one product.

    Args:
        width: D.
        heads: attention heads.
        qkv_bias: whether q, k and v have a bias.
        causal: whether a row sees only itself and those before it in its sequence.
    """

    def __init__(self, width: int, heads: int, *, qkv_bias: bool = True, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
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

    def forward(self, x: Tensor, group: Grouping, *, norm: nn.Module | None = None, selective: bool = False) -> Tensor:
        """X (M, D) in packed order → (M, D) in packed order.

        ``norm`` comes first; with ``selective`` what it gives, and its rows in the order of ``group``, are computed
        again in the backward.
        """

        def rows(x: Tensor) -> Tensor:
            x = x if norm is None else norm(x)
            return x if group.order is None else F.gather_tokens(x, group.order, distinct=True)

        qkv = through(self.qkv, rows, x) if selective else self.qkv(rows(x))
        q, k, v = qkv.unflatten(1, (3, self.heads, -1)).unbind(1)
        longest = group.max_seqlen
        out = F.varlen_attention(
            q, k, v, group.cu_seqlens, None, longest, longest, causal=self.causal, schedule=group.schedule
        )
        out = self.proj(out.flatten(1))
        return out if group.order is None else F.gather_tokens(out, group.inverse, distinct=True)


class GatedAttention(nn.Module):
    """``tanh(α) · MSA(LN x)`` over another grouping of the same tokens; α starts at 0, and the branch shut.

    Attention over time behind spatial attention (paper, section 3.1: factorised space-time attention), and
    between the views of a tube encoder.

    Args:
        width: D.
        heads: attention heads.
        eps: of the LayerNorm.
        qkv_bias: see ``Attention``.
        channels: gates, 1 or D.
    """

    def __init__(self, width: int, heads: int, *, eps: float, qkv_bias: bool, channels: int = 1) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps)
        self.attn = Attention(width, heads, qkv_bias=qkv_bias)
        self.gate = nn.Parameter(torch.zeros(channels))

    @torch.no_grad()
    def copy_(self, norm: nn.LayerNorm, attn: Attention) -> None:
        """Take over the weights of spatial attention and of its norm, and shut the gate."""
        self.norm.load_state_dict(norm.state_dict())
        self.attn.load_state_dict(attn.state_dict())
        self.gate.zero_()

    def forward(self, x: Tensor, group: Grouping, *, selective: bool = False) -> Tensor:
        """X (M, D) → the branch (M, D), to be added; ``selective`` as in ``Attention``."""
        branch = self.attn(x, group, norm=self.norm, selective=selective)
        # Under autocast a float32 gate would widen the branch, and with it every row after it.
        return self.gate.tanh().to(branch.dtype) * branch
