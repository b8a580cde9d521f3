"""Files inside tar archives, under paths that go through the archive: ``shards/train-0000.tar/cup.mp4``.

A tar is plain bytes after plain headers, so a member can be read where it lies. Its headers are walked once; what they
say is kept in memory and, where that can be written, in a file beside the tar: ``train-0000.tar.index.json``.
"""

from __future__ import annotations

import errno
import functools
import io
import json
import os
import tarfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from fastvivit.data.rows import row_text

_FORMAT = 1
_BLOCK = 512
_TEXTS = (".json", ".txt")


@dataclass(frozen=True, kw_only=True)
class TarIndex:
    """What a tar holds.

    Attributes:
        format: of this record.
        size: bytes of the tar.
        mtime: of the tar, in nanoseconds.
        members: offset and bytes of each regular file, by name, in the order of the tar.
        texts: what ``.txt`` and ``.json`` members hold, so that reading captions needs no visit to each.
    """

    format: int
    size: int
    mtime: int
    members: dict[str, tuple[int, int]]
    texts: dict[str, str]


def index_tar(tar: Path) -> TarIndex:
    """The index of a tar, from beside it where that is there and still fits, else made and put there.

    Raises:
        ValueError: no uncompressed tar, a damaged or truncated one, one with two members of a name, or text in
            it that is not UTF-8.
        OSError: it can't be read.
    """
    about = tar.stat()
    beside = tar.with_name(f"{tar.name}.index.json")
    with suppress(OSError, ValueError, TypeError, AttributeError):
        known = TarIndex(**json.loads(beside.read_text(encoding="utf-8")))
        if (known.format, known.size, known.mtime) == (_FORMAT, about.st_size, about.st_mtime_ns):
            return known
    made = _walk(tar, about.st_size, about.st_mtime_ns)
    partial = beside.with_name(f".{beside.name}.{os.getpid()}")
    with suppress(OSError):  # a folder that may only be read
        try:
            partial.write_text(row_text(asdict(made)), encoding="utf-8")
            partial.replace(beside)
        finally:
            partial.unlink(missing_ok=True)
    return made


def _walk(tar: Path, size: int, mtime: int) -> TarIndex:
    members: dict[str, tuple[int, int]] = {}
    texts: dict[str, str] = {}
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                if not member.isreg() or member.issparse():
                    continue
                name = _plain(member.name)
                if name in members:
                    raise ValueError(f"{tar}: wanted members of different names, got {name!r} twice")
                members[name] = (member.offset_data, member.size)
                if name.lower().endswith(_TEXTS):
                    texts[name] = archive.extractfile(member).read().decode("utf-8-sig")
            archive.fileobj.seek(archive.offset)
            rest = archive.fileobj.read(_BLOCK)
    except tarfile.TarError as error:
        # Asked in this order, because a compressed tar is no readable one, either.
        kind = "compressed: unpack it, its members can't be reached in place" if _compressed(tar) else str(error)
        raise ValueError(f"{tar}: wanted an uncompressed tar that is whole, got one that is {kind}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{tar}: {name}: wanted UTF-8 text: {error}") from None
    if rest.strip(b"\0"):  # tarfile takes a header that it can't read for the end
        raise ValueError(f"{tar}: wanted a whole tar, its header at byte {archive.offset} is damaged")
    return TarIndex(format=_FORMAT, size=size, mtime=mtime, members=members, texts=texts)


def _compressed(tar: Path) -> bool:
    with tar.open("rb") as file:
        return file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))


def _plain(name: str) -> str:
    """A member's name as the end of a path has it."""
    return str(PurePosixPath(name.lstrip("/")))


@functools.cache
def _members(tar: str, size: int, mtime: int) -> dict[str, tuple[int, int]]:
    return index_tar(Path(tar)).members


def find_tar(path: Path) -> tuple[Path, str] | None:
    """The tar that a path goes through and the member's name in it, or None for any other path."""
    for depth, part in enumerate(path.parts[:-1], 1):
        if part.endswith(".tar"):
            tar = Path(*path.parts[:depth])
            if tar.is_file():
                return tar, "/".join(path.parts[depth:])
    return None


def open_file(path: Path) -> BinaryIO:
    """Open a file, or a member of a tar, for reading; close it after use.

    Raises:
        FileNotFoundError: no such file or member.
        OSError: it can't be read, or is in a tar that ``index_tar`` refuses.
    """
    found = find_tar(path)
    if found is None:
        return path.open("rb")
    offset, size, _ = _place(*found)
    return Slice(found[0], offset, size, str(path))


def file_stamp(path: Path) -> tuple[int, int]:
    """Bytes of a file or a member of a tar, and when it (or its tar) was last changed, in nanoseconds.

    Raises:
        FileNotFoundError: no such file or member.
        OSError: it can't be read, or is in a tar that ``index_tar`` refuses.
    """
    found = find_tar(path)
    if found is None:
        about = path.stat()
        return about.st_size, about.st_mtime_ns
    _, size, mtime = _place(*found)
    return size, mtime


def _place(tar: Path, name: str) -> tuple[int, int, int]:
    about = tar.stat()
    try:
        members = _members(str(tar), about.st_size, about.st_mtime_ns)
    except ValueError as error:  # to readers a file like others that can't be read
        raise OSError(errno.EIO, str(error), str(tar)) from None
    if name not in members:
        raise FileNotFoundError(errno.ENOENT, "the tar has no such member", f"{tar}/{name}")
    return *members[name], about.st_mtime_ns


class Slice(io.RawIOBase):
    """Some bytes of a file as a file of their own.

    Args:
        file: the whole.
        offset: where they begin.
        size: how many.
        name: what it calls itself; FFmpeg looks at the end of it.
    """

    def __init__(self, file: Path, offset: int, size: int, name: str) -> None:
        self._file = file.open("rb", buffering=0)
        self._offset, self._size, self._at = offset, size, 0
        self.name = name

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Fill as much of ``buffer`` as there is; how much that was."""
        view = memoryview(buffer).cast("B")[: max(0, self._size - self._at)]
        self._file.seek(self._offset + self._at)
        count = self._file.readinto(view)
        self._at += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move, as of any file."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"offset: wanted a place from 0 on, got {base + offset}")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        """Where it is."""
        return self._at

    def close(self) -> None:
        """Close the whole, too."""
        self._file.close()
        super().close()
