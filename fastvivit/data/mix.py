"""Several data sets in one stream of batches: each has its own order, epochs and share of every batch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch.utils.data import Dataset, Sampler

from fastvivit.data.dataset import ClipDataset
from fastvivit.data.sampler import EpochSampler


class Draw(NamedTuple):
    """Which sample is wanted.

    Attributes:
        source: of the data sets.
        index: in that data set.
        epoch: of that data set, for which captions and masks are drawn.
    """

    source: int
    index: int
    epoch: int


class Mix(Dataset[dict[str, Any]]):
    """Data sets side by side, their items asked for by a ``Draw``; items say their ``source``, too.

    Args:
        sources: data sets whose items are asked for by ``(index, epoch)``, as ``ClipDataset``'s.

    Raises:
        ValueError: no data set.
    """

    def __init__(self, sources: Sequence[ClipDataset]) -> None:
        if not sources:
            raise ValueError("sources: wanted at least one data set, got none")
        self.sources = list(sources)

    def __len__(self) -> int:
        """Samples of all data sets."""
        return sum(map(len, self.sources))

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        """An item of one of the data sets, and the ``seconds`` that reading it took."""
        began = time.perf_counter()
        item = self.sources[draw.source][draw.index, draw.epoch]
        return item | {"source": draw.source, "seconds": time.perf_counter() - began}

    def collate(self, items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """One batch for each data set that the items came from, in the order of the data sets.

        ``source`` says which it is, ``seconds`` how long its items took to read, one after the other.
        """
        found: dict[int, list[dict[str, Any]]] = {}
        for item in items:
            found.setdefault(item["source"], []).append(item)
        return [
            self.sources[source].collate(found[source])
            | {"source": source, "seconds": sum(item["seconds"] for item in found[source])}
            for source in sorted(found)
        ]


class MixSampler(Sampler[list[Draw]]):
    """Endless batches with a fixed share of each data set: a DataLoader's batch_sampler for a ``Mix``.

    Each data set goes through its own epochs, one permutation after the other. As with ``EpochSampler``, iterating
    moves nothing; ``advance`` does, and ``state_dict`` says where to go on, without reading what came before. With
    several ranks each takes its part of the same batches: what a step is made of does not depend on how many there
    are, so a run may go on with another number of them.

    Args:
        samplers: one a data set; their batch sizes are the shares.
        rank: whose part of the batches to take.
        ranks: how many parts; they divide every share.

    Raises:
        ValueError: no sampler, a share that the ranks do not divide, one that keeps batches that are not full.
    """

    def __init__(self, samplers: Sequence[EpochSampler], *, rank: int = 0, ranks: int = 1) -> None:
        if not samplers:
            raise ValueError("samplers: wanted at least one, got none")
        if not 0 <= rank < ranks:
            raise ValueError(f"rank: wanted 0 to {ranks - 1}, got {rank}")
        for sampler in samplers:
            if sampler.batch_size % ranks:
                raise ValueError(
                    f"samplers: wanted batches that {ranks} ranks divide evenly, got one of {sampler.batch_size}"
                )
            if not sampler.drop_last:
                raise ValueError("samplers: wanted drop_last, got one whose last batch may not be full")
        self.samplers, self.rank, self.ranks = list(samplers), rank, ranks

    @property
    def epoch(self) -> int:
        """The first data set's."""
        return self.samplers[0].epoch

    def __iter__(self) -> Iterator[list[Draw]]:
        """This rank's part of the batches from the current position on, without end."""
        streams = [self._stream(source) for source in range(len(self.samplers))]
        while True:
            yield [draw for stream in streams for draw in next(stream)]

    def _stream(self, source: int) -> Iterator[list[Draw]]:
        sampler = self.samplers[source]
        part = sampler.batch_size // self.ranks
        mine = slice(self.rank * part, (self.rank + 1) * part)
        epoch, begin = sampler.epoch, sampler.next_batch
        while True:
            for batch in sampler.batches(epoch, begin):
                yield [Draw(source, index, epoch) for index in batch[mine]]
            epoch, begin = epoch + 1, 0

    def advance(self, batches: int = 1) -> None:
        """Note that a run has used so many batches."""
        for sampler in self.samplers:
            sampler.advance(batches)

    def state_dict(self) -> dict[str, Any]:
        """The position in every data set; plain JSON."""
        return {"sources": [sampler.state_dict() for sampler in self.samplers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a position.

        Raises:
            ValueError: the state belongs to samplers that draw other batches.
        """
        states = state.get("sources")
        if not isinstance(states, list) or len(states) != len(self.samplers):
            raise ValueError(f"state: wanted the positions of {len(self.samplers)} sources, got {states!r}")
        for sampler, own in zip(self.samplers, states, strict=True):
            sampler.load_state_dict(own)
