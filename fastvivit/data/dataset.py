"""Clips with captions as a map-style data set, which outlives broken files."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fastvivit.data.container import VideoError
from fastvivit.data.entry import Entry
from fastvivit.data.groups import check_captioned, files_of, kinds_of, twins_of
from fastvivit.data.guarded import GuardedReader
from fastvivit.data.images import read_image
from fastvivit.data.manifest import entries_of
from fastvivit.data.quarantine import Quarantine
from fastvivit.data.seeds import sample_seed
from fastvivit.data.video import check_clip, decoder_threads, read_clip

_log = logging.getLogger(__name__)


class Failure(NamedTuple):
    """A file that could not be read.

    Attributes:
        index: its entry in the data set.
        video: the path.
        reason: what was found.
    """

    index: int
    video: str
    reason: str


class ClipDataset(Dataset[dict[str, Any]]):
    """Decoded clips, or images, of a manifest.

    An item is a dict: ``video`` uint8 (C, T, H, W), of an image (C, H, W); ``caption``, one of the entry's
    captions, drawn from (seed, epoch, index); ``index``, the entry that was read; ``mask_seed``, an int below
    2**63 from (seed, epoch, index) to draw this sample's mask from; ``failures``, a tuple of the `Failure` met
    on the way.
    ``dataset[index, epoch]`` is the item of that epoch, ``dataset[index]`` that of ``set_epoch``.

    A file that can't be read is warned about once (logging), kept in `failures`, not tried again, and
    replaced by the next readable entry of a permutation that depends on the seed alone.
    In DataLoader workers, where `failures` of the parent can't be reached, the items carry them:
    ``dataset.record_failures(batch["failures"])``.

    Args:
        source: the path of a manifest or of tar shards, as ``read_manifest`` takes it, or its entries: clips or
            images, one kind in a data set.
        frames: pictures a clip; shorter clips repeat their last one.
        fps: pictures per second.
        size: pixels of the square, or ``(h, w)``.
        seed: the run's seed.
        cache: keep decoded clips in memory (each worker its own), ``frames * h * w * 3`` bytes each; items
            of the same entry then share it, so don't write into it.
        on_error: ``"replace"``, or ``"raise"`` the VideoError.
        deadline: seconds for one file, which a process of its own then decodes: see `GuardedReader`. None decodes in
            this process, where a file that hangs or crashes the decoder takes everything along.
        threads: decoder threads of a reader; None shares the cores among the DataLoader's workers.
        quarantine: a `Quarantine`, or the path of one: what it names counts as broken, and is never tried.

    Attributes:
        failures: the reason for every broken file, by its path.
        known: the entries that ``quarantine`` names.

    Raises:
        ValueError: an argument outside its range, a bad manifest, one with clips and images, or (from an item) no
            readable file at all.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Sequence[Entry],
        *,
        frames: int,
        fps: float = 1.0,
        size: int | tuple[int, int] = 256,
        seed: int = 0,
        cache: bool = False,
        on_error: str = "replace",
        deadline: float | None = None,
        threads: int | None = None,
        quarantine: Quarantine | str | os.PathLike[str] | None = None,
    ) -> None:
        check_clip(frames, fps, size, 0.0, None, None)
        decoder_threads(threads)
        if on_error not in ("replace", "raise"):
            raise ValueError(f"on_error: wanted 'replace' or 'raise', got {on_error!r}")
        self.entries = entries_of(source)
        if not self.entries:
            raise ValueError("source: wanted at least one entry, got none")
        kinds = kinds_of(self.entries)
        if len(kinds) > 1:
            raise ValueError("source: wanted clips or images, got both; give them as two sources")
        check_captioned(self.entries)
        self.kind = kinds.pop()
        self.frames, self.fps, self.size, self.seed, self.on_error = frames, fps, size, seed, on_error
        self.threads, self._reader = threads, None if deadline is None else GuardedReader(deadline)
        self.failures: dict[str, str] = {}
        self._cache: dict[int, Tensor] | None = {} if cache else None
        # In shared memory: workers that live for the whole run see a new epoch, and what the others found.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._broken = torch.zeros(len(self.entries), dtype=torch.bool).share_memory_()
        self.known = () if quarantine is None else _known(self.entries, quarantine)
        self.record_failures(self.known)

    def __len__(self) -> int:
        """Entries, broken ones included."""
        return len(self.entries)

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Any]:
        """One item; see the class."""
        index, epoch = index if isinstance(index, tuple) else (index, self.epoch)
        if not 0 <= index < len(self.entries):
            raise IndexError(f"index: wanted 0 to {len(self.entries) - 1}, got {index}")
        found: list[Failure] = []
        for candidate in self._candidates(index):
            video = self._read(candidate, epoch, found)
            if video is None:
                continue
            captions = self.entries[candidate].captions
            draw = sample_seed(self.seed, epoch, index, "caption")
            return {
                "video": video,
                "caption": captions[draw % len(captions)],
                "index": candidate,
                "mask_seed": sample_seed(self.seed, epoch, index, "mask"),
                "failures": tuple(found),
            }
        example = next(iter(self.failures.items()), ("", "found by another worker"))
        raise ValueError(
            f"source: wanted at least one readable video, all {len(self.entries)} entries are broken, for "
            f"example {example[0]}: {example[1]}"
        )

    @property
    def epoch(self) -> int:
        """The epoch that captions and mask seeds are drawn for."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Draw captions and mask seeds for this epoch, in living workers too; call it before iterating."""
        if epoch < 0:
            raise ValueError(f"epoch: wanted at least 0, got {epoch}")
        self._epoch.fill_(epoch)

    def record_failures(self, failures: Iterable[Failure]) -> None:
        """Take over what workers found, from the items or batches they sent."""
        for failure in failures:
            self._broken[failure.index] = True
            self.failures.setdefault(failure.video, failure.reason)

    def clip(self, index: int) -> Tensor:
        """The whole clip of an entry, or of what replaces it where that is broken: its item's ``video``."""
        return self[index]["video"]

    @staticmethod
    def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A batch of this data set's items: ``fastvivit.data.collate``."""
        return collate(items)

    def twin_indices(self) -> list[int]:
        """For every entry, the entry whose video is its twin, or -1.

        Raises:
            ValueError: a twin that no entry, or more than one, has as its video.
        """
        return twins_of(self.entries)

    @cached_property
    def _replacements(self) -> Tensor:
        generator = torch.Generator().manual_seed(sample_seed(self.seed, 0, 0, "replacement"))
        return torch.randperm(len(self.entries), generator=generator)

    def _candidates(self, index: int) -> Iterator[int]:
        """The entry itself, then all others, from its own place in the permutation on."""
        yield index
        place = int((self._replacements == index).nonzero())
        for step in range(1, len(self.entries)):
            yield int(self._replacements[(place + step) % len(self.entries)])

    def _read(self, index: int, epoch: int, found: list[Failure]) -> Tensor | None:
        """The clip of an entry in an epoch, or None and a new line in ``found``."""
        if self._broken[index]:
            return None
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        entry = self.entries[index]
        try:
            video = read_entry(entry, self.frames, self.fps, self.size, reader=self._reader, threads=self.threads)
        except (VideoError, OSError) as error:
            if self.on_error == "raise":
                raise
            failure = Failure(index, str(entry.video), str(error))
            found.append(failure)
            self.record_failures((failure,))
            _log.warning("broken video, replaced (%d so far): %s", int(self._broken.sum()), error)
            return None
        if self._cache is not None:
            self._cache[index] = video
        return video


def read_entry(
    entry: Entry,
    frames: int,
    fps: float,
    size: int | tuple[int, int],
    *,
    pad: bool = True,
    reader: GuardedReader | None = None,
    threads: int | None = None,
) -> Tensor:
    """``read_clip`` of an entry's part of its file, ``read_image`` of an image; by ``reader`` where there is one."""
    if entry.kind == "image":
        return (read_image if reader is None else reader.read_image)(entry.video, size)
    read = read_clip if reader is None else reader.read_clip
    return read(
        entry.video, frames, fps, size, entry.start, stream=entry.stream, pad=pad, end=entry.end, threads=threads
    )


def _known(entries: Sequence[Entry], quarantine: Quarantine | str | os.PathLike[str]) -> tuple[Failure, ...]:
    bad = quarantine if isinstance(quarantine, Quarantine) else Quarantine(quarantine)
    suspects = [index for index, file in enumerate(files_of(entries)) if bad.names(file)] if len(bad) else []
    found = ((index, entries[index], bad.reason(entries[index])) for index in suspects)
    return tuple(Failure(index, str(entry.video), reason) for index, entry, reason in found if reason is not None)


def stack_clips(videos: Sequence[Tensor]) -> Tensor | list[Tensor]:
    """Clips (C, T, H, W) as one tensor (B, C, T, H, W), images as (B, C, H, W), or as they are where shapes differ."""
    if len({video.shape for video in videos}) > 1:
        return list(videos)
    # Stacked in decoder order: rows are copied whole, and embedding takes these strides as they are.
    return torch.stack([video.movedim(0, -1) for video in videos]).movedim(-1, 1)


def collate(items: Sequence[dict[str, Any]], stack: Callable[[Sequence[Any]], Any] = stack_clips) -> dict[str, Any]:
    """Make a batch of items.

    Args:
        items: of a ``ClipDataset``, or of one whose ``video`` is something else.
        stack: makes one of the items' ``video``.

    Returns:
        ``video`` uint8 (B, C, T, H, W), laid out in memory as (B, T, H, W, C) like the clips, of images
        (B, C, H, W), or a list of (C, T, H, W) where shapes differ; ``caption``, a list; ``index`` and
        ``mask_seed``, int64 (B,); ``failures``, those of all items.
    """
    return {
        "video": stack([item["video"] for item in items]),
        "caption": [item["caption"] for item in items],
        "index": torch.tensor([item["index"] for item in items], dtype=torch.int64),
        "mask_seed": torch.tensor([item["mask_seed"] for item in items], dtype=torch.int64),
        "failures": tuple(failure for item in items for failure in item["failures"]),
    }
