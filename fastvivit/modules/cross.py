"""Attention of queries to packed media, and pooling by learned queries."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fastvivit.functional as F
from fastvivit._checks import require_tensor
from fastvivit.modules.linear import Linear
from fastvivit.ops.checked_cu_seqlens import checked_cu_seqlens


class CrossAttention(nn.Module):
    """Multi-head attention of packed queries to packed media: clip b's queries see clip b's media.

    Args:
        width: D of the queries and of the result.
        media_width: D of the media.
        heads: attention heads.
        head_dim: width of a head; None is ``width / heads``.
        kv_heads: heads of keys and values, each for as many query heads (Ainslie et al. 2023); None is ``heads``.
        qk_norm: whether queries and keys get a LayerNorm in each head (Dehghani et al. 2023, section 2).
        eps: of these LayerNorms.

    Raises:
        ValueError: a number below 1, heads that do not divide ``width`` where ``head_dim`` is None, ``kv_heads`` that
            do not divide ``heads``.
    """

    def __init__(
        self,
        width: int,
        media_width: int,
        heads: int,
        *,
        head_dim: int | None = None,
        kv_heads: int | None = None,
        qk_norm: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        require_counts(width=width, media_width=media_width, heads=heads, kv_heads=kv_heads)
        if heads % kv_heads:
            raise ValueError(f"kv_heads: wanted a divisor of the {heads} heads, got {kv_heads}")
        if head_dim is None and width % heads:
            raise ValueError(f"heads: wanted a divisor of width {width}, got {heads}")
        head_dim = width // heads if head_dim is None else head_dim
        require_counts(head_dim=head_dim)
        self.heads, self.head_dim, self.kv_heads = heads, head_dim, kv_heads
        self.q = Linear(width, heads * head_dim)
        self.kv = Linear(media_width, 2 * kv_heads * head_dim)
        self.proj = Linear(heads * head_dim, width)
        self.q_norm = nn.LayerNorm(head_dim, eps) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(head_dim, eps) if qk_norm else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier for each of the four matrices, as in ``Attention``."""
        for matrix in (self.q.weight, *self.kv.weight.chunk(2), self.proj.weight):
            nn.init.xavier_uniform_(matrix)
        for linear in (self.q, self.kv, self.proj):
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        x: Tensor,
        media: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int | None = None,
        max_seqlen_k: int | None = None,
        *,
        schedule: Tensor | None = None,
    ) -> Tensor:
        """Attend; lengths are those of ``F.varlen_attention``.

        Args:
            x: (Mq, width) queries.
            media: (Mk, media_width).
            cu_seqlens_q: (B + 1,) int32 rows of each clip's queries.
            cu_seqlens_k: (B + 1,) int32 rows of each clip's media. Rows past the last value are not attended to, but
                must be finite where a gradient is wanted.
            max_seqlen_q: an upper bound of the queries of a clip.
            max_seqlen_k: an upper bound of the media of a clip.
            schedule: of ``F.varlen_schedule`` for these lengths.

        Returns:
            (Mq, width). Queries of a clip without media get the bias of the last projection.

        Raises:
            ValueError: as ``F.varlen_attention``.
        """
        k, v = self.keys(media)
        return self.attend(x, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, schedule=schedule)

    def keys(self, media: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (Mk, kv_heads, head_dim) of media (Mk, media_width), for any number of ``attend``."""
        k, v = self.kv(media).unflatten(1, (2, self.kv_heads, self.head_dim)).unbind(1)
        # Under autocast a LayerNorm may answer in float32.
        return self.k_norm(k).to(v.dtype), v

    def attend(
        self,
        x: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int | None = None,
        max_seqlen_k: int | None = None,
        *,
        schedule: Tensor | None = None,
    ) -> Tensor:
        """``forward`` with keys and values that ``keys`` has made."""
        q = self.q_norm(self.q(x).unflatten(1, (self.heads, self.head_dim))).to(v.dtype)
        out = F.varlen_attention(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, schedule=schedule)
        return self.proj(out.flatten(1))


class AttentionPool(nn.Module):
    """A clip as what learned queries see in it: ``MHA(LN(query), LN(x))``, the attentional pooler of CoCa.

    CoCa (Yu et al. 2022, section 3.2) and VideoCoCa (Yan et al. 2022) pool a contrastive embedding with one query;
    8 heads and a LayerNorm on either side are open_clip's choice.

    Args:
        width: D.
        heads: attention heads; they divide ``width``.
        queries: Q learned queries.
        eps: of the LayerNorms.

    Raises:
        ValueError: a number below 1, heads that do not divide ``width``.
    """

    def __init__(self, width: int, heads: int = 8, queries: int = 1, *, eps: float = 1e-5) -> None:
        super().__init__()
        require_counts(queries=queries)
        self.attn = CrossAttention(width, width, heads)
        # Its LayerNorm makes the scale of a query matter for nothing but how fast it turns.
        self.query = nn.Parameter(torch.randn(queries, width))
        self.norm_q = nn.LayerNorm(width, eps)
        self.norm_k = nn.LayerNorm(width, eps)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that an optimiser should not decay, beside those of one dimension."""
        return {"query"}

    def forward(self, x: Tensor, cu_seqlens: Tensor, max_seqlen: int | None = None) -> Tensor:
        """Pool each clip's tokens.

        Args:
            x: (M, D) packed tokens.
            cu_seqlens: (B + 1,) int32 rows of each clip; lengths may be 0. Rows past the last value as in
                ``CrossAttention``.
            max_seqlen: an upper bound of the lengths; None never stalls a device, but some GPU backends need it.

        Returns:
            (B, D) for one query, (B, Q, D) for several. A clip without tokens gives the bias of the output
            projection (0 at the start), whatever the queries.

        Raises:
            ValueError: a wrong shape or dtype, or (on a CPU) bad ``cu_seqlens`` or too small a maximum. On a GPU bad
                ``cu_seqlens`` make the whole result NaN.
        """
        queries, width = self.query.shape
        require_tensor("x", x, (2,))
        if x.shape[1] != width:
            raise ValueError(f"x: wanted (M, {width}), got shape {tuple(x.shape)}")
        require_lengths(cu_seqlens, x)
        clips = cu_seqlens.shape[0] - 1
        cu_seqlens = checked_cu_seqlens(cu_seqlens, x.shape[0], max_seqlen)
        cu_seqlens_q = torch.arange(clips + 1, dtype=torch.int32, device=x.device) * queries
        query = self.norm_q(self.query).repeat(clips, 1)
        out = self.attn(query, self.norm_k(x), cu_seqlens_q, cu_seqlens, queries, max_seqlen)
        return out if queries == 1 else out.view(clips, queries, width)


def require_counts(**counts: int) -> None:
    """Raise ``ValueError`` for a number that is no whole one of at least 1, by its name."""
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: wanted a whole number of at least 1, got {value!r}")


def require_lengths(cu_seqlens: Tensor, x: Tensor) -> None:
    """Raise ``ValueError`` unless ``cu_seqlens`` is (B + 1,) int32 on the device of ``x``."""
    require_tensor("cu_seqlens", cu_seqlens, (1,), (torch.int32,), x)
    if cu_seqlens.shape[0] == 0:
        raise ValueError("cu_seqlens: wanted at least one value (0), got shape (0,)")
