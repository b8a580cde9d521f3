"""Opening video files: which stream is meant, what the header says, and errors that name the file.

Neither this module nor those that decode (`pictures`, `scaling`, `decoding`, `survey`) import torch: a decoder process
needs none, and starts ten times sooner without.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, BinaryIO

from fastvivit.data.members import find_tar, open_file

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

SUFFIXES = (".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv")
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

Source = str | os.PathLike[str] | BinaryIO


class VideoError(ValueError):
    """A file that can't be read as asked; the message names the file and says what was found."""


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a file's header says of its default video stream. Headers may be wrong: nothing here is measured.

    Attributes:
        duration: seconds, or None where the header has none.
        width: pixels of a picture as stored, before any rotation.
        height: pixels of a picture as stored, before any rotation.
        fps: average pictures per second, or None where the header has none.
        streams: how many video streams the file holds, cover pictures left out.
        codec: FFmpeg's name of the codec, such as ``"h264"``.
    """

    duration: float | None
    width: int
    height: int
    fps: float | None
    streams: int
    codec: str


def import_av() -> ModuleType:
    """PyAV, imported when first used, so that the library itself needs torch only.

    Raises:
        ImportError: PyAV is not installed; the message says how to get it.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError(
            f"reading and writing video files needs PyAV ({error}): pip install fastvivit[video]"
        ) from error
    return av


@contextmanager
def open_video(path: Source, what: str = "path", kind: str = "a video") -> Iterator[InputContainer]:
    """Open a video for decoding; it is closed on every way out.

    Args:
        path: a local file; a member of a tar, as ``shards/train-0000.tar/cup.mp4``; or a file object that can seek,
            which is read from its beginning and left open.
        what: how an error names the argument that the path came from.
        kind: what an error says the file should have been.

    Yields:
        PyAV's container.

    Raises:
        VideoError: no such file, a directory, an empty file, or one that FFmpeg can't open.
    """
    if not isinstance(path, str | os.PathLike):
        if not (hasattr(path, "read") and hasattr(path, "seekable") and path.seekable()):
            raise VideoError(f"{what}: wanted a path or a binary file object that can seek, got {source_name(path)}")
        size = path.seek(0, os.SEEK_END)
        path.seek(0)
        with _opened(path, size, source_name(path), what, kind) as container:
            yield container
        return
    file = Path(path)
    if find_tar(file) is not None:
        try:
            member = open_file(file)
        except OSError as error:
            raise VideoError(f"{what}: wanted {kind} file, got {file}: {error.strerror}") from None
        with member, open_video(member, what, kind) as container:
            yield container
        return
    if not file.exists():
        raise VideoError(f"{what}: wanted {kind} file, no such file: {file}")
    if not file.is_file():
        raise VideoError(f"{what}: wanted {kind} file, {file} is not a file")
    # FFmpeg takes "a:b.mp4" for a protocol called "a", but not "/dir/a:b.mp4".
    with _opened(str(file.absolute()), file.stat().st_size, str(file), what, kind) as container:
        yield container


def source_name(path: Source) -> str:
    """What messages call a video: its path, or the name of a file object where it has one."""
    if isinstance(path, str | os.PathLike):
        return str(path)
    name = getattr(path, "name", None)
    return name if isinstance(name, str) else f"a {type(path).__name__}"


@contextmanager
def _opened(file: str | BinaryIO, size: int, name: str, what: str, kind: str) -> Iterator[InputContainer]:
    if size == 0:
        raise VideoError(f"{what}: wanted {kind} file, {name} is empty (0 bytes)")
    container = _open(file, name, what, kind)
    try:
        yield container
    finally:
        container.close()


def _open(file: str | BinaryIO, name: str, what: str, kind: str) -> InputContainer:
    av = import_av()
    # FFmpeg would take "%03d.png" for the name of a series of files.
    options = {"pattern_type": "none"} if kind == "an image" else {}
    try:
        try:
            # PyAV 18 decodes tags strictly unless told otherwise: old AVI files have Latin-1 ones.
            return av.open(file, options=options, metadata_errors="ignore")
        except TypeError:
            return av.open(file, options=options)  # PyAV 19 dropped the argument together with the need for it
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{what}: {name} can't be opened as {kind}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """FFmpeg's own words for an error, without the file name that PyAV appends to them."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def video_streams(container: InputContainer) -> list[VideoStream]:
    """The video streams of a container in file order, without cover pictures."""
    cover = import_av().stream.Disposition.attached_pic
    return [stream for stream in container.streams.video if not stream.disposition & cover]


def choose_stream(container: InputContainer, file: str, index: int | None) -> VideoStream:
    """The video stream that ``index`` names, or the one that players take.

    ``None`` takes FFmpeg's best stream: the default disposition first, then more pictures and bits. That is
    often not the first: some files carry a small preview before the film.

    Raises:
        VideoError: no video stream, or no stream of that index.
    """
    streams = video_streams(container)
    if not streams:
        kinds = sorted({stream.type for stream in container.streams}) or ["nothing"]
        raise VideoError(f"{file}: wanted a video stream, found none (the file holds: {', '.join(kinds)})")
    if index is None:
        chosen = container.streams.best("video")
        if chosen not in streams:  # a cover picture, or no stream that this FFmpeg can decode
            default = import_av().stream.Disposition.default
            chosen = next((stream for stream in streams if stream.disposition & default), streams[0])
    elif 0 <= index < len(streams):
        chosen = streams[index]
    else:
        raise VideoError(
            f"stream: wanted one of the {len(streams)} video streams of {file} (0 to {len(streams) - 1}), got {index}"
        )
    if chosen.codec_context is None:
        raise VideoError(f"{file}: this FFmpeg has no decoder for video stream {streams.index(chosen)}")
    return chosen


def probe(path: Source) -> VideoInfo:
    """Read a file's header, decoding nothing.

    Args:
        path: a local video file, or what else ``read_clip`` takes.

    Returns:
        What the header says of the default video stream; see `VideoInfo`.

    Raises:
        VideoError: unreadable, empty, no such file, or no video stream.
        ImportError: PyAV is not installed.
    """
    with open_video(path) as container:
        stream = choose_stream(container, source_name(path), None)
        return VideoInfo(
            duration=header_seconds(container, stream),
            width=stream.codec_context.width,
            height=stream.codec_context.height,
            fps=float(stream.average_rate) if stream.average_rate else None,
            streams=len(video_streams(container)),
            codec=stream.codec_context.name,
        )


def header_seconds(container: InputContainer, stream: VideoStream) -> float | None:
    """The length that a header gives a stream, or else the file; None where it gives none."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return None if container.duration is None else container.duration / import_av().time_base
