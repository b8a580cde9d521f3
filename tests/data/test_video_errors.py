"""What a user does wrong, what files do wrong, and that nothing stays open."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from greys import expected, numbers

from fastvivit.data import VideoError, probe, read_clip

TEN = [i / 10 for i in range(40)]


@pytest.mark.parametrize("reader", [probe, lambda path: read_clip(path, 4)], ids=["probe", "read_clip"])
@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("text", r"can't be opened as a video"),
        ("empty", r"is empty \(0 bytes\)"),
        ("missing", r"no such file"),
        ("folder", r"is not a file"),
    ],
)
def test_files_that_are_no_videos(broken, reader, kind, found):
    with pytest.raises(VideoError, match=found) as error:
        reader(broken[kind])
    assert str(broken[kind]) in str(error.value)
    assert isinstance(error.value, ValueError)


def test_no_video_stream(tmp_path, av):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        frame.sample_rate = 44100
        for packet in (*stream.encode(frame), *stream.encode()):
            file.mux(packet)
    with pytest.raises(VideoError, match=r"sound\.mp4: wanted a video stream, found none .*audio"):
        read_clip(path, 4)


def test_a_file_without_its_index(encode, cut, tmp_path):
    path = cut(encode(tmp_path / "whole.mp4", TEN), tmp_path / "cut.mp4", 0.6)
    with pytest.raises(VideoError, match=r"cut\.mp4 can't be opened as a video"):
        read_clip(path, 4)


@pytest.mark.parametrize("threads", [1, 4])
def test_damage_counts_where_pictures_are_wanted(encode, cut, tmp_path, threads):
    times = [i / 10 for i in range(120)]
    front = {"movflags": "+faststart"}  # the index comes first, so that a cut file opens
    path = encode(tmp_path / "whole.mp4", times, muxer=front, size=(320, 240), options={"g": "10", "qp": "20"})
    path = cut(path, tmp_path / "cut.mp4", 0.5)
    assert numbers(read_clip(path, 8, 2, 32, threads=threads)) == expected(times, 8, 2)
    for start in (0.0, 6.0):
        with pytest.raises(VideoError, match=r"cut\.mp4 is damaged after \d+ pictures: Invalid data"):
            read_clip(path, 24, 2, 32, start, threads=threads)


def test_a_stream_cut_between_pictures_ends_there(encode, cut, tmp_path):
    times = [i / 10 for i in range(40)]
    path = cut(encode(tmp_path / "whole.webm", times, "libvpx"), tmp_path / "cut.webm", 0.5)
    clip = numbers(read_clip(path, 60, 10, 32))
    last = clip[-1]
    assert 5 < last < 35 and clip == [*range(last), *[last] * (60 - last)]


def test_a_start_beyond_the_end(encode, tmp_path):
    path = encode(tmp_path / "clip.mp4", TEN)
    assert numbers(read_clip(path, 1, 1, 32, start=3.99)) == [39]
    for start in (4.01, 50.0, 1e6):
        with pytest.raises(VideoError, match=r"start: wanted seconds within .*clip\.mp4, which ends at 4\.000 s"):
            read_clip(path, 1, 1, 32, start=start)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frames": 0}, r"frames: wanted an int of at least 1, got 0"),
        ({"frames": 2.5}, r"frames: wanted an int of at least 1, got 2\.5"),
        ({"fps": 0}, r"fps: wanted a finite number above 0, got 0"),
        ({"fps": float("nan")}, r"fps: wanted a finite number above 0, got nan"),
        ({"start": -1.0}, r"start: wanted finite seconds of at least 0, got -1\.0"),
        ({"start": float("inf")}, r"start: wanted finite seconds"),
        ({"start": 2.0, "end": 2.0}, r"end: wanted seconds after start \(2\.0\), got 2\.0"),
        ({"size": 0}, r"size: wanted pixels \(at least 1\) or \(h, w\), got 0"),
        ({"size": (8, 8, 8)}, r"size: wanted pixels"),
        ({"stream": "0"}, r"stream: wanted an index among the video streams or None, got '0'"),
    ],
)
def test_arguments_outside_their_range(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        read_clip(tmp_path / "never opened.mp4", **({"frames": 4} | arguments))


def test_a_negative_stream_is_no_index_from_the_end(encode, tmp_path):
    path = encode(tmp_path / "clip.mp4", TEN)
    with pytest.raises(VideoError, match=r"stream: wanted one of the 1 video streams of .* got -1"):
        read_clip(path, 1, 1, 32, stream=-1)


def test_names_that_look_like_a_protocol(encode, tmp_path, monkeypatch):
    encode(tmp_path / "clip.mp4", TEN).rename(tmp_path / "http:clip.mp4")
    monkeypatch.chdir(tmp_path)
    assert numbers(read_clip(Path("http:clip.mp4"), 2, 1, 32)) == [0, 10]


def test_without_pyav_the_message_says_what_to_install(tmp_path, monkeypatch):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"something")
    real = builtins.__import__

    def blocked(name, *args, **kwargs):
        if name == "av" or name.startswith("av."):
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", blocked)
    with pytest.raises(ImportError, match=r"needs PyAV .*pip install fastvivit\[video\]"):
        read_clip(path, 4)


def test_importing_the_package_leaves_pyav_alone():
    code = "import sys, fastvivit.data; sys.exit('av' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="counts the entries of /proc/self/fd")
def test_nothing_stays_open(encode, broken, tmp_path):
    path = encode(tmp_path / "clip.mp4", TEN, options={"g": "10"})
    read_clip(path, 2, 1, 32)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(100):
        read_clip(path, 2, 1, 32)
        read_clip(path, 2, 1, 32, start=2.0)
        probe(path)
        for kind in ("text", "empty"):
            with pytest.raises(VideoError):
                read_clip(broken[kind], 2)
        with pytest.raises(VideoError):
            read_clip(path, 2, start=9.0)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
