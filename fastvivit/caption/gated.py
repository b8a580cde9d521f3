"""Cross-attention to a clip, behind a gate that starts shut."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from fastvivit.caption.media import Media, Queries
from fastvivit.modules.cross import CrossAttention
from fastvivit.modules.mlp import Mlp


class GatedCrossAttention(nn.Module):
    """``x + tanh(α) XA(LN x, media)``, then ``x + tanh(β) MLP(LN x)`` where there is one; α = β = 0 at the start.

    Flamingo's layer (Alayrac et al. 2022, section 2.2, figure 4). With shut gates it changes nothing, to the bit, so
    that training begins with the language model as it is. The paper (section 3.2) names the cross-attention alone,
    Flamingo also has the feed-forward layer.

    Args:
        width: of the language model's hidden states.
        media_width: of the media.
        heads: attention heads.
        head_dim: width of a head.
        ff: inner width of the feed-forward layer as a multiple of ``width``; 0 leaves it out, 4 is Flamingo's.
        eps: of the LayerNorms.
    """

    def __init__(
        self, width: int, media_width: int, heads: int, *, head_dim: int, ff: int = 0, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps)
        self.attn = CrossAttention(width, media_width, heads, head_dim=head_dim)
        self.gate = nn.Parameter(torch.zeros(1))
        self.mlp = None
        if ff:
            self.norm_ff = nn.LayerNorm(width, eps)
            self.mlp = Mlp(width, ff * width)
            self.gate_ff = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, media: Media) -> Tensor:
        """Let every position of a text see its clip.

        Args:
            x: (R, n, width) hidden states of R texts, R a multiple of the clips: those of clip b stand together.
            media: what the clips show.

        Returns:
            Like ``x``, in its dtype; the sums are taken in it, too.
        """
        queries = media.queries(x.shape[0], x.shape[1])
        attend = self._attend_dense if media.kept and media.even else self._attend_packed
        rows = _gated(x.flatten(0, 1), self.norm, lambda rows: attend(rows, media, queries), self.gate)
        if self.mlp is not None:
            rows = _gated(rows, self.norm_ff, self.mlp, self.gate_ff)
        return rows.view(x.shape)

    def _attend_packed(self, rows: Tensor, media: Media, queries: Queries) -> Tensor:
        k, v = media.keys(self, self.attn.keys)
        return self.attn.attend(
            rows, k, v, queries.cu_seqlens, media.cu_seqlens, queries.max_seqlen, media.max_seqlen,
            schedule=queries.schedule,
        )  # fmt: skip

    def _attend_dense(self, rows: Tensor, media: Media, queries: Queries) -> Tensor:
        """The same over equally many tokens a clip: with one query a step, setting up packed attention costs more."""
        k, v = media.keys(self, lambda tokens: self._dense_keys(tokens, media.clips))
        q = self.attn.q(rows).view(media.clips, queries.max_seqlen, self.attn.heads, self.attn.head_dim)
        out = nnf.scaled_dot_product_attention(q.transpose(1, 2), k, v)
        return self.attn.proj(out.transpose(1, 2).reshape(rows.shape[0], -1))

    def _dense_keys(self, tokens: Tensor, clips: int) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, S, d), laid out as they are read."""
        k, v = (rows.unflatten(0, (clips, -1)).transpose(1, 2).contiguous() for rows in self.attn.keys(tokens))
        return k, v


def _gated(x: Tensor, norm: nn.LayerNorm, branch: Callable[[Tensor], Tensor], gate: Tensor) -> Tensor:
    """``x + tanh(gate) · branch(norm(x))``: the branch in the dtype of its weights, the sum in that of ``x``."""
    out = branch(norm(x.to(norm.weight.dtype)))
    return torch.addcmul(x, gate.tanh().to(x.dtype), out.to(x.dtype))
