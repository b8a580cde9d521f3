"""Folders and files that appear whole or not at all, whenever the process or the machine stops."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A new folder beside ``target`` to write into; at the end it is on the disk and takes that place.

    What stood there goes only when the new folder is complete. An error leaves it as it was.
    """
    _make(target.parent)
    scratch = target.with_name(f".{target.name}-{secrets.token_hex(4)}")
    scratch.mkdir()  # not tempfile.mkdtemp, whose folders nobody else may read
    try:
        yield scratch
        _flush(scratch)
        _replace(scratch, target)
        _flush_names(target.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def file_written_whole(target: Path) -> Iterator[Path]:
    """A name beside ``target`` to write a file under; at the end it is on the disk and takes that place.

    What stood there goes only then. An error leaves it as it was.
    """
    _make(target.parent)
    scratch = target.with_name(f".{target.name}-{secrets.token_hex(4)}")
    try:
        yield scratch
        _flush_file(scratch)
        scratch.replace(target)
        _flush_names(target.parent)
    finally:
        scratch.unlink(missing_ok=True)


def _make(folder: Path) -> None:
    """Make a folder and those above it, their names on the disk: what is in it would else be lost with them."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        _flush_names(path.parent)


def _replace(scratch: Path, target: Path) -> None:
    if not target.exists():
        scratch.rename(target)
        return
    old = target.with_name(f"{scratch.name}-old")
    target.rename(old)
    try:
        scratch.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old)


def _flush(folder: Path) -> None:
    """Bring all files below a folder, and their names, to the disk."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            _flush_names(path)
        else:
            _flush_file(path)
    _flush_names(folder)


def _flush_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _flush_names(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
