"""The clips of a file that was decoded: what the captions name, or all of it, or pieces of equal length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastvivit.data.entry import Entry
from fastvivit.data.scanning.result import Broken
from fastvivit.data.survey import Survey


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a file must have, and how it is cut.

    Attributes:
        kind: "video" or "image".
        segments: seconds of a piece; None leaves files whole.
        min_seconds: shorter videos are left out.
        salvage: take the good part of a damaged file.
    """

    kind: str
    segments: float | None = None
    min_seconds: float = 0.0
    salvage: bool = False

    def refuse(self, file: str, found: Survey) -> Broken | None:
        """Why a file is left out although it can be opened, or None."""
        if found.damage is not None and not (self.salvage and found.seconds > 0):
            return Broken(file, "damaged", f"{found.damage}; good until {found.seconds:.3f} s")
        if self.kind == "video" and found.seconds < self.min_seconds:
            reason = f"wanted at least {self.min_seconds:g} s, it has {found.seconds:.3f} s"
            return Broken(file, "too short", reason if found.damage is None else f"{reason} before {found.damage}")
        return None

    def clips(self, path: Path, found: Survey, rows: Sequence[Entry], captions: Sequence[str]) -> list[Entry]:
        """The clips of a file.

        Rows with a start, an end or a stream are clips of their own. The captions of the others hold for the file,
        whole or in pieces. Rows of the same clip become one entry.

        Args:
            path: the file.
            found: what it holds.
            rows: what the caption file says of it.
            captions: what else is said of all of it.
        """
        stream = found.stream if found.streams > 1 else None
        length: dict[str, Any] = {} if self.kind == "image" else {"duration": round(found.seconds, 3)}
        timed = [row for row in rows if _is_part(row)]
        plain = [row for row in rows if not _is_part(row)]
        said = tuple(dict.fromkeys([caption for row in plain for caption in row.captions] or captions))
        made: dict[tuple[Any, ...], Entry] = {}
        if said or not timed:
            about = plain[0].extra if plain else {}
            twin = plain[0].twin if plain else None
            for start, end in self._pieces(found):
                made[start, end, stream] = Entry(
                    video=path, kind=self.kind, captions=said, start=start, end=end, stream=stream, twin=twin,
                    extra=about | length,
                )  # fmt: skip
        for row in timed:
            end = row.end
            if found.damage is not None:
                end = found.seconds if end is None else min(end, found.seconds)
                if end <= row.start:  # nothing is left of it
                    end = row.end
            clip = replace(
                row, video=path, end=end, stream=stream if row.stream is None else row.stream, extra=row.extra | length
            )
            key = (clip.start, clip.end, clip.stream)
            if key in made:
                clip = replace(made[key], captions=tuple(dict.fromkeys(made[key].captions + clip.captions)))
            made[key] = clip
        return sorted(made.values(), key=lambda entry: entry.start)

    def beyond(self, file: str, found: Survey, entry: Entry) -> Broken | None:
        """Why a clip that the captions name is left out, or None."""
        if self.kind == "image" or entry.start < found.seconds:
            return None
        name = f"{entry.start:g} s to {'the end' if entry.end is None else f'{entry.end:g} s'}"
        return Broken(file, "beyond the end", f"{file}, {name}: it can be read until {found.seconds:.3f} s only")

    def _pieces(self, found: Survey) -> list[tuple[float, float | None]]:
        end = None if found.damage is None else found.seconds
        if self.segments is None or found.seconds <= self.segments:
            return [(0.0, end)]
        # A rest of less than half a piece is left out, as in search.
        count = max(1, int(found.seconds / self.segments + 0.5))
        ends = [(number + 1) * self.segments for number in range(count)]
        return [(number * self.segments, last if last < found.seconds else end) for number, last in enumerate(ends)]


def _is_part(row: Entry) -> bool:
    return bool(row.start) or row.end is not None or row.stream is not None


def misled(file: str, found: Survey) -> str | None:
    """What a header says wrongly of a file, or None where it is right, or says nothing."""
    wrong = []
    if found.header_pictures is not None and found.header_pictures != found.pictures:
        wrong.append(f"{found.header_pictures} pictures, there are {found.pictures}")
    if found.header_seconds is not None and abs(found.header_seconds - found.seconds) > max(0.5, found.seconds / 50):
        wrong.append(f"{found.header_seconds:.1f} s, pictures end at {found.seconds:.1f} s")
    return f"{file}: the header says {' and '.join(wrong)}" if wrong else None
