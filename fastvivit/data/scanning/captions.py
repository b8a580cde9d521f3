"""Captions for files: out of a table, by path, name or stem; and out of text files beside them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from fastvivit.data.entry import Entry, entry_of
from fastvivit.data.rows import rows_of

FILE_FIELDS = ("video", "image", "file", "file_name", "filename", "path", "video_id", "videoid")
CAPTION_FIELDS = ("caption", "captions", "text")


def read_table(path: Path, kind: str) -> list[tuple[str, Entry]]:
    """The rows of a caption file as the name that each has for its file, and an entry of that name.

    Args:
        path: JSONL or CSV with one of ``FILE_FIELDS`` and one of ``CAPTION_FIELDS``; ``start``, ``end`` and
            ``stream`` as in manifests, and any further fields.
        kind: "video" or "image".

    Raises:
        ValueError: no such file, no row, or a bad one; file and line are named.
    """
    found = []
    for line, row in rows_of(path, "captions"):
        try:
            file = _take(row, FILE_FIELDS, "a file")
            caption = _take(row, CAPTION_FIELDS, "a caption")
            rest = {name: value for name, value in row.items() if name not in FILE_FIELDS + CAPTION_FIELDS}
            entry = entry_of({kind: str(file), "caption": caption} | rest, Path())
            if not entry.captions:
                raise ValueError("caption: wanted a sentence or a list of them, got []")
        except ValueError as error:
            raise ValueError(f"{path}:{line}: {error}") from None
        found.append((str(file), entry))
    if not found:
        raise ValueError(f"captions: wanted at least one caption, {path} has none")
    return found


def _take(row: dict[str, Any], names: Sequence[str], what: str) -> Any:
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise ValueError(f"wanted {what} as one of {', '.join(names)}, got only {sorted(row)}")


def match(
    rows: Sequence[tuple[str, Entry]], files: Sequence[str], folder: Path, beside: Path
) -> tuple[dict[str, list[Entry]], list[str]]:
    """Find the file that each row means.

    A row's name is tried as a path below the folder (or an absolute one, or one relative to the caption file), then
    as a file's name, then as a file's stem, then without its own suffix as a stem. The first of these that any file
    has decides; where several files have it, nobody can tell which is meant. Nor can they where a row's folder or
    suffix is not the file's, and other rows mean that file, too: ``train/1.mp4``, which is missing, is not
    ``val/1.mp4``.

    Args:
        rows: as ``read_table`` gives them.
        files: paths below ``folder``.
        folder: what was scanned.
        beside: the folder of the caption file.

    Returns:
        The entries of each file, in the order of the rows; and the names without a file, each once, with the reason.
    """
    names: dict[str, list[str]] = {}
    stems: dict[str, list[str]] = {}
    for file in files:
        pure = PurePosixPath(file)
        names.setdefault(pure.name, []).append(file)
        stems.setdefault(pure.stem, []).append(file)
    known, here = set(files), Path(_plain(folder))
    places: dict[str, tuple[list[str], bool]] = {}  # of each name: the files that it may mean, and whether it is sure
    for name, _ in rows:
        if name not in places:
            below, last = _below(name, known, here, beside), PurePosixPath(name).name
            stem = names.get(last) or stems.get(last)
            sure = bool(below) or (stem is not None and last == name)
            places[name] = (below or stem or stems.get(PurePosixPath(last).stem, []), sure)
    meant: dict[str, set[str]] = {}  # the names of each file
    for name, (candidates, _) in places.items():
        if len(candidates) == 1:
            meant.setdefault(candidates[0], set()).add(name)
    found: dict[str, list[Entry]] = {}
    unmatched: dict[str, str] = {}
    for name, entry in rows:
        candidates, sure = places[name]
        if len(candidates) != 1:
            unmatched[name] = f"{name} (several files: {', '.join(candidates)})" if candidates else name
        elif not sure and len(meant[candidates[0]]) > 1:
            others = sorted(meant[candidates[0]] - {name})
            unmatched[name] = f"{name} ({candidates[0]} may be that of {others[0]})"
        else:
            found.setdefault(candidates[0], []).append(replace(entry, video=folder / candidates[0]))
    return found, list(unmatched.values())


def _below(name: str, known: set[str], folder: Path, beside: Path) -> list[str]:
    for base in (folder, beside):
        path = Path(_plain(base / name))
        if path.is_relative_to(folder) and path.relative_to(folder).as_posix() in known:
            return [path.relative_to(folder).as_posix()]
    return []


def _plain(path: Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100 (normalises "..")


def text_beside(file: Path) -> tuple[str, ...]:
    """The lines of ``NAME.txt`` beside ``NAME.mp4``, each a caption.

    Raises:
        ValueError: it is not UTF-8.
    """
    path = file.with_suffix(".txt")
    if not path.is_file():
        return ()
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: wanted captions in UTF-8: {error}") from None
    return tuple(line.strip() for line in lines if line.strip())
