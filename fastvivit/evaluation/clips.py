"""Clips of a manifest in its order, as long as they are; files that can't be read are told, not replaced."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastvivit.data import Entries, Entry, VideoError, sample_seed
from fastvivit.data.dataset import read_entry
from fastvivit.data.manifest import entries_of as read_entries
from fastvivit.data.video import check_clip

Manifest = str | os.PathLike[str] | Sequence[Entry]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How clips are read.

    Attributes:
        frames: the most pictures of a clip; None takes what the largest of the models takes.
        fps: pictures per second.
        size: pixels of the square, or (h, w); None takes the models' own.
        batch_size: clips whose texts are generated at a time; they are encoded one by one.
        workers: processes that decode; 0 decodes in this one.
        progress: called with the number of clips done since the last call.
    """

    frames: int | None = None
    fps: float = 1.0
    size: int | tuple[int, int] | None = None
    batch_size: int = 8
    workers: int = 0
    progress: Callable[[int], Any] | None = None

    def __post_init__(self) -> None:
        """Refuse what no clip can be read with."""
        check_clip(
            1 if self.frames is None else self.frames, self.fps, 1 if self.size is None else self.size, 0.0, None, None
        )
        if self.batch_size < 1:
            raise ValueError(f"batch_size: wanted at least 1, got {self.batch_size}")
        if self.workers < 0:
            raise ValueError(f"workers: wanted at least 0, got {self.workers}")

    def done(self, clips: int) -> None:
        """Tell ``progress``."""
        if self.progress is not None and clips:
            self.progress(clips)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One entry of a manifest and its pictures.

    Attributes:
        index: its place among the manifest's clips.
        entry: what the manifest says.
        video: uint8 (C, T, H, W), no longer than the file or the entry's ``end``; None where it can't be read.
        fps: pictures per second.
        error: why it can't be read.
    """

    index: int
    entry: Entry
    video: Tensor | None
    fps: float
    error: str = ""

    def generator(self, seed: int) -> torch.Generator:
        """Randomness for this clip's mask: the same whatever is evaluated beside it."""
        return torch.Generator().manual_seed(sample_seed(seed, 0, self.index, "mask"))

    def segments(self) -> list[tuple[float, float]] | None:
        """The events in the clip, which the entry's field ``segments`` lists as [start, end] in seconds of the file.

        They are counted from the clip's start. None where there are none.
        """
        first, length = self.entry.start, self.video.shape[1] / self.fps
        given = [(start - first, end - first) for start, end in self.entry.extra.get("segments", ())]
        return [(max(0.0, start), end) for start, end in given if end > max(0.0, start) and start < length] or None


def entries_of(manifest: Manifest) -> Sequence[Entry]:
    """The entries of a manifest, given as its path or as they are. Raises ``ValueError`` where there are none."""
    entries = read_entries(manifest)
    if not entries:
        raise ValueError("manifest: wanted at least one entry, got none")
    if not isinstance(entries, Entries) and (other := [one for one in entries if not isinstance(one, Entry)]):
        raise ValueError(f"manifest: wanted a path or entries, got a {type(other[0]).__name__} among them")
    return entries


def read_clips(entries: Sequence[Entry], reading: Reading) -> Iterator[Clip]:
    """Every entry's clip, in order; ``reading.frames`` and ``reading.size`` must be given."""
    loader = DataLoader(
        _Files(entries, reading),
        batch_size=None,
        num_workers=reading.workers,
        generator=torch.Generator(),  # or the loader would draw from the caller's random numbers
    )
    for index, (video, error) in enumerate(loader):
        yield Clip(index=index, entry=entries[index], video=video, fps=reading.fps, error=error)


class _Files(Dataset[tuple[Tensor | None, str]]):
    def __init__(self, entries: Sequence[Entry], reading: Reading) -> None:
        self.entries, self.frames, self.fps, self.size = entries, reading.frames, reading.fps, reading.size

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> tuple[Tensor | None, str]:
        entry = self.entries[index]
        try:
            video = read_entry(entry, self.frames, self.fps, self.size, pad=False)
        except (VideoError, OSError) as error:
            return None, str(error)
        return video, ""
