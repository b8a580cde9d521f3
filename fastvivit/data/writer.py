"""Pictures into small files: mp4, PNG."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import numpy as np

from fastvivit.data.container import import_av

_OPTIONS = {"preset": "ultrafast", "tune": "fastdecode"}


def write_image(path: str | os.PathLike[str], picture: np.ndarray) -> Path:
    """Encode a picture as PNG, without loss.

    Args:
        path: the file to write, replaced if it exists; its folder must exist.
        picture: uint8 ``(H, W, 3)``, RGB.

    Returns:
        The path written.

    Raises:
        ValueError: a picture of another shape or dtype.
        ImportError: PyAV is not installed.
    """
    picture = np.asarray(picture)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise ValueError(f"picture: wanted uint8 (H, W, 3), got {picture.dtype} {picture.shape}")
    av = import_av()
    codec = av.CodecContext.create("png", "w")
    codec.height, codec.width, codec.pix_fmt, codec.time_base = *picture.shape[:2], "rgb24", Fraction(1)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")
    file = Path(path)
    file.write_bytes(b"".join(bytes(packet) for packet in (*codec.encode(frame), *codec.encode(None))))
    return file


def write_clip(path: str | os.PathLike[str], pictures: np.ndarray, fps: float = 8.0, *, crf: int = 10) -> Path:
    """Encode pictures as an H.264 mp4 file. The same pictures give the same bytes.

    Args:
        path: the file to write, replaced if it exists; its folder must exist.
        pictures: uint8 ``(T, H, W, 3)``, RGB, at least one; H and W even, as yuv420p wants them.
        fps: pictures per second.
        crf: x264's quality, 0 (lossless) to 51; at 10 a pixel of flat areas is off by about 1 of 255.

    Returns:
        The path written.

    Raises:
        ValueError: pictures of another shape or dtype, or an argument outside its range.
        ImportError: PyAV is not installed.
    """
    pictures = np.asarray(pictures)
    shape = pictures.shape
    fits = len(shape) == 4 and shape[3] == 3 and 0 not in shape and shape[1] % 2 == shape[2] % 2 == 0
    if pictures.dtype != np.uint8 or not fits:
        raise ValueError(
            f"pictures: wanted uint8 (T, H, W, 3) with at least one picture and even H and W, got "
            f"{pictures.dtype} {shape}"
        )
    if not 0 < fps < float("inf"):
        raise ValueError(f"fps: wanted a finite number above 0, got {fps!r}")
    if not 0 <= crf <= 51:
        raise ValueError(f"crf: wanted 0 to 51, got {crf!r}")
    av = import_av()
    file = Path(path)
    # "bitexact" leaves out library versions, so that equal pictures are equal files.
    with av.open(str(file.absolute()), "w", format="mp4", options={"fflags": "bitexact"}) as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options={**_OPTIONS, "crf": str(crf)})
        stream.height, stream.width = shape[1], shape[2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # threads cost more to start than such small files take
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return file
