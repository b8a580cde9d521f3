"""Texts that are made already, on the disk: a long job that is killed goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from fastvivit.data.rows import row_text


class Ledger:
    """Rows by key, appended to a JSONL file as they come.

    Args:
        path: the file, made with the first row; None keeps nothing.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self.path = None if path is None else Path(path)
        self._rows: dict[str, dict[str, Any]] = {}
        if self.path is None or not self.path.exists():
            return
        for line in self.path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                row = json.loads(line)
                self._rows[row.pop("key")] = row
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # cut off by a kill: that text is made again

    def get(self, key: str) -> dict[str, Any] | None:
        """The row of a key, if there is one."""
        return self._rows.get(key)

    def add(self, rows: dict[str, dict[str, Any]]) -> None:
        """Keep rows by key; they are in the file when this returns."""
        self._rows |= rows
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                for key, row in rows.items():
                    # In front: a line that was cut off spoils no other.
                    file.write("\n" + row_text({"key": key} | row))


def key_of(*what: Any) -> str:
    """A key for all that a text depends on."""
    return hashlib.blake2b(json.dumps(what).encode(), digest_size=16).hexdigest()
