"""Packed clips as a data set: each item the kept tubelets of a clip under its own mask."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastvivit._checks import require_tensor
from fastvivit.data.dataset import ClipDataset, Failure, collate
from fastvivit.data.seeds import sample_seed
from fastvivit.data.shards.files import read_pack
from fastvivit.data.shards.layout import grouped_keep, storage_order
from fastvivit.data.shards.reader import ShardReader
from fastvivit.modules.clips import draw_keep
from fastvivit.modules.tubelets import Tubelets, require_ascending

_STRATEGIES = ("grouped", "random", "tube", "frame")


class PackedDataset(ClipDataset):
    """A ``ClipDataset`` out of packed shards, whose items have the kept ``Tubelets`` of one clip as their ``video``.

    Images are packed and masked patch by patch in the same way.

    Masks, captions and seeds are those of a ``ClipDataset`` of the same entries; only the kept tubelets are read. With
    a strategy of ``F.random_keep`` the ids are those that the training loop draws from the item's ``mask_seed``.

    Args:
        folder: of ``fastvivit data pack``.
        mask_ratio: share of each clip's tubelets to leave out; 0 reads all.
        strategy: "grouped": whole groups of tubelets that are neighbours on the disk, random sets of places, so that
            exactly the kept share of a clip's pages is read (``grouped_keep``). "random", "tube" or "frame", as in
            ``F.random_keep``: at a ratio of 0.75 they touch most pages, and save memory and copies, not disk.
        seed: the run's seed.

    Attributes:
        layout: geometry of the clips.

    Raises:
        ValueError: an argument outside its range, no pack, a damaged one; the file is named.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        mask_ratio: float = 0.0,
        strategy: str = "grouped",
        seed: int = 0,
    ) -> None:
        if not 0 <= mask_ratio < 1:
            raise ValueError(f"mask_ratio: wanted 0 <= ratio < 1, got {mask_ratio}")
        if strategy not in _STRATEGIES:
            raise ValueError(f"strategy: wanted one of {', '.join(map(repr, _STRATEGIES))}, got {strategy!r}")
        found = read_pack(Path(folder))
        shape = found.layout.shape
        # An image is a clip of one picture, whose rate nobody asks for.
        look = {"frames": shape[-3] if len(shape) == 3 else 1, "fps": found.fps or 1.0, "size": shape[-2:]}
        super().__init__(found.entries, **look, seed=seed)
        self.layout, self.mask_ratio, self.strategy = found.layout, mask_ratio, strategy
        self._places = found.places
        self._reader = ShardReader(found.files, found.layout)

    def tubelets(self, index: int, keep: Tensor | None = None) -> Tubelets:
        """Tubelets of an entry as a batch of one clip.

        Args:
            index: which entry.
            keep: (K,) int64 ids, ascending; None for all.

        Raises:
            ValueError: ids that are not, a shard that ends too early.
        """
        tokens = self.layout.tokens
        keep = torch.arange(tokens) if keep is None else keep
        require_tensor("keep", keep, (1,), (torch.int64,))
        # Before they become places on the disk.
        require_ascending(keep, (len(keep),), tokens)
        shard, row, entry = self._places[index].tolist()
        return self._tubelets(shard, row, storage_order(entry, tokens), keep)

    def clip(self, index: int) -> Tensor:
        """The whole clip of an entry, uint8 (C, T, H, W), as ``read_clip`` gave it; of an image (C, H, W)."""
        pixels = self.tubelets(index).pixels.movedim(1, -1)
        axes = len(self.layout.tubelet)
        blocks = pixels.unflatten(0, self.layout.grid)
        order = [axis + part for axis in range(axes) for part in (0, axes)]
        return blocks.permute(*order, -1).reshape(*self.layout.shape, -1).movedim(-1, 0)

    def mask(self, index: int, epoch: int) -> Tensor:
        """The (K,) ids, ascending, that an item of an epoch keeps."""
        return self._mask(index, epoch, storage_order(int(self._places[index, 2]), self.layout.tokens))

    @staticmethod
    def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A batch of items: ``fastvivit.data.collate``, with one ``Tubelets`` of all clips as its ``video``."""
        return collate(items, Tubelets.stack)

    def _read(self, index: int, epoch: int, found: list[Failure]) -> Tubelets:
        shard, row, entry = self._places[index].tolist()
        order = storage_order(entry, self.layout.tokens)
        return self._tubelets(shard, row, order, self._mask(index, epoch, order))

    def _mask(self, index: int, epoch: int, order: np.ndarray) -> Tensor:
        if self.mask_ratio == 0:
            return torch.arange(self.layout.tokens)
        generator = torch.Generator().manual_seed(sample_seed(self.seed, epoch, index, "mask"))
        if self.strategy == "grouped":
            return grouped_keep(self.layout, order, self.mask_ratio, generator)
        # Of an image, one slot, tubes are random places and frames are all there is.
        strategy = self.strategy if self.kind == "video" else "random"
        grid = (1, *self.layout.grid)[-3:]
        return draw_keep(1, (grid,), self.mask_ratio, generator=generator, strategy=strategy).ids[0]

    def _tubelets(self, shard: int, row: int, order: np.ndarray, keep: Tensor) -> Tubelets:
        rows = np.empty_like(order)
        rows[order] = np.arange(len(order))
        pixels = torch.from_numpy(self._reader.read(shard, row, rows[keep.numpy()]))
        pixels = pixels.view(-1, *self.layout.tubelet, 3).movedim(-1, 1)
        return Tubelets(pixels, keep.unsqueeze(0), self.layout.shape)
