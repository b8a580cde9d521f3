"""What the layers of a language model see of a batch of clips."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

import fastvivit.functional as F


@dataclass(frozen=True, eq=False, kw_only=True)
class Queries:
    """The rows that attend to each clip.

    Attributes:
        cu_seqlens: (B + 1,) int32.
        max_seqlen: rows of each clip, the same for all.
        schedule: of ``F.varlen_schedule``; None on a CPU.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    schedule: Tensor | None


@dataclass(eq=False, kw_only=True)
class Media:
    """Tokens of B clips, packed, and what all layers of one call share.

    Rows of text belong to clips in order, equally many to each: those of beams, of several samples, of options. So
    they stand beside each other, attend as one sequence, and no key is copied.

    Attributes:
        tokens: (M, W).
        cu_seqlens: (B + 1,) int32 rows of each clip; rows past the last value belong to none.
        max_seqlen: an upper bound of the tokens of a clip.
        kept: keys and values are computed once a layer and kept, for generating; not where gradients are wanted.
    """

    tokens: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    kept: bool = False
    _keys: dict[nn.Module, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)
    _queries: dict[tuple[int, int], Queries] = field(default_factory=dict, repr=False)

    @property
    def clips(self) -> int:
        """B."""
        return self.cu_seqlens.shape[0] - 1

    @cached_property
    def even(self) -> bool:
        """Whether all clips have ``max_seqlen`` tokens. A device is waited for."""
        return bool((self.cu_seqlens.diff() == self.max_seqlen).all())

    def keys(self, layer: nn.Module, project: Callable[[Tensor], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """``project(tokens)``: keys and values of ``layer``, from the last time where they are kept."""
        if not self.kept:
            return project(self.tokens)
        if layer not in self._keys:
            self._keys[layer] = project(self.tokens)
        return self._keys[layer]

    def queries(self, texts: int, length: int) -> Queries:
        """How ``texts`` rows of ``length`` positions attend to the clips.

        Raises:
            ValueError: texts that are not equally many for each clip.
        """
        if texts % self.clips:
            raise ValueError(f"input_ids: wanted as many texts for each of {self.clips} clips, got {texts}")
        found = self._queries.get((texts, length))
        if found is None:
            each = texts // self.clips * length
            cu_seqlens = torch.arange(self.clips + 1, dtype=torch.int32, device=self.cu_seqlens.device) * each
            schedule = None
            if cu_seqlens.is_cuda:
                schedule = F.varlen_schedule(cu_seqlens, self.cu_seqlens, each * self.clips, self.tokens.shape[0])
            found = Queries(cu_seqlens=cu_seqlens, max_seqlen=each, schedule=schedule)
            self._queries[texts, length] = found
        return found
