"""A caption for a clip from one of its frames (paper appendix B)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastvivit.data.container import VideoError
from fastvivit.data.entry import Entry
from fastvivit.data.images import read_image
from fastvivit.data.members import file_stamp
from fastvivit.data.synthetic.ledger import Ledger, key_of
from fastvivit.data.synthetic.result import Dropped, NewTexts, callable_name, read_source, video_of, with_text
from fastvivit.data.video import check_clip, read_clip

FRAMES, FRAMES_FPS = (50, 25, 0), 10.0
Captioner = Callable[[Tensor], Sequence[str]]


def caption_frames(
    source: str | os.PathLike[str] | Sequence[Entry | Path],
    captioner: Captioner,
    *,
    by: str | None = None,
    frames: Sequence[int] = FRAMES,
    fps: float = FRAMES_FPS,
    size: int | tuple[int, int] = 256,
    batch_size: int = 8,
    workers: int = 0,
    keep_captions: bool = False,
    ledger: str | os.PathLike[str] | None = None,
    advance: Callable[[int], Any] | None = None,
) -> NewTexts:
    """Have each clip described by what one of its frames shows.

    The paper (appendix B) captions VideoCC3M, at 10 FPS and about 10 seconds a clip, by an image captioner: "we
    roughly sample the center frame [...] i.e. selecting the 50th frame, and if this fails, selecting the 25th frame,
    or if this fails, the 0th frame". Frame n is the picture on screen n / fps seconds after the clip begins; it
    fails where the clip has ended by then, or can't be decoded so far. An image is described as it is.

    Args:
        source: a manifest or tar shards by their path, or entries; paths of videos where there are no captions yet.
        captioner: images uint8 (B, 3, H, W), B at most ``batch_size``, on the CPU -> B captions. What it raises ends
            the job.
        by: what the captioner is called in the manifest; its import path by default.
        frames: numbers of the frames to try, in this order.
        fps: the rate at which they are numbered.
        size: pixels of the square that frames are scaled and cut to, or ``(h, w)``.
        batch_size: images at a time.
        workers: processes that decode; 0 is this one.
        keep_captions: put the new caption behind those that an entry has, instead of in their place.
        ledger: a JSONL file in which captions are kept as they come, by clip, content (path, size, time of the last
            change), captioner name and arguments. A job that was killed is called again with it, and goes on.
        advance: called with 1 after each clip.

    Returns:
        Entries with ``extra["text_source"]`` = ``{"kind": "frame caption", "frame": 50, "seconds": 5.0, "by": name}``,
        of images ``{"kind": "image caption", "by": name}``; and what was dropped: "broken clip", "empty caption".

    Raises:
        ValueError: an argument outside its range, a bad manifest, or captions that are no B strings.
    """
    height, width = check_clip(1, fps, size, 0.0, None, None)
    if not frames or not all(isinstance(frame, int) and frame >= 0 for frame in frames):
        raise ValueError(f"frames: wanted numbers of at least 0, got {frames!r}")
    for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
        if value < least:
            raise ValueError(f"{name}: wanted at least {least}, got {value}")
    items, by, kept = read_source(source), callable_name(captioner, by), Ledger(ledger)
    settings = ["frame caption", by, list(frames), float(fps), [height, width]]
    keys: dict[int, str] = {}
    broken: dict[int, str] = {}
    for index, item in enumerate(items):
        try:
            keys[index] = key_of(settings, *_content(item))
        except OSError as error:
            broken[index] = f"{video_of(item)}: {error.strerror}"
    waiting: dict[int, _Still] = {}
    pending = [index for index, key in keys.items() if kept.get(key) is None]
    stills = _Stills(items, pending, tuple(frames), fps, (height, width))
    loader = DataLoader(stills, batch_size=None, num_workers=workers, generator=torch.Generator())

    def caption() -> None:
        if waiting:
            images = torch.stack([still.image for still in waiting.values()])
            texts = _checked(captioner(images), len(waiting))
            rows = zip(waiting.items(), texts, strict=True)
            kept.add({keys[index]: {"text": text, "frame": still.frame} for (index, still), text in rows})
            waiting.clear()

    step = advance or (lambda count: None)
    step(len(items) - len(pending))
    for index, found in zip(pending, loader, strict=True):
        if isinstance(found, str):
            broken[index] = found
        else:
            waiting[index] = found
        if len(waiting) == batch_size:
            caption()
        step(1)
    caption()
    return _result(items, keys, broken, kept, fps, by, keep_captions=keep_captions)


def _result(
    items: list[Entry | Path],
    keys: dict[int, str],
    broken: dict[int, str],
    kept: Ledger,
    fps: float,
    by: str,
    *,
    keep_captions: bool,
) -> NewTexts:
    entries, dropped = [], []
    for index, item in enumerate(items):
        if index in broken:
            dropped.append(Dropped(index, str(video_of(item)), "broken clip", broken[index]))
            continue
        row = kept.get(keys[index])
        text, frame = " ".join(row["text"].split()), row["frame"]
        if not text:
            dropped.append(Dropped(index, str(video_of(item)), "empty caption", "the captioner said nothing"))
            continue
        about: dict[str, Any] = {"kind": "image caption"}
        if frame is not None:
            about = {"kind": "frame caption", "frame": frame, "seconds": frame / fps}
        about["by"] = by
        entries.append(with_text(item, text, about, keep_captions=keep_captions))
    return NewTexts(entries=entries, dropped=tuple(dropped))


def _content(item: Entry | Path) -> list[Any]:
    video = video_of(item)
    part = [item.start, item.end, item.stream, item.kind] if isinstance(item, Entry) else [0.0, None, None, "video"]
    return [str(video.absolute()), *file_stamp(video), *part]


def _checked(texts: Sequence[str], count: int) -> list[str]:
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts) or len(texts) != count:
        got = repr(texts) if isinstance(texts, str) else f"{len(texts)} of {sorted({type(t).__name__ for t in texts})}"
        raise ValueError(f"captioner: wanted {count} strings for {count} images, got {got}")
    return list(texts)


@dataclass(frozen=True)
class _Still:
    frame: int | None  # None: the clip is an image
    image: Tensor  # (3, H, W)


class _Stills(Dataset[Any]):
    """The frame of each pending clip, or in words why there is none."""

    def __init__(
        self,
        items: list[Entry | Path],
        pending: list[int],
        frames: tuple[int, ...],
        fps: float,
        size: tuple[int, int],
    ) -> None:
        self.items = [items[index] for index in pending]
        self.frames, self.fps, self.size = frames, fps, size

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> _Still | str:
        item, reason = self.items[place], ""
        is_image = isinstance(item, Entry) and item.kind == "image"
        for frame in (None,) if is_image else self.frames:
            try:
                return _Still(frame, self._read(item, frame))
            except (VideoError, OSError) as error:
                reason = str(error)
        return reason

    def _read(self, item: Entry | Path, frame: int | None) -> Tensor:
        if frame is None:
            return read_image(video_of(item), self.size)
        if isinstance(item, Path):
            return read_clip(item, 1, self.fps, self.size, frame / self.fps)[:, 0]
        start = item.start + frame / self.fps
        if item.end is not None and start >= item.end:
            raise VideoError(f"end: the clip of {item.video} ends before its frame {frame}")
        return read_clip(item.video, 1, self.fps, self.size, start, stream=item.stream, end=item.end)[:, 0]
