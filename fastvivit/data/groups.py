"""What is asked of all entries of a data set at once: which are one clip, which are twins, what kind they are."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fastvivit.data.entries import Entries
from fastvivit.data.entry import Entry

# Bytes of a hash that stands for a path: no two paths will ever have the same.
_DIGEST = 16


def clips_of(entries: Sequence[Entry]) -> dict[int, Entry]:
    """Entries of the same part of the same file as one, by the place of the first of them, in order.

    It has the captions of all; its other fields are the first's. Manifests may have a line a caption. As clips of
    their own, such entries would tie with each other in retrieval, and a text would be held against one of its
    references at a time.
    """
    clips: dict[int, Entry] = {}
    captions: dict[int, list[str]] = {}
    first: dict[tuple[Any, ...], int] = {}
    for place, entry in enumerate(entries):
        own = first.setdefault((entry.video, entry.start, entry.end, entry.stream), place)
        if own == place:
            clips[own] = entry
        else:
            captions.setdefault(own, list(clips[own].captions)).extend(entry.captions)
    return clips | {place: replace(clips[place], captions=tuple(every)) for place, every in captions.items()}


def one_a_clip(entries: Sequence[Entry]) -> list[Entry]:
    """The clips of ``clips_of`` alone."""
    return list(clips_of(entries).values())


def twins_of(entries: Sequence[Entry]) -> list[int]:
    """For every entry, the entry whose video is its twin, or -1.

    Raises:
        ValueError: a twin that no entry, or more than one, has as its video.
    """
    twins = np.full(len(entries), -1, np.int64)
    paired = _paired(entries)
    if not len(paired):
        return twins.tolist()
    videos = _digests(files_of(entries))
    wanted = _digests(_twin_files(entries, paired))
    order = np.argsort(videos, kind="stable")
    first, after = (np.searchsorted(videos, wanted, side, sorter=order) for side in ("left", "right"))
    if (wrong := np.flatnonzero(after - first != 1)).size:
        entry, found = entries[int(paired[wrong[0]])], int((after - first)[wrong[0]])
        raise ValueError(
            f"twin: wanted one entry with the video {entry.twin}, the twin of {entry.video}, found {found}"
        )
    twins[paired] = order[first]
    return twins.tolist()


def check_captioned(entries: Sequence[Entry]) -> None:
    """Refuse entries that nothing is said of. Raises ``ValueError``."""
    if isinstance(entries, Entries):
        silent = np.flatnonzero(entries.captions == 0)
    else:
        silent = [place for place, entry in enumerate(entries) if not entry.captions]
    if len(silent):
        raise ValueError(
            f"caption: wanted a sentence or a list of them for every clip, {len(silent)} of {len(entries)} have none, "
            f"for example {entries[int(silent[0])].video}"
        )


def kinds_of(entries: Sequence[Entry]) -> set[str]:
    """The kinds that there are among entries."""
    if isinstance(entries, Entries):
        return {"image" if image else "video" for image in np.unique(entries.images)}
    return {entry.kind for entry in entries}


def has_twins(entries: Sequence[Entry]) -> bool:
    """Whether any entry names a twin."""
    return len(_paired(entries)) > 0


def files_of(entries: Sequence[Entry]) -> Iterator[str]:
    """The absolute path of each entry's file, as text without ".."."""
    if isinstance(entries, Entries):
        for row, folder in entries.rows():
            yield _absolute(folder, row["video"] if "video" in row else row["image"])
    else:
        for entry in entries:
            yield _absolute(entry.video)


def captions_of(entries: Sequence[Entry]) -> Iterator[str]:
    """Every caption of every entry."""
    if isinstance(entries, Entries):
        for row, _ in entries.rows():
            caption = row["caption"]
            yield from (caption,) if isinstance(caption, str) else caption
    else:
        for entry in entries:
            yield from entry.captions


def _paired(entries: Sequence[Entry]) -> np.ndarray:
    """Places of the entries that name a twin."""
    if isinstance(entries, Entries):
        return np.flatnonzero(entries.paired)
    return np.array([place for place, entry in enumerate(entries) if entry.twin is not None], np.int64)


def _twin_files(entries: Sequence[Entry], paired: np.ndarray) -> Iterator[str]:
    if isinstance(entries, Entries):
        for row, folder in entries.take(paired).rows():
            yield _absolute(folder, row["twin"])
    else:
        for place in paired.tolist():
            yield _absolute(entries[place].twin)


def _absolute(*parts: str | os.PathLike[str]) -> str:
    return os.path.abspath(os.path.join(*parts))  # noqa: PTH100, PTH118 (normalises "..", and a million are quick)


def _digests(files: Iterator[str]) -> np.ndarray:
    """A hash of each path, which sorts and compares in place of it."""
    digests = bytearray()
    for file in files:
        digests += hashlib.blake2b(file.encode(errors="surrogatepass"), digest_size=_DIGEST).digest()
    return np.frombuffer(digests, f"S{_DIGEST}")
