"""The folder of a demo, and the videos in it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from fastvivit.data import write_digits

VIDEOS = "videos"


def make_room(out: Path, runs: Sequence[str]) -> Path:
    """An empty folder, or one that only an earlier demo has filled; its videos and ``runs`` are removed."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: wanted a folder, {out} is a file")
    if out.is_dir() and any(out.iterdir()) and not (out / VIDEOS).is_dir():
        raise ValueError(f"out: wanted a new folder, or that of an earlier demo; {out} holds something else")
    for part in (*runs, VIDEOS):
        if (out / part).is_dir():
            shutil.rmtree(out / part)
    (out / VIDEOS).mkdir(parents=True)
    return out


def write_videos(out: Path, clips: int, seed: int, parts: int) -> tuple[Path, Path]:
    """Manifests of ``clips`` training clips and a quarter as many held-out ones, at most 256: part 1 of ``parts``."""
    began, heldout_clips = time.monotonic(), min(clips // 4, 256)
    train = write_digits(out / VIDEOS / "train", clips, seed=seed)
    heldout = write_digits(out / VIDEOS / "heldout", heldout_clips, seed=seed, split="heldout")
    seconds = time.monotonic() - began
    print(f"1/{parts}  wrote {clips} + {heldout_clips} mp4 files of moving digits in {seconds:.0f} s", flush=True)
    return train, heldout
