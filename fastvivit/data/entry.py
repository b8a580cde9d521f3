"""One clip or image of a data set, and what is said about it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
