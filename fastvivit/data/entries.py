"""The entries of a manifest as a few arrays: a million of them cost little memory, and forked workers share it.

As objects, a million entries are a gigabyte, and Python's reference counts write to each that is looked at: a forked
DataLoader worker copies them all, page by page.
"""

from __future__ import annotations

import json
import operator
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from fastvivit.data.entry import Entry, entry_of

# Below it, seconds are the same numbers as int and as float.
_PLAIN_SECONDS = 1e12
_NUMBERS = (int, float)


class Entries(Sequence[Entry]):
    """Entries to read from: a sequence that makes an `Entry` when it is asked for one.

    All of them were checked when they were read. It indexes, slices and compares like a list; a slice shares the
    memory of the whole. ``read_manifest`` makes it.

    Attributes:
        captions: int32 (n,), how many each entry has.
        images: bool (n,), whether it is an image.
        paired: bool (n,), whether it names a twin.
    """

    __hash__ = None

    def __init__(
        self,
        text: np.ndarray,
        spans: np.ndarray,
        folders: Sequence[Path],
        facts: np.ndarray,
        hidden: tuple[str, ...] = (),
    ) -> None:
        """Take what `EntryRows` has collected.

        Args:
            text: uint8 (bytes,), rows of manifests as JSON.
            spans: int64 (n, 2), where the text of each entry begins and ends.
            folders: those that the paths of entries are relative to.
            facts: int32 (n, 4): number of captions, whether it is an image, whether it has a twin, which folder.
            hidden: fields of rows that no entry has.
        """
        self._text, self._spans, self._folders, self._facts, self._hidden = text, spans, folders, facts, hidden
        for table in (text, spans, facts):
            table.flags.writeable = False

    @property
    def captions(self) -> np.ndarray:
        """Number of each entry's captions."""
        return self._facts[:, 0]

    @property
    def images(self) -> np.ndarray:
        """Which entries are images."""
        return self._facts[:, 1] != 0

    @property
    def paired(self) -> np.ndarray:
        """Which entries name a twin."""
        return self._facts[:, 2] != 0

    def __len__(self) -> int:
        """How many."""
        return len(self._spans)

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> Entries: ...
    def __getitem__(self, index: int | slice) -> Entry | Entries:
        """One entry, or those of a slice."""
        if isinstance(index, slice):
            return self.take(index)
        place = operator.index(index)
        if not -len(self) <= place < len(self):
            raise IndexError(f"index: wanted one of {len(self)} entries, got {place}")
        return entry_of(*self._row(place))

    def __iter__(self) -> Iterator[Entry]:
        """All, in order."""
        return (entry_of(row, folder) for row, folder in self.rows())

    def __eq__(self, other: object) -> bool:
        """Whether a list, a tuple or other entries hold the same ones in the same order."""
        if not isinstance(other, Entries | list | tuple):
            return NotImplemented
        return self is other or (len(self) == len(other) and all(map(operator.eq, self, other)))

    def __add__(self, other: Sequence[Entry]) -> list[Entry]:
        """A list of these and others."""
        return [*self, *other] if isinstance(other, Entries | list) else NotImplemented

    def __radd__(self, other: list[Entry]) -> list[Entry]:
        """A list of others and these."""
        return [*other, *self] if isinstance(other, list) else NotImplemented

    def __repr__(self) -> str:
        """How many, and the first."""
        return f"<{len(self)} entries{f', the first {self[0]}' if len(self) else ''}>"

    def rows(self) -> Iterator[tuple[dict[str, Any], Path]]:
        """What each entry is made of, and the folder that its paths are relative to: cheaper than the entries."""
        return map(self._row, range(len(self)))

    def take(self, places: slice | Sequence[int] | np.ndarray) -> Entries:
        """The entries of some places, in that order."""
        return Entries(self._text, self._spans[places], self._folders, self._facts[places], self._hidden)

    def without(self, name: str) -> Entries:
        """The same entries without a field of ``extra``."""
        return Entries(self._text, self._spans, self._folders, self._facts, (*self._hidden, name))

    def _row(self, place: int) -> tuple[dict[str, Any], Path]:
        begin, end = self._spans[place].tolist()
        row = json.loads(self._text[begin:end].tobytes().decode())
        row.setdefault("caption", [])
        for name in self._hidden:
            row.pop(name, None)
        return row, self._folders[self._facts[place, 3]]


class EntryRows:
    """Rows of manifests on their way to be ``Entries``; each is checked as it comes."""

    def __init__(self) -> None:
        self._text, self._ends, self._facts = bytearray(), array("q", [0]), array("i")
        self._folders: list[Path] = []

    def __len__(self) -> int:
        """How many there are so far."""
        return len(self._ends) - 1

    def add(self, row: dict[str, Any], folder: Path, text: str | None = None, *, captioned: bool = True) -> None:
        """Take one.

        Args:
            row: a line of a manifest.
            folder: that its paths are relative to.
            text: the same as JSON, where that is there already.
            captioned: refuse it without a caption.

        Raises:
            ValueError: a field that is missing or wrong.
        """
        facts = _facts(row)
        if facts is None:
            entry = entry_of(row if captioned else {"caption": []} | row, folder)
            if captioned and not entry.captions:
                raise ValueError("caption: wanted a sentence or a list of them, got []")
            facts = len(entry.captions), entry.kind == "image", entry.twin is not None
        if not self._folders or self._folders[-1] is not folder:
            self._folders.append(folder)
        self._text += _encoded(row) if text is None else text.encode()
        self._ends.append(len(self._text))
        self._facts.extend((*facts, len(self._folders) - 1))

    def entries(self) -> Entries:
        """All of them."""
        ends = np.frombuffer(self._ends, np.int64)
        spans = np.stack([ends[:-1], ends[1:]], axis=1)
        facts = np.frombuffer(self._facts, np.int32).reshape(-1, 4)
        return Entries(np.frombuffer(self._text, np.uint8), spans, tuple(self._folders), facts)


def _facts(row: dict[str, Any]) -> tuple[int, bool, bool] | None:
    """Captions, whether it is an image and has a twin, of a row that is surely right; None of any other.

    It accepts less than ``entry_of``, which is to have a look at the rest, in a fraction of the time.
    """
    get = row.get
    caption, video, start, end = get("caption"), get("video"), get("start"), get("end")
    stream, twin = get("stream"), get("twin")
    captions = caption if type(caption) is list else (caption,)
    for sentence in captions:
        if type(sentence) is not str or not sentence or sentence.isspace():
            return None
    image = video is None and "video" not in row
    if image:
        video = get("image")
        if start is not None or end is not None:
            return None
    elif "image" in row:
        return None
    if not captions or type(video) is not str or not video:
        return None
    if stream is not None and (image or type(stream) is not int or stream < 0):
        return None
    if twin is not None and (type(twin) is not str or not twin):
        return None
    try:  # text: the cells of a CSV
        begins = 0 if start is None else float(start) if type(start) is str else start
        ends = float(end) if type(end) is str else end
    except ValueError:
        return None
    if type(begins) not in _NUMBERS or not 0 <= begins < _PLAIN_SECONDS:
        return None
    if end is not None and (type(ends) not in _NUMBERS or not begins < ends < _PLAIN_SECONDS):
        return None
    return len(captions), image, twin is not None


def _encoded(row: dict[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # names of files need not be UTF-8: the rest of their bytes are surrogates
        return json.dumps(row).encode()
