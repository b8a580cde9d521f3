"""Small videos whose grey says which picture is which, broken files, and real clips."""

from __future__ import annotations

import os
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from greys import level

VIDEOS = Path(__file__).resolve().parents[3] / "shared" / "videos"


@pytest.fixture(scope="session")
def av():
    return pytest.importorskip("av", reason="PyAV is not installed: pip install fastvivit[video]")


_LOSSLESS = {"libx264": {"qp": "0", "preset": "ultrafast"}, "libvpx": {"crf": "4", "b": "4M"}}
_TICK = Fraction(1, 1000)  # seconds


@pytest.fixture
def encode(av):
    """Write a video: ``encode(path, times)`` shows picture i from ``times[i]`` seconds on."""

    def add(container, codec, size=(64, 48), options=None, tick=_TICK, rate=10):
        stream = container.add_stream(codec, rate=rate, options=_LOSSLESS.get(codec, {}) | (options or {}))
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = tick
        stream.codec_context.thread_count = 1
        if codec == "mpeg4":
            stream.codec_context.bit_rate = 4_000_000
        return stream

    def draw(container, stream, times, tick=_TICK, base=0, corner=0):
        for number, time in enumerate(times):
            grey = np.full((stream.height, stream.width, 3), level(number + base), np.uint8)
            grey[:corner, :corner] = 255
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            frame.pts, frame.time_base = round(time / tick), tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode())

    def write(path, times, codec="libx264", *, tick=_TICK, rotation=0, corner=0, muxer=None, **look):
        with av.open(str(path), "w", options=muxer or {}) as container:
            stream = add(container, codec, tick=tick, **look)
            if rotation:
                stream.set_display_rotation(rotation)
            draw(container, stream, times, tick, corner=corner)
        return path

    write.add, write.draw = add, draw
    return write


@pytest.fixture
def real():
    """A real clip by its name, or a skip with the reason."""

    def find(name):
        if not (VIDEOS / name).is_file():
            pytest.skip(f"the real clip {name} is not at hand (wanted in ../shared/videos)")
        return VIDEOS / name

    return find


@pytest.fixture
def broken(tmp_path):
    """Files that are no videos, by what is wrong with them."""
    text = tmp_path / "text.mp4"
    text.write_text("this is no video\n" * 100)
    empty = tmp_path / "empty.mp4"
    empty.touch()
    return {"text": text, "empty": empty, "missing": tmp_path / "missing.mp4", "folder": tmp_path}


@pytest.fixture
def cut():
    """Copy the first share of a file."""

    def copy(source, target, share):
        shutil.copyfile(source, target)
        with target.open("r+b") as stream:
            stream.truncate(int(source.stat().st_size * share))
        return target

    return copy


@pytest.fixture
def hanging(tmp_path):
    """A file whose decoding never ends: it names a pipe that nobody writes to, and opening that blocks."""
    os.mkfifo(tmp_path / "pipe.mp4")
    path = tmp_path / "hanging.mp4"
    path.write_text("ffconcat version 1.0\nfile pipe.mp4\n")
    return path
