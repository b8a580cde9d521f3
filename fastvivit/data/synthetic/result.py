"""What a pass over a manifest that writes texts begins with, and what it leaves."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from fastvivit.data.entry import Entry
from fastvivit.data.manifest import read_manifest

SOURCE = "text_source"  # the field of ``Entry.extra``


class Dropped(NamedTuple):
    """A clip that got no text.

    Attributes:
        index: its place in what was given.
        video: the path.
        kind: why, in two or three words that can be counted.
        reason: what was found.
    """

    index: int
    video: str
    kind: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class NewTexts:
    """Entries with new texts.

    Attributes:
        entries: in the order of what was given, each with ``extra["text_source"]``, which says where its caption is
            from, or the list of where each of its captions is from.
        dropped: clips without a new text. They are not among the entries.
    """

    entries: list[Entry]
    dropped: tuple[Dropped, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many were dropped, by kind, most frequent first."""
        return dict(Counter(one.kind for one in self.dropped).most_common())


def read_source(source: str | os.PathLike[str] | Sequence[Entry | Path]) -> list[Entry | Path]:
    """Entries, or bare paths where there are no captions yet.

    Raises:
        ValueError: nothing, something else, or a bad manifest.
    """
    items = list(read_manifest(source, captioned=False) if isinstance(source, str | os.PathLike) else source)
    if not items:
        raise ValueError("source: wanted at least one clip, got none")
    if other := [item for item in items if not isinstance(item, Entry | Path)]:
        raise ValueError(f"source: wanted a manifest, entries or paths, got a {type(other[0]).__name__} among them")
    return items


def video_of(item: Entry | Path) -> Path:
    """The file of a clip."""
    return item.video if isinstance(item, Entry) else item


def with_text(item: Entry | Path, text: str, source: dict[str, Any], *, keep_captions: bool) -> Entry:
    """An entry with a new caption instead of those it has, or behind them."""
    if isinstance(item, Path):
        return Entry(video=item, captions=(text,), extra={SOURCE: source})
    if not keep_captions:
        return replace(item, captions=(text,), extra=item.extra | {SOURCE: source})
    known = item.extra.get(SOURCE)
    sources = known if isinstance(known, list) else [known]
    if known is None or len(sources) != len(item.captions):
        sources = [{"kind": "given"}] * len(item.captions)
    return replace(item, captions=(*item.captions, text), extra=item.extra | {SOURCE: [*sources, source]})


def callable_name(given: Callable[..., Any], by: str | None) -> str:
    """What a callable is called in ``text_source``: ``by``, or where it was defined."""
    if by is not None:
        return by
    named = given if hasattr(given, "__qualname__") else type(given)
    return f"{named.__module__}:{named.__qualname__}"
