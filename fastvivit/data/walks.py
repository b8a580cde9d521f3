"""Walking digits: long clips, whose captions need their whole length and every frame.

A clip shows one digit that goes four ways, one after the other: "the digit nine moves up, then left, then down, then
right". Each move goes around and ends where it began, so every fourth frame of the usual clip shows the digit in one
place: thinned out to a quarter of its frames, nothing moves. The *twin* has the first two moves after the last two:
exactly the same set of pictures, another caption.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np

from fastvivit.data.digits import MOTIONS, SPLITS, WORDS, DigitsConfig, Half, draw_motion
from fastvivit.data.entry import Entry
from fastvivit.data.manifest import write_manifest
from fastvivit.data.writer import write_clip

MOVES = 4
# Neighbours differ, also where the halves are swapped, and so do the halves.
WALKS = [
    moves
    for moves in itertools.product(MOTIONS, repeat=MOVES)
    if all(moves[i] != moves[i - 1] for i in range(MOVES)) and moves[:2] != moves[2:]
]


def walk_caption(digit: int, moves: tuple[str, ...]) -> str:
    """The sentence that describes a clip."""
    return f"the digit {WORDS[digit]} moves {', then '.join(moves)}"


def write_walks(
    folder: str | os.PathLike[str],
    clips: int,
    *,
    seed: int,
    split: str = "train",
    config: DigitsConfig | None = None,
) -> Path:
    """Write walking digits as mp4 files with a manifest; deterministic for a seed, to the byte.

    Clips ``00000a.mp4`` and ``00000b.mp4`` are twins. No two clips share a caption before all 720 have been used.
    Beside the usual fields, a line of the manifest has ``first`` (the digit), ``motions`` (four words), ``fps`` and
    ``frames``.

    Args:
        folder: where to; made if it doesn't exist, files of these names are replaced.
        clips: files to write, twins included, so an even number.
        seed: 0 or more.
        split: ``"train"`` or ``"heldout"``: from which handwriting.
        config: sizes and steps; None for the defaults with 64 frames.

    Returns:
        The manifest, ``folder/manifest.jsonl``; written last, so where it is, all files are.

    Raises:
        ValueError: an argument outside its range, moves that do not end where they began.
        ImportError: PyAV is not installed.
    """
    config = config or DigitsConfig(frames=64)
    if clips < 2 or clips % 2:
        raise ValueError(f"clips: wanted an even number (clips come with their twins), got {clips}")
    if split not in SPLITS:
        raise ValueError(f"split: wanted one of {list(SPLITS)}, got {split!r}")
    frames = config.frames // MOVES
    if config.frames % MOVES or frames * config.step % (config.size * config.every):
        raise ValueError(
            f"config: wanted frames that are {MOVES} times a way around (size / step * every), got {config}"
        )
    random = np.random.default_rng([seed, list(SPLITS).index(split)])
    glyphs, inside = SPLITS[split], (config.size - config.digit) // config.step + 1
    # One of every two twins.
    subjects = [(digit, moves) for digit in range(len(WORDS)) for moves in WALKS if moves < moves[2:] + moves[:2]]
    folder, entries = Path(folder), []
    folder.mkdir(parents=True, exist_ok=True)
    order: list[int] = []
    for number in range(clips // 2):
        order = order or random.permutation(len(subjects)).tolist()
        digit, moves = subjects[order.pop()]
        moves = moves[2:] + moves[:2] if random.integers(2) else moves
        place = {name: int(random.integers(inside)) * config.step for name in ("row", "column")}
        glyph = int(random.integers(glyphs.start, glyphs.stop))
        shown = {
            move: draw_motion(Half(digit=digit, glyph=glyph, motion=move, **place), frames, config) for move in moves
        }
        names = [folder / f"{number:05d}{letter}.mp4" for letter in "ab"]
        for walk, video, twin in ((moves, *names), (moves[2:] + moves[:2], *reversed(names))):
            pictures = np.concatenate([shown[move] for move in walk])
            write_clip(video, np.repeat(pictures[..., None], 3, axis=-1), config.fps)
            extra = {"first": digit, "motions": list(walk), "fps": config.fps, "frames": config.frames}
            entries.append(Entry(video=video, captions=(walk_caption(digit, walk),), twin=twin, extra=extra))
    return write_manifest(folder / "manifest.jsonl", entries)
