"""Real clips, against decoding everything and picking by presentation time."""

from __future__ import annotations

import pytest
import torch

from fastvivit.data import pictures, probe, read_clip

FRAMES = {"box.mp4": 455, "cup.mp4": 217, "world.mp4": 901, "big_buck_bunny_0_30.webm": 720}


@pytest.fixture
def decoded(av):
    """Every picture of a file with its seconds after the first one; stamps sorted, as box.mp4 needs it."""

    def decode(path):
        with av.open(str(path), metadata_errors="ignore") as container:
            frames = list(container.decode(container.streams.best("video")))
        stamps = sorted(frame.pts for frame in frames)
        return frames, [float((stamp - stamps[0]) * frames[0].time_base) for stamp in stamps]

    return decode


def on_screen(frames, times, instants, size):
    """The same pictures by brute force: choose among all of them, scale the whole picture, cut."""
    from av.video.reformatter import Interpolation

    found = []
    for instant in instants:
        frame = frames[max(i for i, time in enumerate(times) if time <= instant + 1e-6)]
        scale = size / min(frame.height, frame.width)
        sides = [max(size, round(side * scale)) for side in (frame.height, frame.width)]
        interpolation = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
        pixels = frame.reformat(sides[1], sides[0], "rgb24", interpolation=interpolation).to_ndarray()
        top, left = (sides[0] - size) // 2, (sides[1] - size) // 2
        found.append(torch.from_numpy(pixels[top : top + size, left : left + size]))
    return torch.stack(found).permute(3, 0, 1, 2)


@pytest.mark.parametrize("name", ["cup.mp4", "box.mp4", "basketball.mp4", "bigbuckbunny.mp4"])
def test_the_picture_on_screen(real, decoded, name):
    path = real(name)
    frames, times = decoded(path)
    instants = [0.4 + i / 3.7 for i in range(12)]
    assert torch.equal(read_clip(path, 12, 3.7, 64, 0.4), on_screen(frames, times, instants, 64))


def test_every_picture_at_its_own_time(real, decoded):
    """The time base of cup.mp4 is 1/26777 s: an odd rate, of which every picture must come out once."""
    path = real("cup.mp4")
    frames, times = decoded(path)
    clip = read_clip(path, 217, 26.777, 32)
    assert torch.equal(clip, on_screen(frames, times, times, 32))


@pytest.mark.parametrize("name", ["box.mp4", "cup.mp4", "world.mp4", "big_buck_bunny_0_30.webm"])
def test_counts_at_ten_a_second(real, decoded, name):
    """How many instants have a picture, from the real last one and not from the header."""
    path = real(name)
    frames, times = decoded(path)
    assert len(frames) == FRAMES[name]
    stay = float(frames[-1].duration * frames[-1].time_base)
    assert stay > 0
    inside = sum(i / 10 < times[-1] + stay - 1e-6 for i in range(1000))
    assert read_clip(path, 1000, 10, 16, pad=False).shape == (3, inside, 16, 16)


def test_box_past_its_end(real):
    """The header promises 456 pictures, 455 exist; the last one stays."""
    path = real("box.mp4")
    clip = read_clip(path, 40, 2, 64)
    last = read_clip(path, 1, 1, 64, start=15.17)[:, 0]
    assert torch.equal(clip[:, 31], last)
    assert all(torch.equal(clip[:, i], last) for i in range(31, 40))
    assert not torch.equal(clip[:, 29], last)
    with pytest.raises(ValueError, match=r"box\.mp4, which ends at 15\.1\d\d s, got 15\.3"):
        read_clip(path, 1, 1, 64, start=15.3)


@pytest.mark.parametrize("name", ["vtest.avi", "big_buck_bunny_0_30.webm", "cup.mp4", "box.mp4"])
def test_a_large_start_equals_decoding_from_zero(real, monkeypatch, name):
    path = real(name)
    clip = read_clip(path, 6, 5, 64, start=6.3)
    monkeypatch.setattr(pictures, "SEEK_FROM", float("inf"))
    assert torch.equal(clip, read_clip(path, 6, 5, 64, start=6.3))
    assert torch.equal(clip, read_clip(path, 38, 5, 64, start=0.1)[:, 31:37])


def test_probe(real):
    info = probe(real("world.mp4"))
    assert (info.width, info.height, info.codec, info.streams) == (480, 270, "h264", 1)
    assert info.duration == pytest.approx(30.03, abs=0.01) and info.fps == pytest.approx(30)
