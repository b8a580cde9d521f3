"""WebDataset shards as entries: tar files whose members ``key.mp4`` and ``key.txt`` or ``key.json`` are one sample."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from fastvivit.data.container import IMAGE_SUFFIXES, SUFFIXES
from fastvivit.data.entries import Entries, EntryRows
from fastvivit.data.members import index_tar

_VIDEOS = tuple(suffix.lstrip(".") for suffix in SUFFIXES)
_IMAGES = tuple(suffix.lstrip(".") for suffix in IMAGE_SUFFIXES)
_ENDS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")  # the last ones to be refused by their name
_log = logging.getLogger(__name__)


def are_tars(source: str | os.PathLike[str]) -> bool:
    """Whether a data set's path means tar shards: its name ends as theirs do, or it is a folder."""
    return os.fspath(source).endswith(_ENDS) or Path(source).is_dir()


def read_tars(source: str | os.PathLike[str]) -> Entries:
    """The samples of WebDataset shards as the entries of a manifest.

    Naming and grouping are the ``webdataset`` library's: a name up to its first dot is the key, members in a row with
    the same key are a sample. A sample is a clip (``key.mp4`` or another suffix of ``fastvivit.data.container``) or
    an image (``.jpg``, ``.png``, ...) with a caption in ``key.json``, or else in ``key.txt``. The JSON object is
    read as a line of a manifest, whose captions may also be called "captions"; it has "start", "end" and any further
    fields. Samples without clip or caption are passed over and counted in a warning.

    Nothing is streamed: an entry's path goes through its tar (``train-0000.tar/key.mp4``) and is read in place. So
    any order, and any place to go on from, costs the same as with files; and a manifest may name such paths, too.
    What is where in a tar is found once and kept beside it, as ``train-0000.tar.index.json``, where that can be
    written.

    Args:
        source: a tar, several by braces (``train-{0000..0009}.tar``, expanded by ``braceexpand``), or a folder,
            whose tars are taken in the order of their names.

    Returns:
        At least one entry, in the order of the tars.

    Raises:
        ValueError: no tar there, one that is compressed, damaged or cut off, or a bad sample: tar and key are named.
        ImportError: webdataset is not installed.
    """
    rows = EntryRows()
    videoless = captionless = 0
    for tar in _expand(source):
        for sample in _samples(tar):
            row = _row(tar, sample)
            if row is None:
                videoless += 1
                continue
            if "caption" not in row:
                captionless += 1
                continue
            try:
                rows.add(row, tar)
            except ValueError as error:
                raise ValueError(f"{tar}: sample {sample['__key__']!r}: {error}") from None
    passed = f"{videoless} without a video or image and {captionless} without a caption"
    if not rows:
        raise ValueError(
            f"{source}: wanted at least one sample of a video and a caption, found {passed}; members of a sample lie "
            "next to each other (tar --sort=name)"
        )
    if videoless or captionless:
        _log.warning("%s: passed over samples: %s", source, passed)
    return rows.entries()


def import_webdataset() -> ModuleType:
    """The ``webdataset`` library, imported when first used.

    Raises:
        ImportError: it is not installed; the message says how to get it.
    """
    try:
        import webdataset
    except ImportError as error:
        raise ImportError(f"reading tar shards needs webdataset ({error}): pip install fastvivit[train]") from error
    return webdataset


def _expand(source: str | os.PathLike[str]) -> list[Path]:
    folder = Path(source)
    if folder.is_dir():
        tars = sorted(folder.glob("*.tar"))
        if not tars:
            raise ValueError(f"{source}: wanted a manifest, a tar or a folder of tars, the folder has none")
        return tars
    import_webdataset()
    from braceexpand import braceexpand

    try:
        tars = [Path(name) for name in braceexpand(os.fspath(source))]
    except ValueError as error:
        raise ValueError(f"{source}: wanted balanced braces: {error}") from None
    for tar in tars:
        if not tar.is_file():
            raise ValueError(f"{source}: wanted tar files, no such file: {tar}")
    return tars


def _samples(tar: Path) -> Iterator[dict[str, Any]]:
    """Samples of a tar: ``__key__``, and by suffix the names of members, for texts (name, text)."""
    import_webdataset()
    from webdataset.tariterators import base_plus_ext, group_by_keys, meta_prefix, meta_suffix

    index = index_tar(tar)
    files = (
        {"fname": name, "data": (name, index.texts.get(name)), "__url__": str(tar)}
        for name in index.members
        if not (name.startswith(meta_prefix) and name.endswith(meta_suffix))
    )
    try:
        yield from group_by_keys(files, keys=base_plus_ext)
    except ValueError as error:  # its own: two members of one key and suffix
        raise ValueError(f"{tar}: {error.args[0]}") from None


def _row(tar: Path, sample: dict[str, Any]) -> dict[str, Any] | None:
    """A line of a manifest, or None for a sample without pictures; its caption may be missing."""
    for field, suffixes in (("video", _VIDEOS), ("image", _IMAGES)):
        found = [sample[suffix][0] for suffix in suffixes if suffix in sample]
        if len(found) > 1:
            raise ValueError(f"{tar}: sample {sample['__key__']!r}: wanted one {field}, got {found}")
        if found:
            break
    else:
        return None
    row = _fields(tar, sample["json"]) if "json" in sample else {}
    text = sample["txt"][1].strip() if "txt" in sample else None
    caption = row.pop("caption", None) or row.pop("captions", None) or text
    if caption:
        row["caption"] = caption
    for name in ("video", "image"):  # where it came from, if anything: what is meant is beside it in the tar
        row.pop(name, None)
    return row | {field: found[0]}


def _fields(tar: Path, member: tuple[str, str]) -> dict[str, Any]:
    name, text = member
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{tar}: {name}: wanted JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{tar}: {name}: wanted a JSON object, got {type(fields).__name__}")
    return fields
