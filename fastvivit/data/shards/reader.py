"""Reading the tubelets that are wanted out of packed shards, and nothing else."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastvivit.data.shards.layout import Layout

_OPEN_FILES = 64  # of a thousand shards; a process may often have no more than 1,024


class ShardReader:
    """Rows out of shards. Files are opened when they are first read, and stay open, some of them.

    It can be sent to another process, and outlives a fork: reads have their own position.

    Args:
        files: the shards.
        layout: of all of them.
    """

    def __init__(self, files: Sequence[Path], layout: Layout) -> None:
        self.files, self.layout = list(files), layout
        self._open: OrderedDict[int, int] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_open", {}).values():
            os.close(descriptor)

    def read(self, shard: int, clip: int, rows: np.ndarray) -> np.ndarray:
        """Tubelets at storage rows of a clip.

        Neighbours are read together. The kernel is told all ranges before the first is waited for, so a disk works on
        them at once.

        Args:
            shard: which file.
            clip: its place in the file.
            rows: (K,) int64, distinct, in any order; they are checked against nothing but the file's end.

        Returns:
            (K, tubelet bytes) uint8, in the order of ``rows``.

        Raises:
            ValueError: the file ends before, or can't be read.
        """
        size = self.layout.tubelet_bytes
        ranks = rows.argsort()
        offsets = self.layout.offsets(rows[ranks]) + clip * self.layout.clip_bytes
        breaks = np.flatnonzero(np.diff(offsets) != size) + 1
        firsts, lasts = [0, *breaks.tolist()], [*breaks.tolist(), len(rows)]
        starts = offsets[firsts].tolist()
        found = np.empty((len(rows), size), np.uint8)
        pixels, file = memoryview(found).cast("B"), self.files[shard]
        try:
            descriptor = self._descriptor(shard)
            if len(starts) > 1:
                for start, first, last in zip(starts, firsts, lasts, strict=True):
                    _advise(descriptor, start, (last - first) * size, "POSIX_FADV_WILLNEED")
            for start, first, last in zip(starts, firsts, lasts, strict=True):
                _fill(descriptor, pixels[first * size : last * size], start, file)
        except OSError as error:
            raise ValueError(f"{file}: can't be read: {error.strerror}") from error
        if len(starts) == 1 and np.array_equal(ranks, np.arange(len(rows))):
            return found
        out = np.empty_like(found)
        out[ranks] = found
        return out

    def _descriptor(self, shard: int) -> int:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        while len(self._open) >= _OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        descriptor = os.open(self.files[shard], os.O_RDONLY | os.O_CLOEXEC)
        # No reading ahead: what follows is masked.
        _advise(descriptor, 0, 0, "POSIX_FADV_RANDOM")
        self._open[shard] = descriptor
        return descriptor


def _advise(descriptor: int, start: int, length: int, what: str) -> None:
    if hasattr(os, "posix_fadvise"):  # not on macOS
        os.posix_fadvise(descriptor, start, length, getattr(os, what))


def _fill(descriptor: int, buffer: memoryview, start: int, file: Path) -> None:
    done = 0
    while done < len(buffer):
        got = os.preadv(descriptor, [buffer[done:]], start + done)
        if got == 0:
            raise ValueError(f"{file}: wanted {len(buffer)} bytes from {start} on, the file ends after {start + done}")
        done += got
