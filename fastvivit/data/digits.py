"""Moving digits: a benchmark that only an encoder with a sense of time can solve.

A clip shows two digits one after the other, each moving one way: "first the digit nine moves up, then the
digit six moves down". Its *twin* has the two halves swapped: exactly the same set of pictures, another
caption. An encoder that averages over pictures can't tell a clip from its twin and scores 50 %, chance.

The digits come from the "Optical Recognition of Handwritten Digits" set of E. Alpaydin and C. Kaynak (UCI
Machine Learning Repository, 1998; CC BY 4.0), as scikit-learn ships it: 50 of each are bundled in
`digits.npz`, see `digits.LICENSE.txt`.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from fastvivit.data.entry import Entry
from fastvivit.data.manifest import write_manifest
from fastvivit.data.writer import write_clip, write_image

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MOTIONS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
SPLITS = {"train": slice(0, 40), "heldout": slice(40, 50)}  # which glyphs of a digit; none is in both


@dataclass(frozen=True, kw_only=True)
class Half:
    """What one half of a clip shows.

    Attributes:
        digit: 0 to 9.
        glyph: which of the 50 bundled pictures of that digit.
        motion: ``"up"``, ``"down"``, ``"left"`` or ``"right"``.
        row: the digit's upper edge in the first picture, in pixels.
        column: the digit's left edge in the first picture, in pixels.
    """

    digit: int
    glyph: int
    motion: str
    row: int
    column: int

    def __post_init__(self) -> None:
        """Check every field."""
        if not (0 <= self.digit <= 9 and 0 <= self.glyph < 50):
            raise ValueError(f"digit, glyph: wanted 0 to 9 and 0 to 49, got {self.digit} and {self.glyph}")
        if self.motion not in MOTIONS:
            raise ValueError(f"motion: wanted one of {list(MOTIONS)}, got {self.motion!r}")


@dataclass(frozen=True, kw_only=True)
class DigitsConfig:
    """How moving digits look.

    Digits leave at one edge and come back at the other, so a direction stays what it is for the whole half.
    With steps and starts of whole patches an encoder meets few different patches and learns which digit it
    sees, too; with small steps it soon learns directions only.

    Attributes:
        frames: pictures a clip, even.
        size: side of a picture in pixels, even.
        digit: side of a digit in pixels, at most ``size``.
        step: pixels that a digit moves at a time; below half of ``size``, where forward and backward meet.
        every: pictures from one step to the next.
        fps: pictures per second of the files.
    """

    frames: int = 16
    size: int = 64
    digit: int = 32
    step: int = 16
    every: int = 1
    fps: float = 8.0

    def __post_init__(self) -> None:
        """Check every field."""
        if self.size < 2 or self.size % 2 or not 8 <= self.digit <= self.size:
            raise ValueError(f"size, digit: wanted an even size and 8 to size, got {self.size}, {self.digit}")
        if not 1 <= self.step < self.size / 2:
            raise ValueError(f"step: wanted 1 to less than half of size ({self.size}), got {self.step}")
        if self.every < 1 or self.frames % 2 or self.frames // 2 <= self.every:
            raise ValueError(
                f"frames, every: wanted an even number of frames, and halves longer than every, so that "
                f"digits move; got {self.frames}, {self.every}"
            )


def caption(first: Half, second: Half) -> str:
    """The sentence that describes a clip; its twin's has the halves swapped."""
    return (
        f"first the digit {WORDS[first.digit]} moves {first.motion}, "
        f"then the digit {WORDS[second.digit]} moves {second.motion}"
    )


def make_clip(first: Half, second: Half, config: DigitsConfig | None = None) -> np.ndarray:
    """Draw a clip.

    ``make_clip(second, first)`` is its twin: the same pictures with the halves swapped.

    Args:
        first: what the first half shows.
        second: what the second half shows.
        config: sizes and steps; None for the defaults.

    Returns:
        uint8 ``(T, H, W, 3)``, white digits on black.
    """
    config = config or DigitsConfig()
    clip = np.concatenate([draw_motion(half, config.frames // 2, config) for half in (first, second)])
    return np.repeat(clip[..., None], 3, axis=-1)


def draw_scenes(
    count: int, *, seed: int, split: str = "train", config: DigitsConfig | None = None
) -> list[tuple[Half, Half]]:
    """Draw what ``count`` clips show; deterministic for a seed.

    Digits and motions of a clip both differ. No two clips, nor one and another's twin, share a caption before
    all 540 pairs of captions have been used.

    Args:
        count: clips, without their twins.
        seed: 0 or more.
        split: ``"train"`` or ``"heldout"``: from which handwriting.
        config: sizes and steps; None for the defaults.

    Returns:
        The two halves of every clip.
    """
    if split not in SPLITS:
        raise ValueError(f"split: wanted one of {list(SPLITS)}, got {split!r}")
    config = config or DigitsConfig()
    random = np.random.default_rng([seed, list(SPLITS).index(split)])
    glyphs = SPLITS[split]
    # A digit is cut by the edges only where it moves through them, so that it stays legible.
    around, inside = config.size // config.step, (config.size - config.digit) // config.step + 1
    # Digits in one order, motions in both: every unordered pair of (digit, motion) once.
    subjects = list(itertools.product(itertools.combinations(range(10), 2), itertools.permutations(MOTIONS, 2)))
    scenes: list[tuple[Half, Half]] = []
    while len(scenes) < count:
        for subject in random.permutation(len(subjects))[: count - len(scenes)]:
            halves = []
            for digit, motion in zip(*subjects[subject], strict=True):
                along, across = int(random.integers(around)), int(random.integers(inside))
                vertical = MOTIONS[motion][0] != 0
                halves.append(
                    Half(
                        digit=digit,
                        glyph=int(random.integers(glyphs.start, glyphs.stop)),
                        motion=motion,
                        row=(along if vertical else across) * config.step,
                        column=(across if vertical else along) * config.step,
                    )
                )
            swapped = bool(random.integers(2))
            scenes.append((halves[swapped], halves[not swapped]))
    return scenes


def write_digits(
    folder: str | os.PathLike[str],
    clips: int,
    *,
    seed: int,
    split: str = "train",
    config: DigitsConfig | None = None,
) -> Path:
    """Write moving digits as mp4 files with a manifest; deterministic for a seed, to the byte.

    Clips ``00000a.mp4`` and ``00000b.mp4`` are twins. Beside the usual fields, a line of the manifest has
    ``first`` and ``second`` (the digits), ``motions`` (two words), ``fps`` and ``frames``.

    Args:
        folder: where to; made if it doesn't exist, files of these names are replaced.
        clips: files to write, twins included, so an even number.
        seed: 0 or more.
        split: ``"train"`` or ``"heldout"``: from which handwriting.
        config: sizes and steps; None for the defaults.

    Returns:
        The manifest, ``folder/manifest.jsonl``; written last, so where it is, all files are.

    Raises:
        ValueError: an argument outside its range.
        ImportError: PyAV is not installed.
    """
    if clips < 2 or clips % 2:
        raise ValueError(f"clips: wanted an even number (clips come with their twins), got {clips}")
    config = config or DigitsConfig()
    folder = Path(folder)
    scenes = draw_scenes(clips // 2, seed=seed, split=split, config=config)
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, (first, second) in enumerate(scenes):
        names = [folder / f"{number:05d}{letter}.mp4" for letter in "ab"]
        for halves, video, twin in (((first, second), *names), ((second, first), *reversed(names))):
            write_clip(video, make_clip(*halves, config), config.fps)
            extra = {
                "first": halves[0].digit,
                "second": halves[1].digit,
                "motions": [half.motion for half in halves],
                "fps": config.fps,
                "frames": config.frames,
            }
            entries.append(Entry(video=video, captions=(caption(*halves),), twin=twin, extra=extra))
    return write_manifest(folder / "manifest.jsonl", entries)


def write_stills(
    folder: str | os.PathLike[str],
    images: int,
    *,
    seed: int,
    split: str = "train",
    config: DigitsConfig | None = None,
) -> Path:
    """Write images of digits that stand still, "the digit nine", with a manifest; deterministic for a seed.

    Args:
        folder: where to; made if it doesn't exist, files of these names are replaced.
        images: PNG files to write.
        seed: 0 or more.
        split: ``"train"`` or ``"heldout"``: from which handwriting.
        config: sizes and steps; None for the defaults.

    Returns:
        The manifest, ``folder/manifest.jsonl``; written last. A line has the digit as ``first``.

    Raises:
        ValueError: an argument outside its range.
        ImportError: PyAV is not installed.
    """
    if images < 1:
        raise ValueError(f"images: wanted at least 1, got {images}")
    config, folder = config or DigitsConfig(), Path(folder)
    scenes = draw_scenes(images, seed=seed, split=split, config=config)
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, (half, _) in enumerate(scenes):
        file = folder / f"{number:05d}.png"
        write_image(file, np.repeat(draw_motion(half, 1, config)[0, ..., None], 3, axis=-1))
        sentence = f"the digit {WORDS[half.digit]}"
        entries.append(Entry(video=file, kind="image", captions=(sentence,), extra={"first": half.digit}))
    return write_manifest(folder / "manifest.jsonl", entries)


@cache
def _glyphs() -> np.ndarray:
    """The bundled digits, uint8 (10, 50, 8, 8)."""
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as archive:
        return archive["glyphs"]


def draw_motion(half: Half, frames: int, config: DigitsConfig) -> np.ndarray:
    """A digit on its way, uint8 ``(frames, H, W)``."""
    glyph = torch.from_numpy(_glyphs()[half.digit, half.glyph]).float()[None, None]
    side = config.digit
    drawn = torch.nn.functional.interpolate(glyph, (side, side), mode="bilinear", align_corners=False)
    picture = np.zeros((config.size, config.size), np.uint8)
    picture[:side, :side] = drawn[0, 0].round().byte().numpy()
    down, right = MOTIONS[half.motion]
    steps = [frame // config.every * config.step for frame in range(frames)]
    return np.stack(
        [np.roll(picture, (half.row + down * moved, half.column + right * moved), axis=(0, 1)) for moved in steps]
    )
