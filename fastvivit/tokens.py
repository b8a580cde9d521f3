"""The packed batch: which tokens of which clips were kept, and every way of cutting them into sequences.

A batch of clips is one buffer of kept tokens (M, D). Joint attention, frame-level encoding, factorised
attention, tubes and pooling are the same rows under another grouping, so a grouping is computed once a batch,
on the device, and no length is ever read back from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from fastvivit.functional import varlen_schedule

Grid = tuple[int, int, int]
Views = tuple[Grid, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Grouping:
    """Packed rows cut into sequences.

    Attributes:
        cu_seqlens: (S + 1,) int32.
        max_seqlen: an upper bound of the lengths, known without asking the device.
        segment: (M,) int64 sequence of each packed row.
        order: (M,) int64 packed row of each row in this grouping; None where its order is the packed one.
        inverse: (M,) int64 the way back from ``order``; None with it.
        schedule: blocks of self-attention over this grouping, for every layer and the backward; None on a
            CPU.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    segment: Tensor
    order: Tensor | None = None
    inverse: Tensor | None = None
    schedule: Tensor | None = None

    @property
    def sequences(self) -> int:
        """Sequences, S; empty ones count."""
        return self.cu_seqlens.shape[0] - 1


class Tokens:
    """Where the packed rows of a batch stand on the grids of their clips.

    A clip's rows are its kept grid tokens and its CLS tokens, one at the head of every sequence of ``cls``.
    Groupings other than ``by_clip`` and ``by_place`` want grid ids that ascend within each clip.

    Args:
        views: grids of each clip: one (T', H', W'), or one a tube; ids count through them in turn.
        counts: kept grid tokens of each clip.
        ids: (m,) int64 grid id of each kept token, clip after clip; row-major t, h, w. None where every token
            is kept, in order.
        device: where the groupings are built.
        cls: which sequences begin with a CLS token: "clip", "frame", "view"; None for none.
    """

    def __init__(
        self,
        views: Sequence[Views],
        counts: Sequence[int],
        ids: Tensor | None,
        device: torch.device,
        *,
        cls: str | None = None,
    ) -> None:
        self.views, self.kept, self.device, self.cls = list(views), list(counts), device, cls
        heads = [0] * len(self.views) if cls is None else self._sequences(cls)
        self.counts = [count + n for count, n in zip(self.kept, heads, strict=True)]
        self.heads = heads
        self.rows = sum(self.counts)
        self.full = ids is None
        self._ids = ids
        # Plain attributes, not cached_property: torch.compile can't trace its lock.
        self._by_clip = self._by_frame = self._by_place = self._by_view = self._grid_rows = None

    @property
    def clips(self) -> int:
        """Clips of the batch, B."""
        return len(self.counts)

    @property
    def ids(self) -> Tensor:
        """(m,) int64 grid id of each kept token."""
        if self._ids is None and _equal(self.kept):
            self._ids = torch.arange(self.kept[0], device=self.device).repeat(self.clips)
        elif self._ids is None:
            self._ids = torch.cat([torch.arange(n, device=self.device) for n in self.kept])
        return self._ids

    @property
    def place(self) -> Tensor:
        """(M,) int64 grid id of each row, -1 for a CLS token."""
        if self.cls is None:
            return self.ids
        return torch.full((self.rows,), -1, device=self.device).scatter(0, self.grid_rows, self.ids)

    @property
    def grid_rows(self) -> Tensor:
        """(m,) int64 packed row of each kept grid token; the other rows are CLS tokens."""
        if self._grid_rows is None:
            self._grid_rows = torch.arange(sum(self.kept), device=self.device)
            if self.cls is not None:
                self._grid_rows = self._grid_rows + self._segment(self.cls) + 1
        return self._grid_rows

    @property
    def by_clip(self) -> Grouping:
        """One sequence a clip: joint space-time attention, cross-view attention, pooling."""
        if self._by_clip is None:
            segment = _spread(range(self.clips), self.counts, self.device)
            self._by_clip = self._grouping(self._offsets(self.counts), max([0, *self.counts]), segment)
        return self._by_clip

    @property
    def by_frame(self) -> Grouping:
        """One sequence a (clip, time slot), clips in order: frame-level encoding, attention within frames."""
        if self._by_frame is None:
            areas = [h * w for ((_, h, w),) in self.views]
            lengths = [area for ((t, _, _),), area in zip(self.views, areas, strict=True) for _ in range(t)]
            self._by_frame = self._in_order("frame", lengths, max([0, *areas]))
        return self._by_frame

    @property
    def by_view(self) -> Grouping:
        """One sequence a (clip, view), clips in order: attention within the tokens of a tube."""
        if self._by_view is None:
            lengths = [prod(grid) for grids in self.views for grid in grids]
            self._by_view = self._in_order("view", lengths, max([0, *lengths]))
        return self._by_view

    @property
    def by_place(self) -> Grouping:
        """One sequence a (clip, place), in order of time: attention over time, temporal pooling.

        The CLS tokens of a clip are one place more, its last.
        """
        if self._by_place is None:
            areas = [h * w for ((_, h, w),) in self.views]
            spots = areas if self.cls is None else [area + 1 for area in areas]
            place, area = self.place, _spread(areas, self.counts, self.device)
            spot = place % area if self.cls is None else torch.where(place < 0, area, place % area)
            segment = spot + _spread(_starts(spots), self.counts, self.device)
            order = segment.argsort(stable=True)
            longest = max([0, *(t for ((t, _, _),) in self.views)])
            self._by_place = self._grouping(self._cut(segment[order], sum(spots)), longest, segment, order)
        return self._by_place

    def grouping(self, kind: str) -> Grouping:
        """The grouping by "clip", "frame", "view" or "place"."""
        return getattr(self, f"by_{kind}")

    def _sequences(self, kind: str) -> list[int]:
        """Sequences of each clip."""
        of = {"clip": lambda grids: 1, "frame": lambda grids: grids[0][0], "view": len}[kind]
        return [of(grids) for grids in self.views]

    def _segment(self, kind: str) -> Tensor:
        """(m,) int64 sequence of each kept grid token."""
        first = _spread(_starts(self._sequences(kind)), self.kept, self.device)
        if kind == "clip":
            return first
        if kind == "frame":
            return first + self.ids // _spread([h * w for ((_, h, w),) in self.views], self.kept, self.device)
        ends = [_starts([prod(grid) for grid in grids])[1:] for grids in self.views]
        for bound in zip(*ends, strict=True):
            first = first + (self.ids >= _spread(bound, self.kept, self.device))
        return first

    def _in_order(self, kind: str, lengths: list[int], longest: int) -> Grouping:
        """A grouping of rows that already stand in its order; ``lengths`` is for a full grid."""
        segment = self._segment(kind)
        cu_seqlens = self._offsets(lengths) if self.full else self._cut(segment, len(lengths))
        if self.cls is not None:
            cu_seqlens = cu_seqlens + torch.arange(len(lengths) + 1, dtype=torch.int32, device=self.device)
            rows = torch.arange(self.rows, dtype=torch.int32, device=self.device)
            segment = torch.searchsorted(cu_seqlens, rows, right=True) - 1
            longest += 1
        return self._grouping(cu_seqlens, longest, segment)

    def _grouping(self, cu_seqlens: Tensor, longest: int, segment: Tensor, order: Tensor | None = None) -> Grouping:
        schedule = varlen_schedule(cu_seqlens, cu_seqlens, self.rows, self.rows) if cu_seqlens.is_cuda else None
        inverse = None
        if order is not None:
            inverse = torch.empty_like(order).scatter(0, order, torch.arange(self.rows, device=self.device))
        return Grouping(
            cu_seqlens=cu_seqlens, max_seqlen=longest, segment=segment, order=order, inverse=inverse, schedule=schedule
        )

    def _offsets(self, lengths: Sequence[int]) -> Tensor:
        """(len + 1,) int32 running sum of lengths known on the host; equal ones are made on the device."""
        if _equal(lengths):
            return torch.arange(len(lengths) + 1, dtype=torch.int32, device=self.device) * lengths[0]
        ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return ends.to(self.device, non_blocking=True)

    def _cut(self, ascending: Tensor, segments: int) -> Tensor:
        """(segments + 1,) int32 row at which each segment starts."""
        starts = torch.arange(segments + 1, device=self.device)
        return torch.searchsorted(ascending, starts, out_int32=True)


def _spread(values: Sequence[int], counts: Sequence[int], device: torch.device) -> Tensor:
    """(sum of counts,) int64: for each row the value of its clip."""
    values, rows = list(values), sum(counts)
    if _equal(values):
        return torch.full((rows,), values[0], dtype=torch.int64, device=device)
    table = torch.tensor(values, dtype=torch.int64).to(device, non_blocking=True)
    if _equal(counts):
        return table.unsqueeze(1).expand(-1, counts[0]).reshape(-1)
    repeats = torch.tensor(counts).to(device, non_blocking=True)
    return table.repeat_interleave(repeats, output_size=rows)


def _equal(values: Sequence[int]) -> bool:
    """Whether there are some and all are the same. Not by a set: hashing a length pins a compiled graph to it."""
    return len(values) > 0 and all(value == values[0] for value in values[1:])


def _starts(lengths: Sequence[int]) -> list[int]:
    starts = [0]
    for length in lengths[:-1]:
        starts.append(starts[-1] + length)
    return starts
