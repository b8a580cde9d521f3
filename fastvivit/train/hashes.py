"""Hashes of files' contents, each file read once."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from fastvivit.data.members import file_stamp, open_file

_log = logging.getLogger(__name__)


class FileHashes:
    """Hashes of files, remembered on the disk by path, size and time of the last change.

    Where the memo can't be written (a full disk, a folder that may only be read), they are remembered in memory alone.

    Args:
        memo: a JSONL file; made when the first hash is taken.
    """

    def __init__(self, memo: Path) -> None:
        self.memo = memo
        self._writable = True
        self._known: dict[tuple[str, int, int], str] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the memo again, for what other processes have noted since."""
        for line in self.memo.read_text(encoding="utf-8").splitlines() if self.memo.is_file() else ():
            try:
                row = json.loads(line)
                self._known[row["path"], row["size"], row["mtime"]] = row["hash"]
            except (ValueError, KeyError, TypeError):
                continue  # cut off by a kill: that file is read again

    def __call__(self, path: Path) -> str:
        """The hash of the bytes of a file, or of a member of a tar.

        Raises:
            OSError: that file can't be read.
        """
        place = (str(path.absolute()), *file_stamp(path))
        if place not in self._known:
            with open_file(path) as file:
                found = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
            self._known[place] = found
            self._note(dict(zip(("path", "size", "mtime"), place, strict=True)) | {"hash": found})
        return self._known[place]

    def _note(self, row: dict[str, Any]) -> None:
        if not self._writable:
            return
        try:
            self.memo.parent.mkdir(parents=True, exist_ok=True)
            with self.memo.open("a", encoding="utf-8") as memo:
                memo.write("\n" + json.dumps(row))  # in front: a line that was cut off spoils no other
        except OSError as error:  # the memo's: callers take ours for a file that is broken
            self._writable = False
            _log.warning("hashes of files are not kept for the next run: %s", error)
