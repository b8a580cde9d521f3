"""Files of transcripts: which belongs to a video, and what is in it."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SUFFIXES = (".json", ".vtt", ".srt", ".txt")  # where a video has several; the last one knows no times
_LANGUAGE = re.compile(r"\.[a-z]{2,3}(-[A-Za-z0-9]+)*$")  # title.en.vtt
_STAMP = r"(?:(\d+):)?(\d\d):(\d\d)[.,](\d{1,3})"
_TIMING = re.compile(rf"^\s*{_STAMP}\s*-->\s*{_STAMP}")


@dataclass(frozen=True)
class Cue:
    """Something said.

    Attributes:
        text: the words, with markup as in the file.
        start: seconds from the beginning of the video, or None where the file has no times.
        end: likewise.
    """

    text: str
    start: float | None = None
    end: float | None = None


def find_transcripts(folder: str | os.PathLike[str], *, below: bool = True) -> dict[str, list[Path]]:
    """Transcripts in a folder by the stem of their video, the one to take first.

    ``cup.json``, ``cup.vtt``, ``cup.en.vtt``, ``cup.srt`` and ``cup.txt`` belong to ``cup.mp4``; ``.json`` is taken
    before ``.vtt``, ``.srt`` and ``.txt``, and a name without a language before one with it.

    Args:
        folder: where they are.
        below: look into sub-folders, too.

    Raises:
        ValueError: no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"transcripts: wanted a folder, no such folder: {folder}")
    found: dict[str, list[tuple[int, bool, Path]]] = {}
    for file in sorted(folder.rglob("*") if below else folder.iterdir()):
        suffix = file.suffix.lower()
        if suffix in _SUFFIXES and file.is_file():
            place = _SUFFIXES.index(suffix)
            found.setdefault(file.stem, []).append((place, False, file))
            if (language := _LANGUAGE.search(file.stem)) is not None:
                found.setdefault(file.stem[: language.start()], []).append((place, True, file))
    return {stem: [file for *_, file in sorted(files)] for stem, files in found.items()}


def read_transcript(path: str | os.PathLike[str]) -> list[Cue]:
    """Read what was said.

    ``.txt`` is plain text without times. ``.srt`` and ``.vtt`` are subtitles; a line that repeats the one before, as
    automatic subtitles that roll up have it, is taken once. ``.json`` is what Whisper writes,
    ``{"segments": [{"start", "end", "text"}]}``, or transformers' pipeline,
    ``{"chunks": [{"timestamp": [start, end], "text"}]}``, or ``{"text"}`` alone.

    Raises:
        ValueError: no such file, not UTF-8, or nothing of the kind that its suffix promises.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix not in _SUFFIXES:
        raise ValueError(f"transcript: wanted one of {', '.join(_SUFFIXES)}, got {file}")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"transcript: wanted a file, no such file: {file}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: wanted UTF-8 text: {error}") from None
    if suffix == ".txt":
        return [Cue(text)]
    return _speech(file, text) if suffix == ".json" else _subtitles(file, text)


def said_between(cues: Iterable[Cue], start: float, end: float | None) -> str | None:
    """What was said within a part of a video, or None where a part is wanted and times are missing."""
    cues = list(cues)
    if start == 0 and end is None:
        return "\n".join(cue.text for cue in cues)
    if any(cue.start is None for cue in cues):
        return None
    end = math.inf if end is None else end
    return "\n".join(cue.text for cue in cues if cue.start < end and (cue.end is None or cue.end > start))


def _subtitles(file: Path, text: str) -> list[Cue]:
    cues: list[Cue] = []
    last = None
    # Blocks between empty lines (one of a space is not empty); those without a time are headers, notes and styles.
    for block in re.split(r"\n{2,}", text.replace("\r\n", "\n")):
        lines = block.strip("\n").split("\n")
        place = next((place for place, line in enumerate(lines) if _TIMING.match(line)), None)
        if place is None:
            continue
        times = _TIMING.match(lines[place]).groups()
        said = []
        for line in lines[place + 1 :]:
            bare = " ".join(re.sub(r"<[^<>]*>", "", line).split())
            if bare and bare != last:
                said.append(line)
                last = bare
        if said:
            cues.append(Cue("\n".join(said), _seconds(times[:4]), _seconds(times[4:])))
    if not cues and "-->" not in text and not text.startswith("WEBVTT"):
        raise ValueError(f"{file}: wanted subtitles, found no line such as 00:00:01,000 --> 00:00:02,000")
    return cues


def _seconds(parts: Sequence[str | None]) -> float:
    hours, minutes, seconds, fraction = parts
    return 3600 * int(hours or 0) + 60 * int(minutes) + int(seconds) + float(f"0.{fraction}")


def _speech(file: Path, text: str) -> list[Cue]:
    try:
        found: Any = json.loads(text)
        if "segments" in found:
            return [Cue(part["text"], float(part["start"]), float(part["end"])) for part in found["segments"]]
        if "chunks" in found:
            spans = [(part["text"], *part["timestamp"]) for part in found["chunks"]]
            # The last chunk may lack its end.
            return [Cue(said, float(start), None if end is None else float(end)) for said, start, end in spans]
        if not isinstance(found["text"], str):
            raise TypeError
        return [Cue(found["text"])]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{file}: wanted speech as Whisper writes it, with 'segments', 'chunks' or 'text'") from None
