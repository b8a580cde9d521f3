"""The pictures of a video stream with the times at which they are on screen.

Time is the only clock: frame numbers, header counts and header durations are never used. Seconds count from
the first picture, whatever its own timestamp is.

Most files keep their timestamps in order and can be entered at a keyframe. Some do not: a timestamp per
*packet* instead of per picture (they then run 0, 3, 2, 4, 1, ...), pictures without any, damaged packets,
missing indexes. So a file is first read quickly, and whatever looks suspicious raises `Suspicious`; the
caller then reads it patiently: from the start, on one thread, with timestamps put in order.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from fastvivit.data.container import VideoError, import_av, reason

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

SEEK_FROM = 1.0  # seconds; decoding less than this is as quick as a seek
_SEEK_BACK = (0, 4, 16)  # seconds; files without an index are often entered too late at first
_LOOKAHEAD = 4  # pictures: enough to notice timestamps that are out of order
_PATIENT_LOOKAHEAD = 16  # pictures: H.264 and HEVC move no picture further than this


class Suspicious(Exception):
    """The quick reading met something that only the patient one gets right."""


class Picture(NamedTuple):
    """One decoded picture.

    Attributes:
        time: seconds after the first picture at which it comes on screen.
        duration: seconds that it stays there as far as the file says, or 0.
        frame: PyAV's decoded frame.
    """

    time: float
    duration: float
    frame: VideoFrame


def pictures(
    container: InputContainer, stream: VideoStream, file: str, start: float, threads: int, patient: bool
) -> Iterator[Picture]:
    """Decode a stream in the order of display.

    Decoders hand out pictures in the order in which they are shown, so where timestamps are not in that order
    it is the timestamps that are wrong, and the k-th picture gets the k-th smallest.
    A picture without a timestamp follows the one before it after that one's duration.

    Args:
        container: a freshly opened container.
        stream: one of its video streams.
        file: its name, for errors.
        start: seconds; pictures that have left the screen before may be left out.
        threads: decoder threads of a reading that is not patient; they change no picture.
        patient: read from the first picture, on one thread, and mend timestamps; else raise `Suspicious`.

    Yields:
        Pictures with times that never decrease; the first is on screen at ``start`` where anything is.

    Raises:
        VideoError: the stream holds damaged data where pictures are wanted.
        Suspicious: only where not patient.
    """
    stream.thread_type = "AUTO"
    stream.codec_context.thread_count = 1 if patient else threads
    tick = float(stream.time_base)
    step = max(1, round(1 / (stream.average_rate * stream.time_base))) if stream.average_rate else 1
    frames = _decode(container, stream, file, patient)
    first = next(frames, None)
    if first is None:
        return
    origin = None
    if not patient and start >= SEEK_FROM and first.pts is not None:
        _expect_order(first.pts, frames)
        origin = first.pts
        first, frames = _enter(container, stream, file, origin + int(start / tick))
    lookahead = _PATIENT_LOOKAHEAD if patient else _LOOKAHEAD if stream.codec_context.has_b_frames else 0
    for pts, frame in _in_order(first, frames, step, lookahead, patient):
        origin = pts if origin is None else origin
        yield Picture((pts - origin) * tick, (frame.duration or step) * tick, frame)


def _decode(container: InputContainer, stream: VideoStream, file: str, patient: bool) -> Iterator[VideoFrame]:
    sent = decoded = 0
    try:
        for packet in container.demux(stream):
            sent += packet.size > 0  # the last one is empty and only flushes the decoder
            for frame in packet.decode():
                decoded += 1
                yield frame
    except (import_av().FFmpegError, OSError, ValueError) as error:
        if not patient:  # with several threads the error overtakes the good pictures before it
            raise Suspicious from error
        raise VideoError(f"{file} is damaged after {decoded} pictures: {reason(error)}") from error
    if decoded != sent and not patient:  # threads swallow the errors of the last few packets
        raise Suspicious


def _expect_order(newest: int, frames: Iterator[VideoFrame]) -> None:
    """Look at a few pictures from the start: a file with wrong timestamps there can't be entered later."""
    for _, frame in zip(range(_LOOKAHEAD), frames, strict=False):
        if frame.pts is None or frame.pts < newest:
            raise Suspicious
        newest = frame.pts


def _enter(
    container: InputContainer, stream: VideoStream, file: str, target: int
) -> tuple[VideoFrame, Iterator[VideoFrame]]:
    """Seek to a keyframe that is on screen at ``target`` ticks or before."""
    for back in _SEEK_BACK:
        try:
            container.seek(target - round(back / stream.time_base), stream=stream)
        except (import_av().FFmpegError, OSError) as error:
            raise Suspicious from error
        frames = _decode(container, stream, file, patient=False)
        # Pictures before the first keyframe refer to ones that were never decoded.
        first = next((frame for frame in frames if frame.key_frame), None)
        if first is not None and first.pts is not None and first.pts <= target:
            return first, frames
    raise Suspicious


def _in_order(
    first: VideoFrame, frames: Iterator[VideoFrame], step: int, lookahead: int, patient: bool
) -> Iterator[tuple[int, VideoFrame]]:
    """Pair each frame with its time in ticks, which never decreases."""
    waiting: deque[VideoFrame] = deque()
    times: list[int] = []
    time = first.pts or 0
    follows = first.pts or 0  # when the next picture comes, should it not say
    newest = follows
    for frame in chain((first,), frames):
        pts = follows if frame.pts is None else frame.pts
        if not patient and (pts < newest or frame.is_corrupt):
            raise Suspicious
        newest = pts
        follows = pts + (frame.duration or step)
        waiting.append(frame)
        heapq.heappush(times, pts)
        if len(waiting) > lookahead:
            time = max(time, heapq.heappop(times))
            yield time, waiting.popleft()
    while waiting:
        time = max(time, heapq.heappop(times))
        yield time, waiting.popleft()
