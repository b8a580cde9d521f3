"""Decoding a manifest once and for all: ``fastvivit data pack``."""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from fastvivit.data.container import VideoError
from fastvivit.data.dataset import Failure
from fastvivit.data.entries import Entries
from fastvivit.data.entry import Entry
from fastvivit.data.groups import check_captioned, kinds_of
from fastvivit.data.manifest import entries_of
from fastvivit.data.quarantine import QUARANTINE, Quarantine, bad_of, write_quarantine
from fastvivit.data.shards.decode import Read, decoding
from fastvivit.data.shards.files import Pack, is_pack, read_pack, write_pack
from fastvivit.data.shards.job import Part, Written, clean, finished, parts_of, source_hash, working, write_part
from fastvivit.data.shards.layout import Layout, layout_of, storage_order
from fastvivit.data.video import check_clip
from fastvivit.modules.tubelets import Tubelets

_BLOCK = 16 << 20


@dataclass(frozen=True, kw_only=True)
class PackResult:
    """What ``pack`` left in a folder.

    Attributes:
        folder: it.
        clips: packed ones.
        bytes: of all shards.
        failures: what could not be read; also in ``quarantine.jsonl``, a `Quarantine`.
    """

    folder: Path
    clips: int
    bytes: int
    failures: tuple[Failure, ...]


def pack(
    source: str | os.PathLike[str] | Sequence[Entry],
    out: str | os.PathLike[str],
    *,
    frames: int = 16,
    fps: float = 1.0,
    size: int | tuple[int, int] = 256,
    tubelet: Sequence[int] = (2, 16, 16),
    shard_size: int = 10**9,
    workers: int = 1,
    deadline: float | None = 60.0,
    progress: Callable[[int], object] | None = None,
) -> PackResult:
    """Decode every clip, or image, of a manifest into shards, of which a masked step reads the kept tubelets alone.

    The folder is a pack when it has an index, which comes last. Killed at any instant, the same call goes on with the
    shard it was writing. What can't be decoded is left out, with its reason.

    Args:
        source: the path of a manifest, or its entries.
        out: the folder.
        frames: pictures a clip; shorter clips repeat their last one. Not used of images.
        fps: pictures per second. Not used of images.
        size: pixels of the square, or ``(h, w)``.
        tubelet: of the encoder that will read them, (t, h, w); of images the last two, their patches.
        shard_size: bytes of a shard at most, though one clip at least.
        workers: clips decoded at a time.
        deadline: seconds for one clip, which a process of its own decodes: a file that hangs or crashes it is left out.
            None decodes in this process.
        progress: called with the number of entries done since the last call.

    Returns:
        What is there now; of a folder that is complete already, without reading any clip.

    Raises:
        ValueError: an argument outside its range, a bad manifest, clips beside images, a folder of another pack,
            nothing that can be read.
    """
    check_clip(frames, fps, size, 0.0, None, None)
    if shard_size < 1 or workers < 1:
        raise ValueError(f"shard_size, workers: wanted at least 1 each, got {shard_size} and {workers}")
    entries = entries_of(source)
    if not entries:
        raise ValueError("source: wanted at least one entry, got none")
    if len(kinds_of(entries)) > 1:
        raise ValueError("source: wanted clips or images, got both; pack them into two folders")
    check_captioned(entries)
    folder, still = Path(out), entries[0].kind == "image"
    layout = layout_of(None, size, tuple(tubelet)[-2:]) if still else layout_of(frames, size, tubelet)
    rate = None if still else fps
    parts = parts_of(len(entries), layout, shard_size)
    digest = source_hash(entries, layout, rate, len(parts[0].entries))
    if is_pack(folder):
        complete = _same(folder, digest)
        clean(folder)
        return _result(complete, entries)
    with decoding(deadline, workers) as decoder, working(folder, digest) as work:
        done = {part.number: written for part in parts if (written := finished(work, part)) is not None}
        _tell(progress, sum(len(part.entries) for part in parts if part.number in done))
        todo = [part for part in parts if part.number not in done]
        read = lambda place: _packed(decoder.read, entries[place], place, layout, frames, fps, size)
        with closing(_written(work, todo, read, workers, decoder.interrupt)) as written_parts:
            for part, written in written_parts:
                done[part.number] = written
                _tell(progress, len(part.entries))
        made = _pack(folder, layout, rate, digest, entries, [done[part.number] for part in parts])
        _quarantine(folder, entries, list(done.values()))
        write_pack(made)
        clean(folder)
    return _result(made, entries)


def check(folder: str | os.PathLike[str], *, progress: Callable[[int], object] | None = None) -> list[str]:
    """Read every byte of a pack and compare it with what was written.

    Args:
        folder: of ``pack``.
        progress: called with the number of bytes read since the last call.

    Returns:
        What is wrong, a line a shard; nothing where all is well.

    Raises:
        ValueError: no pack, or one whose index, entries or lengths are wrong already.
    """
    wrong = []
    found = read_pack(Path(folder))
    for shard, file in zip(found.shards, found.files, strict=True):
        digest = hashlib.sha256()
        with file.open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
                _tell(progress, len(block))
        if digest.hexdigest() != shard.sha256:
            wrong.append(f"{file}: wanted the bytes with SHA-256 {shard.sha256}, got {digest.hexdigest()}")
    return wrong


def _packed(
    decode: Read, entry: Entry, place: int, layout: Layout, frames: int, fps: float, size: int | tuple[int, int]
) -> np.ndarray | str:
    """A clip as it is stored, or why it can't be read."""
    try:
        return arrange(decode(entry, frames, fps, size), layout, place)
    except (VideoError, OSError) as error:
        return str(error)


def arrange(clip: Tensor, layout: Layout, entry: int) -> np.ndarray:
    """The bytes (clip bytes,) of a clip (C, T, H, W), or an image (C, H, W), as they are stored."""
    whole = Tubelets.from_clips(clip.unsqueeze(0), None, layout.tubelet).pixels.movedim(1, -1)
    rows = whole.flatten(1).numpy()[storage_order(entry, layout.tokens)]
    stored = np.zeros((layout.groups, layout.group_bytes), np.uint8)
    stored[:, : layout.group * layout.tubelet_bytes] = rows.reshape(layout.groups, -1)
    return stored.reshape(-1)


def _written(
    work: Path,
    todo: Sequence[Part],
    read: Callable[[int], np.ndarray | str],
    workers: int,
    interrupt: Callable[[], None],
) -> Generator[tuple[Part, Written], None, None]:
    places = (place for part in todo for place in part.entries)
    with ThreadPoolExecutor(workers, thread_name_prefix="pack") as pool:
        clips = _in_order(pool, read, places, ahead=2 * workers, interrupt=interrupt)
        try:
            for part in todo:
                yield part, write_part(work, part, clips)
        finally:
            clips.close()


def _in_order(
    pool: ThreadPoolExecutor,
    read: Callable[[int], np.ndarray | str],
    places: Iterable[int],
    ahead: int,
    interrupt: Callable[[], None],
) -> Generator[np.ndarray | str, None, None]:
    """What ``read`` returns of each place, in order, a few of them being read ahead."""
    waiting: deque[Future[np.ndarray | str]] = deque()
    try:
        for place in places:
            waiting.append(pool.submit(read, place))
            if len(waiting) > ahead:
                yield waiting[0].result()
                waiting.popleft()
        while waiting:
            yield waiting[0].result()
            waiting.popleft()
    finally:
        # Left early, by Ctrl-C or an error: nobody waits for what is being decoded.
        for future in waiting:
            future.cancel()
        while not all(future.done() for future in waiting):
            interrupt()
            time.sleep(0.05)


def _pack(
    folder: Path, layout: Layout, fps: float | None, digest: str, entries: Sequence[Entry], written: Sequence[Written]
) -> Pack:
    full = [one for one in written if one.shard is not None]
    if not full:
        place, reason = written[0].failures[0]
        raise ValueError(
            f"source: wanted at least one readable video, all {len(entries)} entries are broken, for example "
            f"{entries[place].video}: {reason}"
        )
    order = [entry for one in full for entry in one.entries]
    places = [(shard, row) for shard, one in enumerate(full) for row in range(len(one.entries))]
    return Pack(
        folder=folder,
        layout=layout,
        fps=fps,
        source=digest,
        shards=tuple(one.shard for one in full),
        entries=entries.take(order) if isinstance(entries, Entries) else [entries[place] for place in order],
        places=np.column_stack([np.array(places, np.int64), np.array(order, np.int64)]),
    )


def _same(folder: Path, digest: str) -> Pack:
    found = read_pack(folder)
    if found.source != digest:
        raise ValueError(f"out: {folder} holds a pack of another manifest or other settings; give another folder")
    return found


def _quarantine(folder: Path, entries: Sequence[Entry], written: Sequence[Written]) -> None:
    failures = sorted(failure for one in written for failure in one.failures)
    write_quarantine(folder / QUARANTINE, (bad_of(entries[place], reason) for place, reason in failures))


def _result(made: Pack, entries: Sequence[Entry]) -> PackResult:
    reasons, left_out = Quarantine(made.folder / QUARANTINE), np.ones(len(entries), bool)
    left_out[made.places[:, 2]] = False
    failures = [
        Failure(place, str(entry.video), reasons.reason(entry) or f"no longer in {QUARANTINE}")
        for place, entry in ((place, entries[place]) for place in np.flatnonzero(left_out).tolist())
    ]
    total = sum(shard.bytes for shard in made.shards)
    return PackResult(folder=made.folder, clips=len(made.entries), bytes=total, failures=tuple(failures))


def _tell(progress: Callable[[int], object] | None, count: int) -> None:
    if progress is not None and count:
        progress(count)
