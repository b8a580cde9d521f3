"""Parts of a data set: a split, listed ids, a number of videos drawn by a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from fastvivit.data.container import SUFFIXES
from fastvivit.data.imports.annotated import Annotated
from fastvivit.data.imports.reading import Node, read_json, read_lines, read_text

_NAMES = (("train", "training"), ("val", "valid", "validate", "validation"), ("test", "testing"))
_ALIASES = {name: names[0] for names in _NAMES for name in names}


def of_split(clips: Sequence[Annotated], split: str) -> list[Annotated]:
    """The clips of a split; ``val``, ``valid``, ``validate`` and ``validation`` are one, and so on.

    Raises:
        ValueError: no clip belongs to it.
    """
    wanted = _ALIASES.get(split, split)
    found = [clip for clip in clips if clip.split is not None and _ALIASES.get(clip.split, clip.split) == wanted]
    if not found:
        known = ", ".join(dict.fromkeys(clip.split for clip in clips if clip.split is not None))
        raise ValueError(f"split: wanted one that the annotations name ({known or 'they name none'}), got {split!r}")
    return found


def of_ids(clips: Sequence[Annotated], path: Path) -> list[Annotated]:
    """The clips of the videos that a file lists, in the order of the clips.

    Raises:
        ValueError: a bad file, or ids that no clip has.
    """
    listed = read_ids(path)
    known = {clip.id for clip in clips}
    # ActivityNet's ids are written with and without "v_".
    wanted = {name if name in known else f"v_{name}" for name in listed}
    unknown = [name for name in listed if name not in known and f"v_{name}" not in known]
    if unknown:
        raise ValueError(
            f"subset: wanted ids of the {len(known)} annotated videos (of the split, if one is given), "
            f"{len(unknown)} of the {len(listed)} in {path} are not, for example {unknown[0]!r}"
        )
    return [clip for clip in clips if clip.id in wanted]


def drawn(clips: Sequence[Annotated], limit: int, seed: int) -> list[Annotated]:
    """The clips of ``limit`` videos, the same on every machine, whatever videos are there.

    Raises:
        ValueError: ``limit`` below 1 or above the number of videos.
    """
    names = dict.fromkeys(clip.id for clip in clips)
    if not 1 <= limit <= len(names):
        raise ValueError(f"limit: wanted 1 to {len(names)} videos, got {limit}")
    # Each id draws its own number, so the order of the file changes nothing.
    chosen = set(sorted(names, key=lambda name: hashlib.blake2b(f"{seed}/{name}".encode()).digest())[:limit])
    return [clip for clip in clips if clip.id in chosen]


def read_ids(path: Path) -> list[str]:
    """Ids that a file lists.

    JSON: a list of them, or an object with them as its keys. CSV: the column ``video_id`` or ``q_uid``, or
    the first one. Anything else: an id a line. Folders before and video suffixes behind an id are ignored,
    so official lists such as ``226/xHr8X2Wpmno`` will do.

    Raises:
        ValueError: no such file, not of its format, or no id in it.
    """
    suffix = path.suffix.lower()
    if suffix == ".json":
        found = _of_json(read_json(path, "subset"))
    elif suffix == ".csv":
        found = _of_csv([cells for _, cells in read_lines(path, "subset")])
    else:
        found = read_text(path, "subset", "text").splitlines()
    names = list(dict.fromkeys(_bare(text) for text in found if text.strip()))
    if not names:
        raise ValueError(f"subset: wanted at least one id in {path}, got none")
    return names


def _of_json(root: Node) -> list[str]:
    if isinstance(root.value, dict):
        return list(root.value)
    return [node.name() for node in root.elements()]


def _of_csv(rows: list[list[str]]) -> list[str]:
    for name in ("video_id", "q_uid"):
        if rows and name in rows[0]:
            place = rows[0].index(name)
            return [row[place] for row in rows[1:] if len(row) > place]
    return [row[0] for row in rows]


def _bare(text: str) -> str:
    name = PurePosixPath(text.strip()).name
    suffix = PurePosixPath(name).suffix
    return name.removesuffix(suffix) if suffix.lower() in SUFFIXES else name
