"""Manifests: which clips a data set holds, one JSON object a line, or a CSV with the same columns."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fastvivit.data.entries import Entries, EntryRows
from fastvivit.data.entry import Entry
from fastvivit.data.rows import lines_of, row_text


def read_manifest(path: str | os.PathLike[str], *, captioned: bool = True) -> Entries:
    """Read a manifest; the videos themselves are not looked at.

    A line of JSON is ``{"video": path, "caption": str | [str], "start": s?, "end": s?, "stream": i?,
    "twin": path?}``, or ``{"image": path, "caption": str | [str], "twin": path?}``, and any further fields. A name
    ending in ``.csv`` is read as CSV with these columns in its first line; an empty cell is an absent field, and a
    video with several captions takes several lines.
    Paths are relative to the manifest's folder, and may go through a tar (``train-0000.tar/cup.mp4``). Empty lines are
    passed over. WebDataset shards are read in place of a manifest: ``fastvivit.data.tars.read_tars``.

    Args:
        path: a JSONL or CSV file in UTF-8; or a tar, several as ``train-{0000..0009}.tar``, or a folder of them.
        captioned: refuse entries without a caption; if False, those of a manifest may have none.

    Returns:
        At least one entry, in the order of the file. They are all checked, and made when they are asked for.

    Raises:
        ValueError: no such file, not UTF-8, no entry, or a bad line: file, line number and field are named.
    """
    from fastvivit.data.tars import are_tars, read_tars

    if are_tars(path):
        return read_tars(path)
    file, rows = Path(path), EntryRows()
    folder = file.parent
    for line, row, text in lines_of(file):
        try:
            rows.add(row, folder, text, captioned=captioned)
        except ValueError as error:
            raise ValueError(f"{file}:{line}: {error}") from None
    if not rows:
        raise ValueError(f"{file}: wanted at least one entry, the file has none")
    return rows.entries()


def entries_of(source: str | os.PathLike[str] | Sequence[Entry]) -> Sequence[Entry]:
    """The entries of a manifest by its path, or those given: a copy, where they could be changed."""
    if isinstance(source, str | os.PathLike):
        return read_manifest(source)
    return source if isinstance(source, Entries) else list(source)


def write_manifest(path: str | os.PathLike[str], entries: Iterable[Entry]) -> Path:
    """Write a JSONL manifest, all of it or nothing.

    Videos below the manifest's folder are written relative to it, others with their absolute path. A reader
    never sees half a file: it is written beside its place and then moved there.

    Args:
        path: the file to write, replaced if it exists; its folder must exist.
        entries: what to write, one line each.

    Returns:
        The path written.

    Raises:
        ValueError: the name ends in ``.csv``, or a field of ``extra`` is nothing that JSON can hold.
    """
    file = Path(path)
    if file.suffix.lower() == ".csv":
        raise ValueError(f"path: wanted a JSONL file to write, got {file}; CSV is only read")
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8") as stream:
            for number, entry in enumerate(entries):
                try:
                    text = row_text(_row(entry, file.parent))
                except (TypeError, ValueError) as error:
                    raise ValueError(f"entries[{number}].extra: wanted what JSON can hold: {error}") from None
                stream.write(text + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    return file


def _row(entry: Entry, folder: Path) -> dict[str, Any]:
    captions = entry.captions
    row: dict[str, Any] = {entry.kind: written_path(entry.video, folder)}
    if captions:
        row["caption"] = captions[0] if len(captions) == 1 else list(captions)
    if entry.start:
        row["start"] = entry.start
    for name in ("end", "stream"):
        if getattr(entry, name) is not None:
            row[name] = getattr(entry, name)
    if entry.twin is not None:
        row["twin"] = written_path(entry.twin, folder)
    return row | entry.extra


def written_path(video: Path, folder: Path) -> str:
    """A file as a manifest in ``folder`` names it: relative where it lies below, else absolute."""
    # Text alone decides: following links would name another file than the one that was given.
    here, there = folder.absolute(), video.absolute()
    return (there.relative_to(here) if there.is_relative_to(here) else there).as_posix()
