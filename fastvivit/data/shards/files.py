"""The files of a pack: what is in them, and what is checked before any of it is believed.

A folder holds ``index.json``, the geometry and the shards; ``entries.jsonl``, a manifest of what was packed, each
line's ``packed`` saying where; ``shard-00000.bin`` and so on; and ``quarantine.jsonl``, what could not be read, a
`Quarantine`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastvivit._folders import file_written_whole
from fastvivit.data.entries import Entries
from fastvivit.data.entry import Entry
from fastvivit.data.groups import kinds_of
from fastvivit.data.manifest import read_manifest, write_manifest
from fastvivit.data.shards.layout import Layout

VERSION = 1
INDEX, ENTRIES = "index.json", "entries.jsonl"
_FORMAT = "fastvivit shards"
_PLACE, _FIELDS = "packed", ("shard", "row", "entry")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of clips.

    Attributes:
        file: its name.
        clips: how many there are.
        bytes: its length.
        sha256: of its bytes, in hexadecimal.
    """

    file: str
    clips: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Pack:
    """A folder of packed clips.

    Attributes:
        folder: it.
        layout: geometry of the clips.
        fps: pictures per second of the clips; None of images.
        source: a hash of the manifest and the settings that were packed.
        shards: the files.
        entries: of the manifest, those that could be read.
        places: int64 (clips, 3), of each: which of the shards, which of its clips, and its place in the manifest that
            was packed, of which the storage order is made.
    """

    folder: Path
    layout: Layout
    fps: float | None
    source: str
    shards: tuple[Shard, ...]
    entries: Sequence[Entry]
    places: np.ndarray

    @property
    def files(self) -> list[Path]:
        """The shards."""
        return [self.folder / shard.file for shard in self.shards]


def is_pack(path: Path) -> bool:
    """Whether a path is a folder that ``fastvivit data pack`` has finished."""
    return (path / INDEX).is_file()


def write_pack(pack: Pack) -> None:
    """Write entries, then the index, which makes it a pack; the shards are there already."""
    placed = (
        replace(entry, extra=entry.extra | {_PLACE: dict(zip(_FIELDS, place.tolist(), strict=True))})
        for entry, place in zip(pack.entries, pack.places, strict=True)
    )
    write_manifest(pack.folder / ENTRIES, placed)
    layout = pack.layout
    write_json(
        pack.folder / INDEX,
        {
            "format": _FORMAT,
            "version": VERSION,
            "shape": list(layout.shape),
            "tubelet": list(layout.tubelet),
            "fps": pack.fps,
            "group": layout.group,
            "group_bytes": layout.group_bytes,
            "clip_bytes": layout.clip_bytes,
            "source": pack.source,
            "shards": [vars(shard) for shard in pack.shards],
        },
    )


def read_pack(folder: Path) -> Pack:
    """Read and check index and entries, and that every shard is there and as long as it should be.

    Raises:
        ValueError: no pack, a version or layout that this library doesn't know, a number that can't be, shards that
            are missing or cut short; the file is named.
    """
    file = folder / INDEX
    if not file.is_file():
        raise ValueError(f"{folder}: wanted a folder that `fastvivit data pack` has written, found no {INDEX} in it")
    index = read_json(file)
    try:
        if (index["format"], index["version"]) != (_FORMAT, VERSION):
            raise ValueError(f"wanted {_FORMAT!r} of version {VERSION}, got {index['format']!r} of {index['version']}")
        layout = Layout(tuple(index["shape"]), tuple(index["tubelet"]))
        for name in ("group", "group_bytes", "clip_bytes"):
            if index[name] != getattr(layout, name):
                raise ValueError(f"{name}: wanted {getattr(layout, name)} for this geometry, got {index[name]!r}")
        fps = None if index["fps"] is None else float(index["fps"])
        shards = tuple(_shard(row, layout) for row in index["shards"])
        source = str(index["source"])
    except KeyError as error:
        raise ValueError(f"{file}: wanted the field {error}, got only {sorted(index)}") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from None
    for shard in shards:
        found = folder / shard.file
        length = found.stat().st_size if found.is_file() else None
        if length != shard.bytes:
            got = "no such file" if length is None else f"{length}: it is damaged, pack again"
            raise ValueError(f"{found}: wanted {shard.bytes} bytes, got {got}")
    entries, places = _entries(folder / ENTRIES, shards)
    kind = "image" if fps is None else "video"
    if len(layout.shape) != (2 if fps is None else 3) or kinds_of(entries) != {kind}:
        raise ValueError(f"{file}: wanted clips, with a shape of three axes and fps, or images with neither, got both")
    return Pack(folder=folder, layout=layout, fps=fps, source=source, shards=shards, entries=entries, places=places)


def _shard(row: dict[str, Any], layout: Layout) -> Shard:
    shard = Shard(**row)
    if shard.file != Path(shard.file).name or type(shard.clips) is not int or shard.clips < 1:
        raise ValueError(f"shards: wanted a file name and at least one clip, got {row}")
    if shard.bytes != shard.clips * layout.clip_bytes:
        raise ValueError(f"shards: wanted {shard.clips * layout.clip_bytes} bytes of {shard.clips} clips, got {row}")
    return shard


def _entries(file: Path, shards: Sequence[Shard]) -> tuple[Entries, np.ndarray]:
    """The entries as the manifest had them, and where each is."""
    entries = read_manifest(file)
    expected = ((shard, row) for shard, one in enumerate(shards) for row in range(one.clips))
    count, places = sum(shard.clips for shard in shards), np.empty((len(entries), len(_FIELDS)), np.int64)
    for line, (row, _) in enumerate(entries.rows(), 1):
        found = row.get(_PLACE)
        if not isinstance(found, dict) or found.keys() != set(_FIELDS):
            raise ValueError(f"{file}:{line}: {_PLACE!r}: wanted shard, row and entry, got {found!r}")
        place = tuple(found[name] for name in _FIELDS)
        if place[:2] != next(expected, None) or type(place[2]) is not int or place[2] < 0:
            raise ValueError(f"{file}:{line}: {_PLACE!r}: wanted the next clip of the shards, got {found!r}")
        places[line - 1] = place
    if len(entries) != count:
        raise ValueError(f"{file}: wanted {count} entries as in {INDEX}, got {len(entries)}")
    return entries.without(_PLACE), places


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, all of it or nothing."""
    with file_written_whole(path) as scratch:
        scratch.write_text(json.dumps(value, indent=1), encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read an object; ``ValueError`` names the file that has none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: wanted a JSON file: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: wanted a JSON object, got {type(value).__name__}")
    return value
