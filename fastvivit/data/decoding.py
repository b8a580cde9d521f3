"""Pictures at given instants, into memory that the caller has; and still images."""

from __future__ import annotations

import numpy as np

from fastvivit.data.container import (
    Source,
    VideoError,
    choose_stream,
    import_av,
    open_video,
    reason,
    source_name,
)
from fastvivit.data.pictures import Picture, Suspicious, pictures
from fastvivit.data.scaling import Scaler

_ROUNDING = 1e-7  # seconds; i / fps is rounded, a timestamp of the same instant must still count as reached


def decode_clip(
    path: Source,
    out: np.ndarray,
    *,
    fps: float,
    start: float,
    stream: int | None,
    pad: bool,
    end: float | None,
    threads: int,
) -> int:
    """Decode what `fastvivit.data.read_clip` says, into ``out``.

    Args:
        path: a local video file, or what else ``read_clip`` takes.
        out: uint8 ``(T, H, W, 3)``: T and the size of the pictures wanted.
        fps: as in ``read_clip``, like the next four.
        start: seconds.
        stream: index among the file's video streams, or None.
        pad: repeat the last picture past the end.
        end: seconds, or None.
        threads: decoder threads; they change no picture.

    Returns:
        How many pictures ``out`` holds: T, or fewer where not ``pad``.

    Raises:
        VideoError: as ``read_clip``.
    """
    instants = [start + i / fps for i in range(len(out))]
    if end is not None:
        if not pad:
            instants = [instant for instant in instants if instant < end - _ROUNDING]
        # Before `end` and not at it: the picture that comes on screen at `end` belongs to what follows.
        instants = [min(instant, end - 2 * _ROUNDING) for instant in instants]
    try:
        return _decode(path, stream, start, instants, out, pad, threads, patient=False)
    except Suspicious:
        return _decode(path, stream, start, instants, out, pad, threads, patient=True)


def _decode(
    path: Source,
    stream: int | None,
    start: float,
    instants: list[float],
    out: np.ndarray,
    pad: bool,
    threads: int,
    *,
    patient: bool,
) -> int:
    filled = 0
    shown: Picture | None = None
    scaler = Scaler(out.shape[1], out.shape[2])
    file = source_name(path)
    with open_video(path) as container:
        chosen = choose_stream(container, file, stream)
        for picture in pictures(container, chosen, file, start, threads, patient):
            if shown is not None:
                until = filled
                while until < len(instants) and instants[until] + _ROUNDING < picture.time:
                    until += 1
                scaler.write(shown.frame, out[filled:until])
                filled = until
                if filled == len(instants):
                    return filled
            shown = picture
        if shown is None:
            raise VideoError(f"{file}: its video stream holds no picture")
        gone = max(shown.time + shown.duration, shown.time + 2 * _ROUNDING)
        if start + _ROUNDING > gone:
            raise VideoError(f"start: wanted seconds within {file}, which ends at {gone:.3f} s, got {start}")
        until = len(instants)
        if not pad:
            until = sum(instant + _ROUNDING < gone for instant in instants)
        scaler.write(shown.frame, out[filled:until])
    return until


def decode_image(path: Source, out: np.ndarray) -> tuple[int, int]:
    """Decode what `fastvivit.data.read_image` says, into ``out``.

    Args:
        path: a local image file, or what else ``read_image`` takes.
        out: uint8 ``(H, W, 3)``, of the size wanted.

    Returns:
        Height and width of the image as stored.

    Raises:
        VideoError: as ``read_image``.
    """
    file = source_name(path)
    with open_video(path, kind="an image") as container:
        chosen = choose_stream(container, file, None)
        chosen.codec_context.thread_count = 1
        chosen.codec_context.options = {"err_detect": "explode"}  # or half a JPEG is a picture with a grey rest
        try:
            frame = next(container.decode(chosen), None)
        except (import_av().FFmpegError, OSError, ValueError) as error:
            raise VideoError(f"{file} is damaged: {reason(error)}") from error
        if frame is None:
            raise VideoError(f"{file}: it holds no picture")
        if frame.is_corrupt:
            raise VideoError(f"{file} is damaged: the picture is not whole")
        Scaler(out.shape[0], out.shape[1]).write(frame, out[None])
        return frame.height, frame.width
