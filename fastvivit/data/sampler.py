"""The order in which a run sees its samples, resumable at any batch without reading what came before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from fastvivit.data.seeds import sample_seed


class EpochSampler(Sampler[list[int]]):
    """Batches of indices; the order is a permutation drawn from (seed, epoch). A DataLoader's batch_sampler.

    An iteration goes from batch `next_batch` of epoch `epoch` to the end of that epoch. It doesn't move the
    position, because loaders draw batches long before a run has used them; the run calls `advance` for every
    batch that it has really used, and what `state_dict` returns is then exactly where to go on::

        while sampler.epoch < epochs:
            dataset.set_epoch(sampler.epoch)
            for batch in DataLoader(dataset, batch_sampler=sampler, collate_fn=collate):
                ...
                sampler.advance()

    Args:
        source: how many samples there are, or the data set itself (needed for ``pair_twins``).
        batch_size: samples a batch.
        seed: the run's seed.
        shuffle: a new order every epoch; False keeps the order of the data set.
        drop_last: leave out a last batch that is not full.
        pair_twins: put each sample and its twin into the same batch, side by side; ``batch_size`` is then
            even. ``source`` has a ``twin_indices()``, as `ClipDataset` does. Samples without a twin are
            paired at random.

    Raises:
        ValueError: an argument outside its range, or fewer samples than one batch with ``drop_last``.
    """

    def __init__(
        self,
        source: int | Sized,
        batch_size: int,
        seed: int = 0,
        *,
        shuffle: bool = True,
        drop_last: bool = True,
        pair_twins: bool = False,
    ) -> None:
        length = source if isinstance(source, int) else len(source)
        if batch_size < 1:
            raise ValueError(f"batch_size: wanted at least 1, got {batch_size}")
        if length < (batch_size if drop_last else 1):
            raise ValueError(
                f"source: wanted at least one batch of {batch_size if drop_last else 1} samples, got {length}"
            )
        if pair_twins and batch_size % 2:
            raise ValueError(f"batch_size: wanted an even number with pair_twins, got {batch_size}")
        if pair_twins and not hasattr(source, "twin_indices"):
            raise ValueError("source: wanted a data set with twin_indices() for pair_twins, got a length")
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.shuffle, self.drop_last, self.pair_twins = shuffle, drop_last, pair_twins
        self.epoch = 0
        self.next_batch = 0
        self._pairs, self._singles = _units(source.twin_indices()) if pair_twins else (None, None)

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self.length // self.batch_size if self.drop_last else -(-self.length // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """The batches of this epoch from the current position on."""
        return self.batches(self.epoch, self.next_batch)

    def batches(self, epoch: int, begin: int = 0) -> Iterator[list[int]]:
        """The batches of an epoch from number ``begin`` on, wherever the position is."""
        order = self._order(epoch)
        for batch in range(begin, len(self)):
            yield order[batch * self.batch_size : (batch + 1) * self.batch_size].tolist()

    def set_epoch(self, epoch: int) -> None:
        """Go to the first batch of an epoch."""
        if epoch < 0:
            raise ValueError(f"epoch: wanted at least 0, got {epoch}")
        self.epoch, self.next_batch = epoch, 0

    def advance(self, batches: int = 1) -> None:
        """Note that a run has used so many batches; after the last of an epoch the next epoch begins."""
        epochs, self.next_batch = divmod(self.next_batch + batches, len(self))
        self.epoch += epochs

    def state_dict(self) -> dict[str, Any]:
        """The position, with what it is a position in; plain JSON."""
        return {
            "epoch": self.epoch,
            "next_batch": self.next_batch,
            "length": self.length,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
            "pair_twins": self.pair_twins,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a position.

        Raises:
            ValueError: the state belongs to a sampler that draws other batches.
        """
        own = self.state_dict()
        if state.keys() != own.keys():
            raise ValueError(f"state: wanted the fields {sorted(own)}, got {sorted(state)}")
        for name, value in own.items():
            if name not in ("epoch", "next_batch") and state[name] != value:
                raise ValueError(f"state: wanted {name} = {value!r} as in this sampler, got {state[name]!r}")
        if not (state["epoch"] >= 0 and 0 <= state["next_batch"] < len(self)):
            raise ValueError(
                f"state: wanted an epoch from 0 and a batch below {len(self)}, got epoch {state['epoch']}, "
                f"batch {state['next_batch']}"
            )
        self.epoch, self.next_batch = state["epoch"], state["next_batch"]

    def _order(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(sample_seed(self.seed, epoch, 0, "order"))

        def shuffled(indices: Tensor) -> Tensor:
            return indices[torch.randperm(len(indices), generator=generator)] if self.shuffle else indices

        if not self.pair_twins:
            return shuffled(torch.arange(self.length))
        # Everything moves in pairs, so none is ever cut by the edge of an even batch; one that is left over
        # comes last, and is another one in every epoch.
        singles = shuffled(self._singles)
        even = len(singles) // 2 * 2
        pairs = shuffled(torch.cat([self._pairs, singles[:even].reshape(-1, 2)]))
        return torch.cat([pairs.flatten(), singles[even:]])


def _units(twins: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Split samples into (n, 2) pairs of twins and (m,) those without (-1)."""
    twin = torch.as_tensor(twins, dtype=torch.int64)
    own = torch.arange(len(twin))
    paired = twin >= 0
    back = torch.where(paired, twin[twin.clamp(min=0)], -1)
    if (wrong := (paired & ((twin == own) | (back != own))).nonzero()).numel():
        index = int(wrong[0])
        raise ValueError(
            f"twin: wanted two samples that name each other, but sample {index} names {int(twin[index])} and "
            f"sample {int(twin[index])} names {int(back[index])}"
        )
    first = own[paired & (own < twin)]
    return torch.stack([first, twin[first]], 1), own[~paired]
