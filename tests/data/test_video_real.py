"""Real clips, against decoding everything and picking by presentation time."""

from __future__ import annotations

import pytest
import torch

from fastvivit.data import pictures, probe, read_clip

FRAMES = {
    "vtest.avi": 795,
    "sintel_trailer_640x360.mp4": 1253,
    "big_buck_bunny_0_30.webm": 720,
    "bigbuckbunny.mp4": 132,
    "world.mp4": 901,
    "basketball.mp4": 333,
    "box.mp4": 455,
    "cup.mp4": 217,
}


@pytest.fixture
def decoded(av):
    """Every picture of a file with its seconds after the first one; timestamps are sorted, as box.mp4 needs."""

    def decode(path):
        with av.open(str(path), metadata_errors="ignore") as container:
            frames = list(container.decode(container.streams.best("video")))
        stamps = sorted(frame.pts for frame in frames)
        return frames, [float((stamp - stamps[0]) * frames[0].time_base) for stamp in stamps]

    return decode


def grey(clip):
    """Mean brightness on a coarse grid, (T, 8, 8): enough to tell pictures apart, whatever the filter."""
    return torch.nn.functional.adaptive_avg_pool2d(clip.float().mean(dim=0), 8)


def on_screen(frames, times, instants, size):
    """The same pictures by brute force and with torch's resampling."""
    found = []
    for instant in instants:
        frame = frames[max(i for i, time in enumerate(times) if time <= instant + 1e-6)]
        pixels = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1).float()[None]
        scale = size / min(pixels.shape[-2:])
        sides = [max(size, round(side * scale)) for side in pixels.shape[-2:]]
        pixels = torch.nn.functional.interpolate(pixels, sides, mode="bicubic", antialias=True)[0]
        top, left = (sides[0] - size) // 2, (sides[1] - size) // 2
        found.append(pixels[:, top : top + size, left : left + size])
    return torch.stack(found, dim=1)


@pytest.mark.parametrize("name", ["cup.mp4", "box.mp4", "basketball.mp4", "bigbuckbunny.mp4"])
def test_the_picture_on_screen(real, decoded, name):
    path = real(name)
    frames, times = decoded(path)
    assert len(frames) == FRAMES[name]
    instants = [0.4 + i / 3.7 for i in range(12)]
    difference = grey(read_clip(path, 12, 3.7, 128, 0.4)) - grey(on_screen(frames, times, instants, 128))
    # The filters differ by up to 2 levels; neighbouring pictures of these clips by more in some cell.
    assert difference.abs().max() < 3


def test_a_variable_frame_rate_exactly(real, decoded):
    """Where every picture is asked for at its own time, each must come out once, and none twice."""
    path = real("cup.mp4")
    frames, times = decoded(path)
    gaps = {round(b - a, 4) for a, b in zip(times, times[1:], strict=False)}
    assert len(frames) == 217
    for number in (0, 1, 57, 130, 216):
        stay = 0.001 if number == 216 else (times[number + 1] - times[number]) / 2
        clip = read_clip(path, 2, 1 / stay, 64, times[number])
        want = on_screen(frames[number : number + 1], [0.0], [0.0], 64)
        assert (grey(clip) - grey(want)).abs().max() < 3
        assert torch.equal(clip[:, 0], clip[:, 1])
    assert gaps


@pytest.mark.parametrize("name", FRAMES)
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


@pytest.mark.parametrize("name", ["vtest.avi", "big_buck_bunny_0_30.webm", "world.mp4", "cup.mp4", "box.mp4"])
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
