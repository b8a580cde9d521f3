"""What a file really holds, found by decoding all of it once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastvivit.data.container import VideoError, choose_stream, header_seconds, open_video, video_streams
from fastvivit.data.decoding import decode_image
from fastvivit.data.pictures import Picture, Suspicious, pictures

KINDS = ("video", "image")
_BEAT = 1.0  # seconds between signs of life


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What was found in a file. Numbers are measured, but for those whose names say that they are the header's.

    Attributes:
        pictures: how many could be decoded; 1 for an image.
        seconds: from the first picture until the last one leaves the screen, as ``read_clip`` counts; 0 for an image.
        width: pixels of a picture as it is shown, after any rotation.
        height: pixels of a picture as it is shown.
        fps: pictures a second on average; None for fewer than two.
        codec: FFmpeg's name of the codec.
        stream: index of the stream that was decoded, the container's default one.
        streams: how many video streams there are.
        header_pictures: what the header says, or None where it says nothing.
        header_seconds: what the header says of the stream, or None.
        damage: what stopped the decoder before the end, or None; ``pictures`` and ``seconds`` are then those before
            it, which ``read_clip`` can read.
    """

    pictures: int
    seconds: float
    width: int
    height: int
    fps: float | None
    codec: str
    stream: int = 0
    streams: int = 1
    header_pictures: int | None = None
    header_seconds: float | None = None
    damage: str | None = None


def survey(path: str, kind: str, threads: int, alive: Callable[[], object] = lambda: None) -> Survey:
    """Decode a file from beginning to end.

    Args:
        path: a local file.
        kind: "video" or "image".
        threads: decoder threads.
        alive: called about every second, as long as pictures arrive.

    Raises:
        VideoError: it can't be opened, or holds no picture.
    """
    file = Path(path)
    if kind == "image":
        return _survey_image(file)
    try:
        return _survey_video(file, threads, alive, patient=False)
    except Suspicious:
        return _survey_video(file, threads, alive, patient=True)


def _survey_image(file: Path) -> Survey:
    height, width = decode_image(file, np.empty((8, 8, 3), np.uint8))
    with open_video(file, kind="an image") as container:
        codec = choose_stream(container, file, None).codec_context.name
    return Survey(pictures=1, seconds=0.0, width=width, height=height, fps=None, codec=codec)


def _survey_video(file: Path, threads: int, alive: Callable[[], object], *, patient: bool) -> Survey:
    with open_video(file) as container:
        stream = choose_stream(container, file, None)
        streams = video_streams(container)
        count, damage = 0, None
        width = height = 0
        last: Picture | None = None
        beat = time.monotonic()
        try:
            for picture in pictures(container, stream, file, 0.0, threads, patient):
                if last is None:
                    width, height = _shown_size(picture)
                last, count = picture, count + 1
                if time.monotonic() - beat > _BEAT:
                    alive()
                    beat = time.monotonic()
        except VideoError as error:
            if last is None:
                raise
            damage = str(error)
        if last is None:
            raise VideoError(f"{file}: its video stream holds no picture")
        # A damaged file can be read until its last good picture comes on screen, for what follows is unknown.
        seconds = last.time if damage else last.time + last.duration
        return Survey(
            pictures=count,
            seconds=seconds,
            width=width,
            height=height,
            fps=(count - 1) / last.time if last.time > 0 else None,
            codec=stream.codec_context.name,
            stream=streams.index(stream),
            streams=len(streams),
            header_pictures=stream.frames or None,
            header_seconds=header_seconds(container, stream),
            damage=damage,
        )


def _shown_size(picture: Picture) -> tuple[int, int]:
    """Width and height of a picture as it is shown."""
    frame = picture.frame
    turned = round(getattr(frame, "rotation", 0) / 90) % 2
    return (frame.height, frame.width) if turned else (frame.width, frame.height)
