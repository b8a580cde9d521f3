"""What an encoder returns, and what it holds half-way."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from fastvivit.modules.clips import Keep
from fastvivit.tokens import Grid, Tokens, Views


@dataclass(frozen=True, kw_only=True)
class EncoderOutput:
    """What an encoder returns.

    Attributes:
        tokens: (M, D) packed tokens after the final norm, clip after clip, in the order of ``keep``; a CLS token
            before those it leads. With a CLS token a time slot or a tube they stand sequence after sequence,
            ids ascending: ``place`` says which is which.
        cu_seqlens: (B + 1,) int32 rows of each clip.
        place: (M,) int64 grid id of each row, -1 for a CLS token.
        keep: grid ids of the tokens, in the form they were given: (B, K) int64, a list of B tensors, or None
            for all.
        grid: (T', H', W') of the clips; a list of B where they came as a list. With tubes each is a tuple of
            grids.
        pooled: (B, D), as the configuration pools; None without pooling.
        layers: the tokens after each block asked for, before the final norm.
    """

    tokens: Tensor
    cu_seqlens: Tensor
    place: Tensor
    keep: Keep
    grid: Grid | Views | list[Grid] | list[Views]
    pooled: Tensor | None
    counts: list[int] = field(repr=False)
    layers: tuple[Tensor, ...] = ()

    @property
    def last_hidden_state(self) -> Tensor:
        """(B, K, D). Raises ``ValueError`` where clips kept different numbers of tokens."""
        if any(count != self.counts[0] for count in self.counts):
            raise ValueError(f"last_hidden_state: wanted clips with equally many tokens, got {self.counts}; use tokens")
        return self.tokens.unflatten(0, (len(self.counts), self.counts[0]))


@dataclass(frozen=True, eq=False, kw_only=True)
class Begun:
    """Clips on their way through an encoder: what ``ViViT.begin`` returns and ``ViViT.finish`` goes on from.

    Attributes:
        x: (M, D) packed rows before block ``blocks``; another tensor of the same values may take its place
            (``dataclasses.replace``), as a copy that lay on the host in between.
        tokens: where they stand.
        blocks: blocks that they have been through.
        keep: as in ``EncoderOutput``.
        grid: as in ``EncoderOutput``.
        restore: (M,) int64 rows that bring a caller's order back; None where it is the packed one.
    """

    x: Tensor
    tokens: Tokens
    blocks: int
    keep: Keep
    grid: Grid | Views | list[Grid] | list[Views]
    restore: Tensor | None
