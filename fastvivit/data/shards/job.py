"""A packing that may be killed at any instant, and goes on where it was: shard by shard, each whole or not there."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastvivit._folders import file_written_whole
from fastvivit.data.entry import Entry
from fastvivit.data.quarantine import QUARANTINE
from fastvivit.data.shards.files import ENTRIES, INDEX, Shard, read_json, write_json
from fastvivit.data.shards.layout import Layout

WORK = ".packing"
# Names under which files are written before they take their places.
_SCRATCH = (".shard-*", *(f".{name}?*" for name in (INDEX, ENTRIES, QUARANTINE)))


@dataclass(frozen=True, kw_only=True)
class Part:
    """A run of the manifest's entries that becomes one shard.

    Attributes:
        number: counts from 0.
        entries: the places in the manifest.
    """

    number: int
    entries: range

    @property
    def file(self) -> str:
        """Name of the shard."""
        return f"shard-{self.number:05d}.bin"


@dataclass(frozen=True, kw_only=True)
class Written:
    """What became of a part.

    Attributes:
        shard: the file; None where nothing could be read.
        entries: the places in the manifest of its clips.
        failures: place and reason of each that could not be read.
    """

    shard: Shard | None
    entries: list[int]
    failures: list[tuple[int, str]]


def parts_of(entries: int, layout: Layout, shard_size: int) -> list[Part]:
    """Shards of at most so many bytes, but of one clip at least."""
    each = max(1, shard_size // layout.clip_bytes)
    return [Part(number=n, entries=range(a, min(a + each, entries))) for n, a in enumerate(range(0, entries, each))]


def source_hash(entries: Sequence[Entry], layout: Layout, fps: float | None, each: int) -> str:
    """A hash of all that says what will be in the shards."""
    digest = hashlib.sha256(json.dumps([layout.shape, layout.tubelet, fps, each]).encode())
    for entry in entries:  # one by one: as one text, those of a million take as much memory again
        video, twin, part = entry.video.absolute(), entry.twin, (entry.start, entry.end, entry.stream)
        row = [str(video), entry.captions, *part, str(twin), entry.extra]
        digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


@contextmanager
def working(folder: Path, source: str) -> Iterator[Path]:
    """A folder for what is known of the finished parts, this process's alone.

    Raises:
        ValueError: another process packs here, or another packing was begun here.
    """
    work = folder / WORK
    work.mkdir(parents=True, exist_ok=True)
    lock = os.open(work / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"out: wanted a folder of its own, another process is packing into {folder}") from None
        job = work / "job.json"
        if job.exists() and read_json(job).get("source") != source:
            raise ValueError(
                f"out: {folder} holds part of a packing of another manifest or other settings; give another folder, "
                "or remove it"
            )
        write_json(job, {"source": source})
        # Left by a process that was killed.
        for pattern in _SCRATCH:
            for scratch in folder.glob(pattern):
                scratch.unlink()
        yield work
    finally:
        os.close(lock)


def finished(work: Path, part: Part) -> Written | None:
    """What became of a part, if it is done and its shard as long as it was."""
    note = work / f"{part.file}.json"
    if not note.is_file():
        return None
    known: dict[str, Any] = read_json(note)
    shard = None if known["shard"] is None else Shard(**known["shard"])
    if shard is not None:
        file = work.parent / shard.file
        if not file.is_file() or file.stat().st_size != shard.bytes:
            return None
    return Written(shard=shard, entries=known["entries"], failures=[tuple(row) for row in known["failures"]])


def write_part(work: Path, part: Part, clips: Iterator[np.ndarray | str]) -> Written:
    """Write a shard, then the note that it is there.

    Args:
        work: of ``working``.
        part: which.
        clips: for each entry its bytes, or why it can't be read.
    """
    entries, failures, count, digest = [], [], 0, hashlib.sha256()
    target = work.parent / part.file
    with file_written_whole(target) as scratch, scratch.open("wb") as stream:
        for place in part.entries:
            clip = next(clips)
            if isinstance(clip, str):
                failures.append((place, clip))
                continue
            stream.write(clip.data)
            digest.update(clip.data)
            count += clip.nbytes
            entries.append(place)
    shard = None
    if entries:
        shard = Shard(file=part.file, clips=len(entries), bytes=count, sha256=digest.hexdigest())
    else:
        target.unlink()
    note = {"shard": None if shard is None else vars(shard), "entries": entries, "failures": failures}
    write_json(work / f"{part.file}.json", note)
    return Written(shard=shard, entries=entries, failures=failures)


def clean(folder: Path) -> None:
    """Remove what only an unfinished packing needs."""
    shutil.rmtree(folder / WORK, ignore_errors=True)
