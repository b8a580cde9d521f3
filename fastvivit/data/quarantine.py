"""Files that can't be read, on the disk: a line each, so that nobody tries them again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fastvivit._folders import file_written_whole
from fastvivit.data.entry import Entry
from fastvivit.data.manifest import written_path
from fastvivit.data.rows import row_text

QUARANTINE = "quarantine.jsonl"
_PART = ("start", "end", "stream")


class Bad(NamedTuple):
    """A line of a quarantine.

    Attributes:
        video: the absolute path.
        kind: "video" or "image".
        part: start, end and stream of the clip that can't be read; None for all of the file.
        reason: what was found.
    """

    video: Path
    kind: str
    part: tuple[float, float | None, int | None] | None
    reason: str


class Quarantine:
    """The bad files of a run or a scan, in a JSONL file.

    A line is ``{"video": path, "reason": str}`` for a file that is bad altogether (``"image"`` for an image), or
    has ``"start"``, ``"end"`` and ``"stream"`` as well where it is one clip of the file that can't be read: another
    part of the same file may be good. Paths are relative to the file's folder, as in manifests. To have a file
    tried again, delete its line.

    A line is on the disk when ``add`` returns; one that was cut off by a kill counts as never written. One process
    may write to a file.

    Args:
        path: the file; made with the first line, in a folder that exists.

    Raises:
        ValueError: a file that is no quarantine; the line is named.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._bad: dict[tuple[str, Any], Bad] = {}
        self._files: set[str] = set()
        data = self.path.read_bytes() if self.path.exists() else b""
        self._bytes = data.rfind(b"\n") + 1  # what follows was cut off
        for number, line in enumerate(data[: self._bytes].splitlines(), 1):
            try:
                bad = self._parsed(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{self.path}:{number}: wanted a line of a quarantine: {error!r}") from None
            self._note(bad)

    def __len__(self) -> int:
        """How many lines there are."""
        return len(self._bad)

    def __iter__(self) -> Iterator[Bad]:
        """The lines, in order."""
        return iter(self._bad.values())

    def reason(self, entry: Entry) -> str | None:
        """Why an entry can't be read, or None where nothing is known against it."""
        name = _text(entry.video)
        bad = self._bad.get((name, None)) or self._bad.get((name, _part(entry)))
        return None if bad is None else bad.reason

    def names(self, file: str) -> bool:
        """Whether anything is known against a file, by its absolute path, or a part of it."""
        return file in self._files

    def add(self, entry: Entry, reason: str, *, whole: bool = False) -> bool:
        """Note an entry, unless it is noted already.

        Args:
            entry: what can't be read.
            reason: what was found.
            whole: all of its file is bad.

        Returns:
            Whether there is a new line.
        """
        bad = bad_of(entry, reason, whole=whole)
        name = str(bad.video)
        if (name, None) in self._bad or (name, bad.part) in self._bad:
            return False
        with self.path.open("ab") as file:
            file.truncate(self._bytes)
            file.write(_line(bad, self.path.parent))
            file.flush()
            os.fsync(file.fileno())
            self._bytes = file.tell()
        self._note(bad)
        return True

    def _note(self, bad: Bad) -> None:
        name = _text(bad.video)
        self._bad[name, bad.part] = bad
        self._files.add(name)

    def _parsed(self, row: dict[str, Any]) -> Bad:
        kind = "image" if "image" in row else "video"
        part = tuple(row[field] for field in _PART) if "start" in row else None
        return Bad(Path(_text(self.path.parent / row[kind])), kind, part, row["reason"])


def bad_of(entry: Entry, reason: str, *, whole: bool = False) -> Bad:
    """The line of an entry, or of all of its file."""
    return Bad(Path(_text(entry.video)), entry.kind, None if whole else _part(entry), reason)


def write_quarantine(path: Path, lines: Iterable[Bad]) -> None:
    """Write a quarantine in place of what is there, all of it or nothing."""
    with file_written_whole(path) as partial, partial.open("wb") as file:
        for bad in lines:
            file.write(_line(bad, path.parent))


def _line(bad: Bad, folder: Path) -> bytes:
    row: dict[str, Any] = {bad.kind: written_path(bad.video, folder)}
    if bad.part is not None:
        row |= zip(_PART, bad.part, strict=True)
    return row_text(row | {"reason": bad.reason}).encode() + b"\n"


def _part(entry: Entry) -> tuple[float, float | None, int | None]:
    return entry.start, entry.end, entry.stream


def _text(video: Path) -> str:
    return os.path.abspath(video)  # noqa: PTH100 (normalises "..")
