"""Clips out of video files, sampled by presentation time."""

from __future__ import annotations

import math
import os

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from fastvivit.data.container import Source, VideoError, VideoInfo, probe
from fastvivit.data.decoding import decode_clip

__all__ = ["VideoError", "VideoInfo", "probe", "read_clip"]

_MOST_THREADS = 4  # more gains little up to 720p, and every thread holds a few more decoded pictures


def read_clip(
    path: Source,
    frames: int,
    fps: float = 1.0,
    size: int | tuple[int, int] = 256,
    start: float = 0.0,
    *,
    stream: int | None = None,
    pad: bool = True,
    end: float | None = None,
    threads: int | None = None,
) -> Tensor:
    """Read pictures at equal distances in time.

    Picture i is the one on screen at ``start + i / fps`` seconds after the first picture of the file: the
    last one whose presentation time is not after that instant. Variable frame rates, a first timestamp above
    0, and headers with a wrong number of pictures make no difference. Where timestamps contradict the order
    in which the decoder hands out pictures, that order is right and the timestamps are sorted.
    Past the end of the file, or past ``end``, the last picture repeats.

    The picture is scaled by swscale's bicubic filter (which averages when it shrinks) until both sides cover
    ``size``, and its centre is cut out; pixels are taken as square; a rotation by quarter turns that the file
    asks for is carried out. A large ``start`` is reached from the keyframe before it, with the same result as
    decoding from the beginning.

    Args:
        path: a local video file; or a member of a tar, as ``shards/train-0000.tar/cup.mp4``; or a binary file object
            that can seek, such as ``io.BytesIO(encoded)``, which is read from its beginning and left open.
        frames: pictures wanted, at least 1.
        fps: pictures per second of the clip, above 0.
        size: pixels of the square, or ``(h, w)``.
        start: seconds after the first picture, 0 or more.
        stream: index among the file's video streams; None takes the container's default one.
        pad: repeat the last picture past the end; if False, return fewer pictures there.
        end: seconds after the first picture where the clip ends, pictures at ``end`` itself not shown.
        threads: decoder threads, which change no picture; None shares the cores among the DataLoader's workers.

    Returns:
        uint8 ``(C, T, H, W)``, RGB. It is a permuted view of a ``(T, H, W, C)`` decoder buffer, so it is not
        contiguous; `fastvivit.functional.tubelet_embed` takes such strides as they are.

    Raises:
        VideoError: (a ValueError) no such file, unreadable, empty, damaged where pictures are wanted, without
            a video stream or picture, or with ``start`` beyond its end.
        ValueError: an argument outside its range.
        ImportError: PyAV is not installed.
    """
    height, width = check_clip(frames, fps, size, start, stream, end)
    out = np.empty((frames, height, width, 3), np.uint8)
    filled = decode_clip(
        path, out, fps=fps, start=start, stream=stream, pad=pad, end=end, threads=decoder_threads(threads)
    )
    return torch.from_numpy(out[:filled]).permute(3, 0, 1, 2)


def decoder_threads(threads: int | None = None) -> int:
    """Threads of one decoder: ``threads``, or the cores of this process shared among the DataLoader's workers.

    Raises:
        ValueError: fewer than one.
    """
    if threads is not None:
        if not isinstance(threads, int) or threads < 1:
            raise ValueError(f"threads: wanted an int of at least 1 or None, got {threads!r}")
        return threads
    worker = get_worker_info()
    return max(1, min(_MOST_THREADS, available_cores() // (worker.num_workers if worker else 1)))


def available_cores() -> int:
    """Cores that this process may use: a container or a job scheduler may give it fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_clip(
    frames: int,
    fps: float,
    size: int | tuple[int, int],
    start: float,
    stream: int | None,
    end: float | None,
) -> tuple[int, int]:
    """Refuse arguments of `read_clip` outside their ranges; ``size`` comes back as (h, w)."""
    if not isinstance(frames, int) or frames < 1:
        raise ValueError(f"frames: wanted an int of at least 1, got {frames!r}")
    if not fps > 0 or math.isinf(fps):
        raise ValueError(f"fps: wanted a finite number above 0, got {fps!r}")
    if not start >= 0 or math.isinf(start):
        raise ValueError(f"start: wanted finite seconds of at least 0, got {start!r}")
    if end is not None and not end > start:
        raise ValueError(f"end: wanted seconds after start ({start}), got {end!r}")
    if stream is not None and not isinstance(stream, int):
        raise ValueError(f"stream: wanted an index among the video streams or None, got {stream!r}")
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
        raise ValueError(f"size: wanted pixels (at least 1) or (h, w), got {size!r}")
    return sides
