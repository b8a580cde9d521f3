"""Sentences with times in a long video: as clips of their own, as one paragraph, as several captions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fastvivit.data.imports.annotated import Annotated, Annotations, Source

LEVELS = ("segments", "paragraph", "video")


class Sentence(NamedTuple):
    """A sentence and the seconds of the video it is about; ``place`` is where it stands in the file."""

    text: str
    start: float
    end: float
    place: str


@dataclass(frozen=True, kw_only=True)
class Video:
    """A video and all that is said about it; ``stems`` are the names its file may have."""

    id: str
    stems: tuple[str, ...]
    duration: float
    sentences: Sequence[Sentence]
    split: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def check_level(level: str, first: float | None) -> None:
    """Refuse what no level is, and a first part that lasts no time."""
    if level not in LEVELS:
        raise ValueError(f"level: wanted one of {', '.join(LEVELS)}, got {level!r}")
    if first is not None and not (first > 0 and math.isfinite(first)):
        raise ValueError(f"first: wanted seconds above 0, got {first!r}")


def add_video(into: Annotations, video: Video, level: str, first: float | None) -> None:
    """Add the clips of a video; sentences that are empty or last no time are noted as skipped.

    Args:
        into: where to.
        video: what the file says of it.
        level: ``"segments"``, a clip a sentence; ``"paragraph"``, the whole video and all its sentences in a
            row as its one caption; ``"video"``, the whole video and each sentence as a caption.
        first: only so many seconds from the beginning of every clip; its captions stay whole.
    """
    said = [sentence for sentence in video.sentences if sentence.text]
    into.skipped.extend(f"{sentence.place}: an empty sentence" for sentence in video.sentences if not sentence.text)
    if level == "segments":
        for index, sentence in enumerate(video.sentences):
            if sentence.text and sentence.end <= sentence.start:
                into.skipped.append(f"{sentence.place}: a segment from {sentence.start} to {sentence.end} s")
            elif sentence.text:
                end = sentence.end if first is None else min(sentence.end, sentence.start + first)
                span = (sentence.start, end, end - sentence.start)
                into.clips.append(_clip(video, (sentence.text,), span, {"segment": index}))
    elif said:
        captions = (paragraph([sentence.text for sentence in said]),)
        if level == "video":
            captions = tuple(sentence.text for sentence in said)
        end = first if first is not None and first < video.duration else None
        # What the paper calls oracle segments: where each sentence's event is.
        events = [[sentence.start, sentence.end] for sentence in said if sentence.end > sentence.start]
        into.clips.append(_clip(video, captions, (0.0, end, end or video.duration), {"segments": events}))
    else:
        into.skipped.append(f"{video.id}: no sentence")


def paragraph(sentences: Sequence[str]) -> str:
    """Sentences in a row, each with a full stop where it ends without any mark."""
    return " ".join(text if text[-1] in ".!?\"'”" else f"{text.rstrip(',;:')}." for text in sentences)


def _clip(
    video: Video,
    captions: tuple[str, ...],
    span: tuple[float, float | None, float],
    extra: dict[str, Any],
) -> Annotated:
    return Annotated(
        id=video.id,
        captions=captions,
        sources=tuple(Source(stem, *span) for stem in video.stems),
        split=video.split,
        extra={"duration": video.duration, **extra, **video.extra},
    )
