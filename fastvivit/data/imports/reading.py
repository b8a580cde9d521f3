"""Annotation files, read so that every complaint names the file, the place, what was wanted and what came."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Node:
    """A value of an annotation file, and where it stands.

    Attributes:
        value: what JSON or CSV gave.
        file: where it was read.
        way: the fields and indices that lead to it, as ``[3].q_uid``; "" is the whole file.
    """

    value: Any
    file: str
    way: str = ""

    @property
    def place(self) -> str:
        """File and way, as a message begins."""
        return f"{self.file}: {self.way}" if self.way else self.file

    def wrong(self, wanted: str) -> ValueError:
        """The error for a value that isn't what was wanted."""
        got = repr(self.value)
        return ValueError(f"{self.place}: wanted {wanted}, got {got if len(got) <= 80 else got[:77] + '...'}")

    def has(self, name: str) -> bool:
        """Whether this is an object with that field, not null."""
        return isinstance(self.value, dict) and self.value.get(name) is not None

    def at(self, name: str) -> Node:
        """The field ``name`` of an object."""
        if not isinstance(self.value, dict):
            raise self.wrong(f"an object with the field {name!r}")
        if not self.has(name):
            fields = ", ".join(map(str, list(self.value)[:12])) or "none"
            raise ValueError(f"{self.place}: wanted the field {name!r}, got only these: {fields}")
        return Node(self.value[name], self.file, f"{self.way}.{name}" if self.way else name)

    def fields(self) -> Iterator[tuple[str, Node]]:
        """Names and values of an object, in the file's order."""
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        for name in self.value:
            yield name, Node(self.value[name], self.file, f"{self.way}[{name!r}]")

    def elements(self) -> list[Node]:
        """The elements of a list."""
        if not isinstance(self.value, list):
            raise self.wrong("a list")
        return [Node(value, self.file, f"{self.way}[{index}]") for index, value in enumerate(self.value)]

    def text(self) -> str:
        """A sentence, its white space made single spaces; it may be empty."""
        if not isinstance(self.value, str):
            raise self.wrong("a string")
        return " ".join(self.value.split())

    def name(self) -> str:
        """An id: a string that isn't empty."""
        if not isinstance(self.value, str) or not self.value.strip():
            raise self.wrong("an id")
        return self.value.strip()

    def number(self) -> float:
        """A finite number of at least 0."""
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise self.wrong("a number")
        if not (math.isfinite(self.value) and self.value >= 0):
            raise self.wrong("a finite number of at least 0")
        return float(self.value)

    def index(self, size: int) -> int:
        """An index below ``size``; digits in a string will do."""
        value = self.value
        if isinstance(value, str) and value.strip().isdecimal():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < size:
            raise self.wrong(f"an index from 0 to {size - 1}")
        return value

    def span(self) -> tuple[float, float]:
        """A pair of seconds; whether the second is the greater is not looked at."""
        pair = self.elements()
        if len(pair) != 2:
            raise self.wrong("a start and an end in seconds")
        return pair[0].number(), pair[1].number()


def read_json(path: Path, argument: str = "annotations") -> Node:
    """A JSON file.

    Raises:
        ValueError: no such file, not UTF-8 or not JSON.
    """
    text = read_text(path, argument, "JSON")
    try:
        return Node(json.loads(text), str(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: wanted JSON: {error}") from None


def read_csv(path: Path, argument: str = "annotations") -> list[Node]:
    """The lines of a CSV file as objects with the names of its first line.

    Raises:
        ValueError: as `read_lines` does, or a line with another number of cells than the first.
    """
    lines = read_lines(path, argument)
    names = lines[0][1] if lines else []
    for number, cells in lines:
        if len(cells) != len(names):
            raise ValueError(f"{path}:{number}: wanted {len(names)} cells, as in line 1, got {len(cells)}")
    return [Node(dict(zip(names, cells, strict=True)), f"{path}:{number}") for number, cells in lines[1:]]


def read_lines(path: Path, argument: str) -> list[tuple[int, list[str]]]:
    """Line numbers and cells of a CSV file with commas or semicolons, empty lines left out.

    Raises:
        ValueError: no such file, not UTF-8 or not CSV.
    """
    text = read_text(path, argument, "CSV")
    head = text.partition("\n")[0]
    comma = ";" if head.count(";") > head.count(",") else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=comma, strict=True)
    try:
        return [(reader.line_num, cells) for cells in reader if cells]
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: wanted CSV: {error}") from None


def read_text(path: Path, argument: str, kind: str) -> str:
    """A file in UTF-8.

    Raises:
        ValueError: no such file, named with ``argument`` and the ``kind`` wanted, or another encoding.
    """
    if not path.is_file():
        raise ValueError(f"{argument}: wanted a {kind} file, no such file: {path}")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: wanted UTF-8 text: {error}") from None
