"""A pre-LayerNorm transformer block on packed tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fastvivit.functional as F
from fastvivit.models import ViViTConfig
from fastvivit.modules.adapters import Adapter
from fastvivit.modules.attention import Attention, GatedAttention
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
    """``x + MSA(LN x)``, then ``x + MLP(LN x)``: ViT's; the paper's joint attention adds nothing to it.

    With ``extra`` there is gated attention over a second grouping beside the first: over time in the factorised
    encoder (paper, section 3.1), between views in the tube encoder. It starts as a copy of the block's own
    attention, its gate shut, so that the block starts as the one without it.

    An ``adapter`` (``fastvivit.tune.add_adapters``) takes the output of the feed-forward layer, or with
    ``adapter_position = "residual"`` the block's.

    Args:
        config: widths, activation, order and gate are its.
        drop_path: rate.
        extra: whether there is a second attention.
    """

    def __init__(self, config: ViViTConfig, drop_path: float, *, extra: bool = False) -> None:
        super().__init__()
        width, heads, options = config.width, config.heads, {"eps": config.eps, "qkv_bias": config.qkv_bias}
        self.norm1 = nn.LayerNorm(width, config.eps)
        self.attn = Attention(width, heads, qkv_bias=config.qkv_bias)
        self.extra, self.extra_first = None, config.order == "time_space"
        if extra:
            self.extra = GatedAttention(width, heads, channels=1 if config.gate == "scalar" else width, **options)
            self.extra.copy_(self.norm1, self.attn)
        self.norm2 = nn.LayerNorm(width, config.eps)
        self.mlp = Mlp(width, config.ff, config.act)
        self.drop_path = DropPath(drop_path)
        self.adapter: Adapter | None = None
        self.adapter_position = "ffn"

    @property
    def trains(self) -> bool:
        """Whether any of its parameters is trainable."""
        return any(parameter.requires_grad for parameter in self.parameters())

    def forward(
        self, x: Tensor, group: Grouping, clips: Grouping, extra: Grouping | None = None, selective: bool = False
    ) -> Tensor:
        """X (M, D); attention runs within ``group`` and ``extra``, branches are dropped by ``clips``.

        With ``selective`` the results of norms, activations and moves of rows are computed again in the backward.
        """

        def drop(branch: Tensor) -> Tensor:
            return self.drop_path(branch, clips.segment, clips.sequences)

        if self.extra is not None and self.extra_first:
            x = x + drop(self.extra(x, extra, selective=selective))
        x = x + drop(self.attn(x, group, norm=self.norm1, selective=selective))
        if self.extra is not None and not self.extra_first:
            x = x + drop(self.extra(x, extra, selective=selective))
        branch = self.mlp(x, norm=self.norm2, selective=selective)
        if self.adapter is None:
            return x + drop(branch)
        if self.adapter_position == "residual":
            return self.adapter(x + drop(branch))
        return x + drop(self.adapter(branch))
