"""The files of a folder of videos, found by the ids that data sets give them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from fastvivit.data.container import SUFFIXES

# What yt-dlp ("title [id]") and youtube-dl ("title-id") call a file when they aren't told otherwise.
_TITLED = re.compile(r".*(?:\[(?P<bracket>[\w-]{11})\]|-(?P<dash>[\w-]{11}))", re.DOTALL)


class VideoFolder:
    """Video files below a folder, by stem.

    A stem is matched as it is, case and all. Where no file has it, a file with a title before it is taken:
    ``title [stem]`` and ``title-stem`` for the 11 characters of a YouTube id.

    Args:
        path: the folder; its sub-folders are looked into as well.

    Raises:
        ValueError: no such folder, or no video in it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise ValueError(f"videos: wanted a folder of video files, no such folder: {self.path}")
        self._exact: dict[str, list[Path]] = {}
        self._titled: dict[str, list[Path]] = {}
        for file in sorted(self.path.rglob("*")):
            # A dot begins what other programs leave beside a video, under its own suffix.
            if file.suffix.lower() not in SUFFIXES or file.name.startswith(".") or not file.is_file():
                continue
            self._exact.setdefault(file.stem, []).append(file)
            if match := _TITLED.fullmatch(file.stem):
                self._titled.setdefault(match["bracket"] or match["dash"], []).append(file)
        if not self._exact:
            raise ValueError(f"videos: wanted video files ({', '.join(SUFFIXES)}) in {self.path}, found none")

    def __len__(self) -> int:
        """How many files were found."""
        return sum(map(len, self._exact.values()))

    def find(self, stem: str) -> list[Path]:
        """All files with that stem, in the order of their paths; none is an empty list."""
        return self._exact.get(stem) or self._titled.get(stem, [])
