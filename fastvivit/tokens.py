"""The packed batch: which tokens of which clips were kept, and every way of cutting them into sequences.

A batch of clips is one buffer of kept tokens (M, D). Joint attention, frame-level encoding, factorised
attention and pooling are the same rows under another grouping, so a grouping is computed once a batch, on the
device, and no length is ever read back from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastvivit.functional import varlen_schedule

Grid = tuple[int, int, int]


@dataclass(frozen=True, eq=False, kw_only=True)
class Grouping:
    """Packed rows cut into sequences.

    Attributes:
        cu_seqlens: (S + 1,) int32.
        max_seqlen: an upper bound of the lengths, known without asking the device.
        segment: (M,) int64 sequence of each packed row.
        order: (M,) int64 packed row of each row in this grouping; None where its order is the packed one.
        schedule: blocks of self-attention over this grouping, for every layer and the backward; None on a
            CPU.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    segment: Tensor
    order: Tensor | None = None
    schedule: Tensor | None = None

    @property
    def sequences(self) -> int:
        """Sequences, S; empty ones count."""
        return self.cu_seqlens.shape[0] - 1


class Tokens:
    """Where the packed tokens of a batch stand on the grids of their clips.

    Args:
        grids: (T', H', W') of each clip.
        counts: kept tokens of each clip; clip b owns the next ``counts[b]`` rows.
        place: (M,) int64 place of each token on its clip's grid, row-major t, h, w; None where every token is
            kept, in order.
        device: where the groupings are built.
    """

    def __init__(
        self, grids: Sequence[Grid], counts: Sequence[int], place: Tensor | None, device: torch.device
    ) -> None:
        self.grids, self.counts, self.device = list(grids), list(counts), device
        self.rows = sum(self.counts)
        self.full = place is None
        self._place = place
        # Plain attributes, not cached_property: torch.compile can't trace its lock.
        self._by_clip = self._by_frame = self._by_place = None

    @property
    def clips(self) -> int:
        """Clips of the batch, B."""
        return len(self.counts)

    @property
    def place(self) -> Tensor:
        """(M,) int64 place of each token on its clip's grid."""
        if self._place is None and self._uniform:
            self._place = torch.arange(self.counts[0], device=self.device).repeat(self.clips)
        elif self._place is None:
            self._place = torch.cat([torch.arange(n, device=self.device) for n in self.counts])
        return self._place

    @property
    def by_clip(self) -> Grouping:
        """One sequence a clip: joint space-time attention, pooling."""
        if self._by_clip is None:
            segment = self._spread(range(self.clips))
            self._by_clip = self._grouping(self._offsets(self.counts), max(self.counts, default=0), segment)
        return self._by_clip

    @property
    def by_frame(self) -> Grouping:
        """One sequence a (clip, time slot), clips in order: frame-level encoding, attention within frames.

        Ids must ascend within each clip, as every sampler of ours draws them.
        """
        if self._by_frame is None:
            slots, areas = [t for t, _, _ in self.grids], [h * w for _, h, w in self.grids]
            segment = self.place // self._spread(areas) + self._spread(_starts(slots))
            if self.full:
                lengths = [area for t, area in zip(slots, areas, strict=True) for _ in range(t)]
                cu_seqlens = self._offsets(lengths)
            else:
                cu_seqlens = self._cut(segment, sum(slots))
            self._by_frame = self._grouping(cu_seqlens, max(areas, default=0), segment)
        return self._by_frame

    @property
    def by_place(self) -> Grouping:
        """One sequence a (clip, place), in order of time: attention over time, temporal pooling."""
        if self._by_place is None:
            areas = [h * w for _, h, w in self.grids]
            segment = self.place % self._spread(areas) + self._spread(_starts(areas))
            order = segment.argsort(stable=True)
            longest = max((t for t, _, _ in self.grids), default=0)
            self._by_place = self._grouping(self._cut(segment[order], sum(areas)), longest, segment, order)
        return self._by_place

    def _grouping(self, cu_seqlens: Tensor, longest: int, segment: Tensor, order: Tensor | None = None) -> Grouping:
        schedule = varlen_schedule(cu_seqlens, cu_seqlens, self.rows, self.rows) if cu_seqlens.is_cuda else None
        return Grouping(cu_seqlens=cu_seqlens, max_seqlen=longest, segment=segment, order=order, schedule=schedule)

    @property
    def _uniform(self) -> bool:
        return len(set(self.counts)) == 1

    def _offsets(self, lengths: Sequence[int]) -> Tensor:
        """(len + 1,) int32 running sum of lengths known on the host; equal ones are made on the device."""
        if len(set(lengths)) == 1:
            return torch.arange(len(lengths) + 1, dtype=torch.int32, device=self.device) * lengths[0]
        ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return ends.to(self.device, non_blocking=True)

    def _spread(self, values: Sequence[int]) -> Tensor:
        """(M,) int64: for each token the value of its clip."""
        values = list(values)
        if len(set(values)) == 1:
            return torch.full((self.rows,), values[0], dtype=torch.int64, device=self.device)
        table = torch.tensor(values, dtype=torch.int64).to(self.device, non_blocking=True)
        if self._uniform:
            return table.unsqueeze(1).expand(-1, self.counts[0]).reshape(-1)
        counts = torch.tensor(self.counts).to(self.device, non_blocking=True)
        return table.repeat_interleave(counts, output_size=self.rows)

    def _cut(self, ascending: Tensor, segments: int) -> Tensor:
        """(segments + 1,) int32 row at which each segment starts."""
        starts = torch.arange(segments + 1, device=self.device)
        return torch.searchsorted(ascending, starts, out_int32=True)


def _starts(lengths: Sequence[int]) -> list[int]:
    starts = [0]
    for length in lengths[:-1]:
        starts.append(starts[-1] + length)
    return starts
