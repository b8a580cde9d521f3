"""Parts of a long clip by time, and clips of the length that a model takes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Segment = tuple[float, float]

_ROUNDING = 1e-7  # seconds; i / fps is rounded, and a picture at a segment's very start belongs to it


def uniform_segments(frames: int, fps: float, seconds: float) -> list[Segment]:
    """(start, end) of the parts of ``seconds`` that a clip is cut into; the last one may be shorter.

    What is left at the end and holds no picture of its own belongs to the part before.

    Args:
        frames: pictures of the clip.
        fps: pictures per second; the clip lasts ``frames / fps``.
        seconds: length of a part.

    Raises:
        ValueError: a number that is not above 0.
    """
    for name, value in (("frames", frames), ("fps", fps), ("seconds", seconds)):
        if not value > 0 or math.isinf(value):
            raise ValueError(f"{name}: wanted a finite number above 0, got {value!r}")
    length = frames / fps
    count = int(((frames - 1) / fps + _ROUNDING) / seconds) + 1
    ends = [(i + 1) * seconds for i in range(count - 1)]
    return list(zip([0.0, *ends], [*ends, length], strict=True))


def check_segments(segments: Sequence[Sequence[float]], length: float) -> list[Segment]:
    """Given segments within a clip of ``length`` seconds; their ends cut at its end, those beyond it left out.

    Raises:
        ValueError: no pair of finite seconds with 0 <= start < end, or none within the clip.
    """
    found = []
    for i, segment in enumerate(segments):
        pair = tuple(float(second) for second in segment)
        if len(pair) != 2 or not 0 <= pair[0] < pair[1] or math.isinf(pair[1]):
            raise ValueError(f"segments: wanted (start, end) with 0 <= start < end, got {segment!r} at [{i}]")
        if pair[0] < length:
            found.append((pair[0], min(pair[1], length)))
    if not found:
        raise ValueError(f"segments: wanted at least one within the clip's {length:g} s, got {list(segments)!r}")
    return found


def cut(video: Tensor, fps: float, segment: Segment) -> Tensor:
    """(C, t, H, W): the pictures i with ``start <= i / fps < end``; the one on screen where there is none."""
    first = math.ceil((segment[0] - _ROUNDING) * fps)
    stop = math.ceil((segment[1] - _ROUNDING) * fps)
    if first >= min(stop, video.shape[1]):
        first = min(int((segment[0] + _ROUNDING) * fps), video.shape[1] - 1)
        stop = first + 1
    return video[:, first:stop]


def fit_frames(video: Tensor, frames: int) -> Tensor:
    """(C, frames, H, W): the last picture repeated where there are too few, evenly chosen ones of too many.

    Picture j of ``frames`` out of T is ``floor((j + 1/2) T / frames)``, the middle of its share of the time.

    Raises:
        ValueError: frames below 1, a clip without pictures.
    """
    if frames < 1:
        raise ValueError(f"frames: wanted at least 1, got {frames}")
    if video.dim() != 4 or video.shape[1] == 0:
        raise ValueError(f"video: wanted (C, T, H, W) with T > 0, got shape {tuple(video.shape)}")
    given = video.shape[1]
    if given == frames:
        return video
    places = torch.arange(frames, device=video.device)
    places = places.clamp(max=given - 1) if given < frames else (2 * places + 1) * given // (2 * frames)
    return video.index_select(1, places)
