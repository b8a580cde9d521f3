"""What a data set's file says of a clip, before anybody has looked for the video."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Source(NamedTuple):
    """A file that a clip may be in.

    Attributes:
        stem: the file's name without its suffix.
        start: seconds at which the clip begins in that file.
        end: seconds at which it ends, or None for the end of the file.
        seconds: how long the clip is, or None where the annotations don't say.
    """

    stem: str
    start: float = 0.0
    end: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Annotated:
    """A clip of an annotation file.

    Attributes:
        id: its video, as the data set calls it.
        captions: one or more sentences.
        sources: the files it may be in, the likeliest first.
        split: the part of the data set it belongs to, as the file says, or None.
        extra: further fields of the entry.
    """

    id: str
    captions: tuple[str, ...]
    sources: tuple[Source, ...]
    split: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Annotations:
    """What was read of a data set's files.

    Attributes:
        clips: in the order of the file.
        skipped: what no clip can be made of, each with its place and the reason.
    """

    clips: list[Annotated] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
