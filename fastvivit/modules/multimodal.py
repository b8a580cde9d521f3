"""Layers in which packed text attends to itself and to the video tokens of its clip."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

import fastvivit.functional as F
from fastvivit.modules.attention import Attention
from fastvivit.modules.cross import CrossAttention
from fastvivit.modules.mlp import Mlp
from fastvivit.tokens import Grouping


@dataclass(frozen=True, eq=False, kw_only=True)
class Media:
    """The video tokens that texts attend to, for every layer.

    Attributes:
        tokens: (Mk, Dv) packed, clip after clip.
        cu_seqlens: (B + 1,) int32 rows of each clip.
        max_seqlen: an upper bound of the tokens of a clip.
        schedule: of ``F.varlen_schedule`` for text rows against them; None on a CPU.
    """

    tokens: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    schedule: Tensor | None


class MultimodalLayer(nn.Module):
    """``x + SA(LN x)``, ``x + XA(LN x, media)``, then ``x + MLP(LN x)``: a layer of CoCa's multimodal decoder.

    Yu et al. 2022, section 3.1, as VideoCoCa (Yan et al. 2022) takes it over; with ``causal`` off it is one of a
    multimodal encoder.

    Args:
        width: D of the text.
        media_width: Dv of the video tokens.
        heads: attention heads of both attentions.
        causal: whether a token sees only itself and those before it.
    """

    def __init__(self, width: int, media_width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads, causal=causal)
        self.norm2 = nn.LayerNorm(width)
        self.cross = CrossAttention(width, media_width, heads)
        self.norm3 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x: Tensor, group: Grouping, media: Media) -> Tensor:
        """X (M, D) packed text, ``group`` its texts, one a clip of ``media`` → (M, D)."""
        x = x + self.attn(self.norm1(x), group)
        seen = self.cross(
            self.norm2(x),
            media.tokens,
            group.cu_seqlens,
            media.cu_seqlens,
            group.max_seqlen,
            media.max_seqlen,
            schedule=media.schedule,
        )
        x = x + seen
        return x + self.mlp(self.norm3(x))


def group_texts(mask: Tensor, device: torch.device) -> Grouping:
    """The real tokens of padded texts as packed rows, one sequence a text.

    Args:
        mask: (B, L) bool on the CPU, True = a real token; a text may have none.
        device: where the grouping goes; no length is read back from it.

    Returns:
        A grouping of M = ``mask.sum()`` rows.
    """
    lengths = mask.sum(1)
    rows = int(lengths.sum())
    cu_seqlens = nnf.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0)).to(device, non_blocking=True)
    segment = torch.arange(len(lengths)).repeat_interleave(lengths).to(device, non_blocking=True)
    return Grouping(
        cu_seqlens=cu_seqlens,
        max_seqlen=int(lengths.max()),
        segment=segment,
        schedule=F.varlen_schedule(cu_seqlens, cu_seqlens, rows, rows) if cu_seqlens.is_cuda else None,
    )
