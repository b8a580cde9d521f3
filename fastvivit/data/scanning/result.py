"""What a scan found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fastvivit.data.entry import Entry
from fastvivit.data.survey import Survey


class Broken(NamedTuple):
    """A file, or a clip of it that the captions name, that is left out.

    Attributes:
        file: its path below the folder.
        kind: why, in two or three words that can be counted.
        reason: what was found.
    """

    file: str
    kind: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ScanResult:
    """What a scan found, and where it was written.

    Attributes:
        manifest: the manifest; not written where ``entries`` is empty.
        quarantine: the file with the reasons of ``broken``, a `Quarantine`.
        entries: clips with captions, in the order of their files; ``extra["duration"]`` is the file's length.
        uncaptioned: clips that can be read, and have no caption.
        broken: what is left out.
        unmatched: names in the caption file that no file has, or several have, with the reason.
        misled: files whose header says something else than what was decoded, with both.
        surveys: what each file that can be read holds, by its path below the folder.
        kind: "video" or "image".
        reused: files that were not decoded again, because they are as they were when they were scanned before.
        others: files of the other kind, which were not looked at.
    """

    manifest: Path
    quarantine: Path
    entries: list[Entry]
    uncaptioned: list[Entry]
    broken: tuple[Broken, ...]
    unmatched: tuple[str, ...]
    misled: tuple[str, ...]
    surveys: dict[str, Survey]
    kind: str
    reused: int
    others: int

    @property
    def seconds(self) -> float:
        """The length of all files that can be read."""
        return sum(found.seconds for found in self.surveys.values())
