"""Video files in words: a captioner's text for each file, or for each window of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastvivit.caption import VideoCaptioner
from fastvivit.data import VideoError, read_clip, sample_seed
from fastvivit.search import pad_clip
from fastvivit.train.step import draw_masks
from fastvivit.train.tables import MaskConfig


@dataclass(frozen=True, kw_only=True)
class Description:
    """What was written for a window of a file.

    Attributes:
        file: the video.
        start: seconds at which the window begins.
        end: seconds after the last picture that was looked at.
        text: the text.
    """

    file: str
    start: float
    end: float
    text: str


def spaced_windows(
    path: Path, frames: int, fps: float, size: int | tuple[int, int], every: float | None = None
) -> Iterator[tuple[float, Tensor]]:
    """A file as (start, clip (C, T, H, W)) with T at most ``frames``, a window every so many seconds.

    A window that comes after others and is less than half full is left out, as in ``read_windows``.

    Args:
        path: the file.
        frames: most pictures a window.
        fps: pictures per second.
        size: pixels.
        every: seconds between the beginnings of windows, and the longest that one lasts; None is one window, from
            the beginning of the file.

    Raises:
        VideoError: a file that can't be read.
    """
    if every is None:
        yield 0.0, read_clip(path, frames, fps, size, pad=False)
        return
    full = min(frames, math.ceil(every * fps - 1e-6))
    number = 0
    while True:
        start = number * every
        try:
            clip = read_clip(path, frames, fps, size, start, pad=False, end=start + every)
        except VideoError as error:
            if number and str(error).startswith("start:"):  # the file ended with the window before
                return
            raise
        if number and 2 * clip.shape[1] < full:
            return
        yield start, clip
        if clip.shape[1] < full:
            return
        number += 1


@torch.no_grad()
def describe_files(
    model: VideoCaptioner,
    files: Sequence[Path],
    *,
    fps: float,
    every: float | None = None,
    prompt: str = "",
    max_new_tokens: int = 32,
    beams: int = 1,
    mask_ratio: float = 0.0,
    seed: int = 0,
    batch_size: int = 8,
    broken: Callable[[Path, VideoError], Any] | None = None,
    read: Callable[[Path], Any] | None = None,
) -> Iterator[Description]:
    """Write a text for every file, or every window of it, in order.

    Args:
        model: in eval mode.
        files: videos.
        fps: pictures per second, as in training; the encoder's ``frames`` of them are looked at.
        every: a text for every so many seconds; None is one a file.
        prompt: what each text goes on from.
        max_new_tokens: at most so many.
        beams: of beam search; 1 is greedy.
        mask_ratio: share of the tokens to drop; the paper drops 0.3.
        seed: of the masks, which depend on nothing else but a window's place in its file.
        batch_size: windows at a time.
        broken: called for each file that can't be read, which is then left out; None raises its error.
        read: called after each file, broken or not.

    Raises:
        ValueError: a number out of range; no file can be read.
    """
    for name, number in (("max_new_tokens", max_new_tokens), ("beams", beams), ("batch_size", batch_size)):
        if number < 1:
            raise ValueError(f"{name}: wanted at least 1, got {number}")
    if every is not None and not 0 < every < math.inf:
        raise ValueError(f"every: wanted seconds above 0, got {every}")
    config, device = model.video.config, next(model.layers.parameters()).device
    mask = MaskConfig(ratio=mask_ratio)
    waiting: list[tuple[Path, float, float, int, Tensor]] = []
    found = False

    def write() -> Iterator[Description]:
        clips = torch.stack([pad_clip(clip, config.frames) for *_, clip in waiting])
        seeds = torch.tensor([sample_seed(seed, 0, number, "describe") for *_, number, _ in waiting])
        keep = draw_masks(seeds, config.views, mask)
        texts = model.generate(
            clips.to(device),
            prompt,
            max_new_tokens,
            keep=None if keep is None else keep.to(device),
            num_beams=beams,
        )
        for (file, start, end, *_), text in zip(waiting, texts, strict=True):
            yield Description(file=str(file), start=start, end=end, text=text)
        waiting.clear()

    for file in files:
        try:
            for number, (start, clip) in enumerate(spaced_windows(file, config.frames, fps, config.size, every)):
                waiting.append((file, start, start + clip.shape[1] / fps, number, clip))
                found = True
                if len(waiting) == batch_size:
                    yield from write()
        except VideoError as error:
            if broken is None:
                raise
            broken(file, error)
        if read is not None:
            read(file)
    if waiting:
        yield from write()
    if not found:
        raise ValueError(f"files: wanted at least one video that can be read, got none of {len(files)}")
