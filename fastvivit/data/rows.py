"""Files of rows, JSONL or CSV: manifests, captions, quarantines."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def row_text(row: dict[str, Any]) -> str:
    """A row as a line of JSONL without its end, which UTF-8 can hold whatever is in it.

    Names of files need not be UTF-8: Python has their other bytes as surrogates, which come out escaped, and back as
    they were.

    Raises:
        TypeError: something that JSON can't hold.
        ValueError: a number that it can't hold.
    """
    text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(row, allow_nan=False)
    return text


def rows_of(file: Path, what: str = "manifest") -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a JSONL file, or of a CSV by its name, each with its line number; empty cells are left out.

    Args:
        file: it.
        what: how an error names the argument that the path came from.

    Raises:
        ValueError: no such file, not UTF-8, or a line that is none; file and line are named.
    """
    return ((line, row) for line, row, _ in lines_of(file, what))


def lines_of(file: Path, what: str = "manifest") -> Iterator[tuple[int, dict[str, Any], str | None]]:
    """As ``rows_of``, each with its line of JSON besides; None of a CSV."""
    if not file.is_file():
        raise ValueError(f"{what}: wanted a JSONL or CSV file, no such file: {file}")
    try:
        yield from (_csv_lines if file.suffix.lower() == ".csv" else _json_lines)(file)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: wanted UTF-8 text: {error}") from None


def _json_lines(file: Path) -> Iterator[tuple[int, dict[str, Any], str]]:
    with file.open(encoding="utf-8-sig") as stream:
        for line, text in enumerate(stream, 1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                raise ValueError(f"{file}:{line}: wanted one JSON object a line: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"{file}:{line}: wanted a JSON object, got {type(row).__name__}")
            yield line, row, text


def _csv_lines(file: Path) -> Iterator[tuple[int, dict[str, Any], None]]:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, strict=True)
        try:
            for row in reader:
                line = reader.line_num
                if None in row or None in row.values():
                    raise ValueError(f"{file}:{line}: wanted {len(reader.fieldnames)} cells, as in line 1")
                yield line, {name: cell for name, cell in row.items() if cell != ""}, None
        except csv.Error as error:
            raise ValueError(f"{file}:{reader.line_num}: wanted CSV: {error}") from None
