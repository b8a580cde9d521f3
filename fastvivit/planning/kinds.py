"""Whether a source holds clips or images, by its first sample: a plan waits for no index of a whole data set."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path

from fastvivit.data.container import IMAGE_SUFFIXES, SUFFIXES
from fastvivit.data.rows import rows_of
from fastvivit.data.shards import is_pack
from fastvivit.data.shards.files import INDEX
from fastvivit.data.tars import are_tars

_FIRST = re.compile(r"\{([^{},.]*)(?:,|\.\.)[^{}]*\}")
# As WebDataset splits the name of a member: up to the first dot of the file is the key.
_MEMBER = re.compile(r"((?:.*/)?[^./]+)(\.[^/]+)")


def kind_of(source: str) -> str | None:
    """What a source holds.

    Args:
        source: a manifest, tar shards or packed shards, as a run takes them.

    Returns:
        "video" or "image"; None where there is nothing to read yet, or nothing that can be read.
    """
    path = Path(source)
    try:
        if is_pack(path):
            shape = json.loads((path / INDEX).read_text(encoding="utf-8"))["shape"]
            return "image" if len(shape) == 2 else "video"
        if are_tars(source):
            return _of_tars(source)
        _, row = next(rows_of(path))
    except (OSError, ValueError, LookupError, TypeError, StopIteration, tarfile.TarError):
        return None
    return "image" if "image" in row else "video" if "video" in row else None


def _of_tars(source: str) -> str | None:
    """Of the first sample of the first tar; one that has both is a clip."""
    path = Path(source)
    first = min(path.glob("*.tar")) if path.is_dir() else Path(_FIRST.sub(r"\1", source))
    key, found = None, set()
    with tarfile.open(first, "r:") as tar:
        for member in tar:
            name = _MEMBER.fullmatch(member.name)
            if name is None or not member.isfile():
                continue
            if found and name[1] != key:
                break
            key, suffix = name[1], name[2].lower()
            if suffix in (*SUFFIXES, *IMAGE_SUFFIXES):
                found.add("video" if suffix in SUFFIXES else "image")
    return None if not found else "video" if "video" in found else "image"
