"""Manifests: which clips a data set holds, one JSON object a line, or a CSV with the same columns."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastvivit.data.rows import row_text, rows_of

_FIELDS = ("video", "image", "caption", "start", "end", "stream", "twin")
KINDS = ("video", "image")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One clip or image, and what is said about it.

    Attributes:
        video: the file, of an image, too.
        kind: "video" or "image"; an image has no start, end or stream.
        captions: sentences that each describe the clip; none where nothing is said of it yet.
        start: seconds after the file's first picture at which the clip begins.
        end: seconds at which it ends, or None for the end of the file.
        stream: index among the file's video streams, or None for the default one.
        twin: another video of the manifest that belongs into the same batch, or None.
        extra: every other field of the line, as it was. Multiple choice is ``question``, ``options`` (a list) and
            ``answer`` (an index, absent where secret), as `fastvivit.data.imports` writes them.
    """

    video: Path
    captions: tuple[str, ...]
    kind: str = "video"
    start: float = 0.0
    end: float | None = None
    stream: int | None = None
    twin: Path | None = None
    extra: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Check the fields against each other."""
        if not all(isinstance(c, str) and c.strip() for c in self.captions):
            raise ValueError(f"caption: wanted a sentence or a list of them, got {list(self.captions)!r}")
        if not (self.start >= 0 and math.isfinite(self.start)):
            raise ValueError(f"start: wanted finite seconds of at least 0, got {self.start!r}")
        if self.end is not None and not (self.end > self.start and math.isfinite(self.end)):
            raise ValueError(f"end: wanted finite seconds after start ({self.start}), got {self.end!r}")
        if self.stream is not None and self.stream < 0:
            raise ValueError(f"stream: wanted an index of at least 0, got {self.stream!r}")
        if self.kind not in KINDS:
            raise ValueError(f"kind: wanted one of {', '.join(map(repr, KINDS))}, got {self.kind!r}")
        for name, absent in (("start", 0.0), ("end", None), ("stream", None)):
            if self.kind == "image" and getattr(self, name) != absent:
                raise ValueError(f"{name}: wanted none for an image, got {getattr(self, name)!r}")
        clash = sorted(set(self.extra) & set(_FIELDS))
        if clash:
            raise ValueError(f"extra: wanted fields that an entry doesn't have itself, got {clash}")


def clips_of(entries: Sequence[Entry]) -> dict[int, Entry]:
    """Entries of the same part of the same file as one, by the place of the first of them, in order.

    It has the captions of all; its other fields are the first's. Manifests may have a line a caption. As clips of
    their own, such entries would tie with each other in retrieval, and a text would be held against one of its
    references at a time.
    """
    places: dict[tuple[Any, ...], list[int]] = {}
    for place, entry in enumerate(entries):
        places.setdefault((entry.video, entry.start, entry.end, entry.stream), []).append(place)
    return {
        first: replace(entries[first], captions=tuple(c for place in (first, *rest) for c in entries[place].captions))
        for first, *rest in places.values()
    }


def one_a_clip(entries: Sequence[Entry]) -> list[Entry]:
    """The clips of ``clips_of`` alone."""
    return list(clips_of(entries).values())


def twins_of(entries: Sequence[Entry]) -> list[int]:
    """For every entry, the entry whose video is its twin, or -1.

    Raises:
        ValueError: a twin that no entry, or more than one, has as its video.
    """
    places: dict[str, list[int]] = {}
    for index, entry in enumerate(entries):
        places.setdefault(os.path.abspath(entry.video), []).append(index)  # noqa: PTH100 (normalises "..")
    twins = []
    for entry in entries:
        found = [-1] if entry.twin is None else places.get(os.path.abspath(entry.twin), [])  # noqa: PTH100
        if len(found) != 1:
            raise ValueError(
                f"twin: wanted one entry with the video {entry.twin}, the twin of {entry.video}, found {len(found)}"
            )
        twins.append(found[0])
    return twins


def check_captioned(entries: Sequence[Entry]) -> None:
    """Refuse entries that nothing is said of. Raises ``ValueError``."""
    silent = [entry for entry in entries if not entry.captions]
    if silent:
        raise ValueError(
            f"caption: wanted a sentence or a list of them for every clip, {len(silent)} of {len(entries)} have none, "
            f"for example {silent[0].video}"
        )


def read_manifest(path: str | os.PathLike[str], *, captioned: bool = True) -> list[Entry]:
    """Read a manifest; the videos themselves are not looked at.

    A line of JSON is ``{"video": path, "caption": str | [str], "start": s?, "end": s?, "stream": i?,
    "twin": path?}``, or ``{"image": path, "caption": str | [str], "twin": path?}``, and any further fields. A name
    ending in ``.csv`` is read as CSV with these columns in its first line; an empty cell is an absent field, and a
    video with several captions takes several lines.
    Paths are relative to the manifest's folder, and may go through a tar (``train-0000.tar/cup.mp4``). Empty lines are
    passed over. WebDataset shards are read in place of a manifest: ``fastvivit.data.tars.read_tars``.

    Args:
        path: a JSONL or CSV file in UTF-8; or a tar, several as ``train-{0000..0009}.tar``, or a folder of them.
        captioned: refuse entries without a caption; if False, those of a manifest may have none.

    Returns:
        At least one entry, in the order of the file.

    Raises:
        ValueError: no such file, not UTF-8, no entry, or a bad line: file, line number and field are named.
    """
    from fastvivit.data.tars import are_tars, read_tars

    if are_tars(path):
        return read_tars(path)
    file = Path(path)
    entries = []
    for line, row in rows_of(file):
        try:
            entry = entry_of(row if captioned else {"caption": []} | row, file.parent)
            if captioned and not entry.captions:
                raise ValueError("caption: wanted a sentence or a list of them, got []")
        except ValueError as error:
            raise ValueError(f"{file}:{line}: {error}") from None
        entries.append(entry)
    if not entries:
        raise ValueError(f"{file}: wanted at least one entry, the file has none")
    return entries


def write_manifest(path: str | os.PathLike[str], entries: Iterable[Entry]) -> Path:
    """Write a JSONL manifest, all of it or nothing.

    Videos below the manifest's folder are written relative to it, others with their absolute path. A reader
    never sees half a file: it is written beside its place and then moved there.

    Args:
        path: the file to write, replaced if it exists; its folder must exist.
        entries: what to write, one line each.

    Returns:
        The path written.

    Raises:
        ValueError: the name ends in ``.csv``, or a field of ``extra`` is nothing that JSON can hold.
    """
    file = Path(path)
    if file.suffix.lower() == ".csv":
        raise ValueError(f"path: wanted a JSONL file to write, got {file}; CSV is only read")
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8") as stream:
            for number, entry in enumerate(entries):
                try:
                    text = row_text(_row(entry, file.parent))
                except (TypeError, ValueError) as error:
                    raise ValueError(f"entries[{number}].extra: wanted what JSON can hold: {error}") from None
                stream.write(text + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    return file


def entry_of(row: dict[str, Any], folder: Path) -> Entry:
    """An entry out of a manifest's line, whose paths are relative to ``folder``.

    Raises:
        ValueError: a field that is missing or wrong.
    """
    kind = "image" if "image" in row and "video" not in row else "video"
    if "image" in row and kind == "video":
        raise ValueError("'image': wanted either 'video' or 'image', got both")
    for name in (kind, "caption"):
        if name not in row:
            raise ValueError(f"{name!r}: wanted this field, got only {sorted(row)}")
    caption = row["caption"]
    return Entry(
        video=_path(row, kind, folder),
        kind=kind,
        captions=(caption,) if isinstance(caption, str) else tuple(_list(caption)),
        start=_number(row, "start", 0.0),
        end=_number(row, "end", None),
        stream=_index(row, "stream"),
        twin=_path(row, "twin", folder) if row.get("twin") is not None else None,
        extra={name: value for name, value in row.items() if name not in _FIELDS},
    )


def _list(caption: Any) -> list[Any]:
    if not isinstance(caption, list):
        raise ValueError(f"'caption': wanted a sentence or a list of them, got {caption!r}")
    return caption


def _path(row: dict[str, Any], name: str, folder: Path) -> Path:
    if not isinstance(row[name], str) or not row[name]:
        raise ValueError(f"{name!r}: wanted a path, got {row[name]!r}")
    return folder / row[name]


def _number(row: dict[str, Any], name: str, absent: float | None) -> float | None:
    value = row.get(name)
    if value is None:
        return absent
    try:
        if isinstance(value, bool):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name!r}: wanted seconds, got {value!r}") from None


def _index(row: dict[str, Any], name: str) -> int | None:
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, str) and value.isdecimal():  # a CSV cell
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name!r}: wanted an index among the video streams, got {value!r}")
    return value


def _row(entry: Entry, folder: Path) -> dict[str, Any]:
    captions = entry.captions
    row: dict[str, Any] = {entry.kind: written_path(entry.video, folder)}
    if captions:
        row["caption"] = captions[0] if len(captions) == 1 else list(captions)
    if entry.start:
        row["start"] = entry.start
    for name in ("end", "stream"):
        if getattr(entry, name) is not None:
            row[name] = getattr(entry, name)
    if entry.twin is not None:
        row["twin"] = written_path(entry.twin, folder)
    return row | entry.extra


def written_path(video: Path, folder: Path) -> str:
    """A file as a manifest in ``folder`` names it: relative where it lies below, else absolute."""
    # Text alone decides: following links would name another file than the one that was given.
    here, there = folder.absolute(), video.absolute()
    return (there.relative_to(here) if there.is_relative_to(here) else there).as_posix()
