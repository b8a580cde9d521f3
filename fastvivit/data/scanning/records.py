"""What earlier scans found, on the disk: a file that is as it was is not decoded again."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from fastvivit.data.scanning.result import Broken
from fastvivit.data.survey import Survey

TOO_SLOW, DIED, UNREADABLE = "too slow", "decoder died", "unreadable"
_PASSING = (TOO_SLOW, DIED)  # the machine's fault, maybe: tried again by every scan
_FORMAT = 1

Stamp = tuple[int, int]  # bytes, and nanoseconds of the last change


class Records:
    """Rows by file, appended to a JSONL file as they come, so that a scan that is killed goes on.

    Args:
        path: the file, made with the first row.
        again: believe nothing that is there.
    """

    def __init__(self, path: Path, *, again: bool = False) -> None:
        self._path = path
        self._known: dict[tuple[str, int, int], Survey | Broken] = {}
        if again or not path.exists():
            return
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                row = json.loads(line)
                if row.pop("format") != _FORMAT:
                    continue
                key = row["file"], row["bytes"], row["mtime"]
                found = Survey(**row["found"]) if "found" in row else Broken(row["file"], *row["broken"])
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # cut off by a kill: that file is decoded again
            self._known[key] = found

    def get(self, file: str, stamp: Stamp) -> Survey | Broken | None:
        """What is known of a file that has this stamp."""
        found = self._known.get((file, *stamp))
        return None if isinstance(found, Broken) and found.kind in _PASSING else found

    def add(self, file: str, stamp: Stamp, found: Survey | Broken) -> None:
        """Note what was found; it is in the file when this returns."""
        row = {"format": _FORMAT, "file": file, "bytes": stamp[0], "mtime": stamp[1]}
        row |= {"broken": [found.kind, found.reason]} if isinstance(found, Broken) else {"found": asdict(found)}
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write("\n" + json.dumps(row, ensure_ascii=False))  # in front: a line cut off spoils no other


def stamp_of(path: Path) -> Stamp:
    """By which a file that has changed is told; the same for all files that are gone."""
    try:
        about = path.stat()
    except OSError:
        return -1, -1
    return about.st_size, about.st_mtime_ns
