"""Every sampled picture is checked by its grey, which says which one it is."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from greys import expected, level, numbers

from fastvivit.data import decoding, pictures, probe, read_clip

TEN = [i / 10 for i in range(40)]  # 10 pictures a second, 4 s
LONG = [i / 10 for i in range(120)]
B_FRAMES = {"qp": "4", "preset": "medium", "bf": "3", "b-adapt": "0", "g": "12"}
CODECS = {
    "mp4": ("libx264", Fraction(1, 1000)),
    "mkv": ("libx264", Fraction(1, 1000)),
    "ts": ("libx264", Fraction(1, 90000)),
    "webm": ("libvpx", Fraction(1, 1000)),
    "avi": ("mpeg4", Fraction(1, 10)),
}


@pytest.fixture
def readings(monkeypatch):
    """How files were read: a list of "enter" (by a seek) and "patient"."""
    seen = []
    enter, read = pictures._enter, decoding._decode

    def noted_enter(*args):
        result = enter(*args)
        seen.append("enter")
        return result

    def noted_read(*args, patient):
        seen.extend(["patient"] if patient else [])
        return read(*args, patient=patient)

    monkeypatch.setattr(pictures, "_enter", noted_enter)
    monkeypatch.setattr(decoding, "_decode", noted_read)
    return seen


@pytest.mark.parametrize("suffix", CODECS)
@pytest.mark.parametrize(("fps", "start"), [(2, 0.0), (10, 0.35), (3, 1.05), (1.7, 0.0), (25, 3.0)])
def test_the_picture_on_screen_in_every_container(encode, tmp_path, suffix, fps, start):
    codec, tick = CODECS[suffix]
    path = encode(tmp_path / f"clip.{suffix}", TEN, codec, tick=tick)
    assert numbers(read_clip(path, 12, fps, 32, start)) == expected(TEN, 12, fps, start)


def test_every_picture_at_its_own_rate(encode, tmp_path):
    path = encode(tmp_path / "clip.mp4", TEN)
    assert numbers(read_clip(path, 40, 10, 32)) == list(range(40))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm"])
def test_variable_frame_rate(encode, tmp_path, suffix):
    times = [0, 0.013, 0.04, 0.5, 0.501, 0.502, 1.75, 1.999, 2.0, 2.001, 4.2, 4.9]
    path = encode(tmp_path / f"clip.{suffix}", times, CODECS[suffix][0])
    for fps, start in ((2, 0.0), (4, 0.0), (30, 0.0), (1, 0.501), (100, 1.99)):
        assert numbers(read_clip(path, 10, fps, 32, start)) == expected(times, 10, fps, start)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_time_counts_from_the_first_picture(encode, tmp_path, av, suffix):
    times = [5 + time for time in TEN]
    path = encode(tmp_path / f"clip.{suffix}", times, tick=CODECS[suffix][1])
    with av.open(str(path)) as container:
        assert container.streams.video[0].start_time * container.streams.video[0].time_base > 1
    assert numbers(read_clip(path, 8, 2, 32)) == expected(times, 8, 2)
    assert numbers(read_clip(path, 8, 4, 32, 1.5)) == expected(times, 8, 4, 1.5)


def test_a_header_without_a_count(encode, tmp_path, av):
    path = encode(tmp_path / "clip.webm", TEN, "libvpx")
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 0
    assert numbers(read_clip(path, 60, 10, 32)) == [*range(40), *[39] * 20]


def test_pictures_without_any_timestamp(encode, tmp_path):
    path = encode(tmp_path / "clip.h264", TEN, rate=10)  # a bare stream; FFmpeg takes it for 25 a second
    assert numbers(read_clip(path, 8, 5, 32)) == [0, 5, 10, 15, 20, 25, 30, 35]
    assert numbers(read_clip(path, 2, 25, 32, start=1.4)) == [35, 36]


@pytest.mark.parametrize("start", [0.0, 0.3, 1.0, 2.25, 7.3])
def test_timestamps_of_packets_instead_of_pictures(encode, tmp_path, av, readings, start):
    """Some writers stamp packets as they store them; the k-th picture has the k-th smallest stamp."""
    path, stamped = encode(tmp_path / "clip.mp4", LONG, options=B_FRAMES), tmp_path / "stamped.mp4"
    with av.open(str(path)) as source, av.open(str(stamped), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.dts is not None]
        first = packets[0].dts
        for packet in packets:
            packet.dts = packet.pts = packet.dts - first
            packet.stream = stream
            target.mux(packet)
    with av.open(str(stamped)) as container:
        stamps = [frame.pts for frame in container.decode(video=0)]
    assert stamps != sorted(stamps)
    assert numbers(read_clip(stamped, 4, 5, 32, start)) == expected(LONG, 4, 5, start)
    assert "patient" in readings


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("mp4", {"g": "10"}),
        ("mp4", B_FRAMES),
        ("mkv", B_FRAMES | {"x264-params": "open-gop=1"}),
        ("ts", B_FRAMES),
        ("webm", {"g": "10"}),
        ("avi", {"g": "12", "bf": "2"}),
    ],
)
def test_a_large_start_equals_decoding_from_zero(encode, tmp_path, monkeypatch, readings, suffix, options):
    codec, tick = CODECS[suffix]
    path = encode(tmp_path / f"clip.{suffix}", LONG, codec, tick=tick, options=options)
    starts = [1.0, 1.05, 1.1, 1.2, 2.3, 3.55, 5.9, 6.0, 7.15, 9.61, 11.85]
    sought = [read_clip(path, 4, 5, 32, start) for start in starts]
    assert readings.count("enter") >= len(starts) // 2
    monkeypatch.setattr(pictures, "SEEK_FROM", float("inf"))
    for start, clip in zip(starts, sought, strict=True):
        assert numbers(clip) == expected(LONG, 4, 5, start)
        assert torch.equal(clip, read_clip(path, 4, 5, 32, start))


def test_a_seek_that_lands_too_late_is_not_believed(encode, tmp_path, monkeypatch, readings):
    path = encode(tmp_path / "clip.mp4", LONG, options={"g": "10"})
    monkeypatch.setattr(pictures, "_SEEK_BACK", (-3,))  # enters 3 s after what was asked for
    assert numbers(read_clip(path, 4, 5, 32, 4.45)) == expected(LONG, 4, 5, 4.45)
    assert readings == ["patient"]


def test_pictures_before_the_keyframe_are_passed_over(av):
    """After a seek some decoders hand out pictures that refer to ones they never saw."""
    frames = [SimpleNamespace(key_frame=key, pts=pts) for key, pts in ((False, 7), (True, 9), (False, 10))]
    packet = SimpleNamespace(size=1, decode=lambda: frames)
    container = SimpleNamespace(seek=lambda target, stream: None, demux=lambda stream: [packet])
    stream = SimpleNamespace(time_base=Fraction(1, 10))
    assert pictures._enter(container, stream, Path("clip.mp4"), 10)[0].pts == 9
    with pytest.raises(pictures.Suspicious):
        pictures._enter(container, stream, Path("clip.mp4"), 8)


def test_past_the_end(encode, tmp_path):
    path = encode(tmp_path / "clip.mp4", TEN)
    assert numbers(read_clip(path, 6, 1, 32)) == [0, 10, 20, 30, 39, 39]
    assert numbers(read_clip(path, 6, 1, 32, pad=False)) == [0, 10, 20, 30]
    # The last picture comes at 3.9 s and stays for 0.1 s.
    assert numbers(read_clip(path, 6, 20, 32, 3.9, pad=False)) == [39, 39]
    assert numbers(read_clip(path, 3, 10, 32, 3.95, pad=False)) == [39]


@pytest.mark.parametrize("end", [0.7, 0.75, 1.0, 2.0, 9.0])
def test_past_the_end_of_an_excerpt(encode, tmp_path, end):
    path = encode(tmp_path / "clip.mp4", TEN)
    padded = numbers(read_clip(path, 8, 4, 32, 0.5, end=end))
    assert padded == expected(TEN, 8, 4, 0.5, end)
    inside = sum(0.5 + i / 4 < min(end, 4.0) for i in range(8))
    assert numbers(read_clip(path, 8, 4, 32, 0.5, end=end, pad=False)) == padded[:inside]


def test_a_single_picture(encode, tmp_path):
    path = encode(tmp_path / "clip.mp4", [0.0])
    assert numbers(read_clip(path, 3, 50, 32)) == [0, 0, 0]


def test_the_default_stream_and_a_named_one(encode, tmp_path, av):
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        preview, film = encode.add(container, "libx264", (32, 32)), encode.add(container, "libx264", (96, 64))
        preview.disposition, film.disposition = 0, av.stream.Disposition.default
        encode.draw(container, preview, TEN)
        encode.draw(container, film, TEN, base=7)
    assert numbers(read_clip(path, 4, 1, 32)) == [7, 17, 27, 37]
    assert numbers(read_clip(path, 4, 1, 32, stream=0)) == [0, 10, 20, 30]
    assert numbers(read_clip(path, 4, 1, 32, stream=1)) == [7, 17, 27, 37]
    assert (probe(path).width, probe(path).height, probe(path).streams) == (96, 64, 2)
    with pytest.raises(ValueError, match=r"stream: wanted one of the 2 video streams .*two\.mkv.*, got 2"):
        read_clip(path, 4, 1, 32, stream=2)


@pytest.mark.parametrize(
    ("size", "shape"), [(32, (32, 32)), ((24, 48), (24, 48)), ((90, 16), (90, 16)), ((48, 64), (48, 64))]
)
def test_scaled_to_cover_and_cut_from_the_centre(encode, tmp_path, size, shape):
    # A white corner of 16x16 in 64x48; how much of it is left says what was cut out.
    path = encode(tmp_path / "clip.mp4", TEN, corner=16)
    clip = read_clip(path, 1, 1, size)
    assert clip.shape == (3, 1, *shape) and clip.dtype == torch.uint8
    height, width = shape
    scale = max(height / 48, width / 64)
    left, top = (64 * scale - width) / 2, (48 * scale - height) / 2  # of the cut, in scaled pixels
    picture = clip[0, 0].float()
    white = (picture > 137).nonzero()
    rows, columns = 16 * scale - top, 16 * scale - left  # how much of the white corner is left
    if rows <= 0 or columns <= 0:
        assert len(white) == 0
    else:
        assert abs(white[:, 0].max() + 1 - rows) <= 1 and abs(white[:, 1].max() + 1 - columns) <= 1
    assert abs(picture[-1, -1] - level(0)) <= 2


@pytest.mark.parametrize(("rotation", "corner"), [(0, (0, 0)), (90, (-1, 0)), (180, (-1, -1)), (-90, (0, -1))])
def test_a_rotation_by_quarter_turns_is_carried_out(encode, tmp_path, rotation, corner):
    path = encode(tmp_path / "clip.mp4", TEN, rotation=rotation, corner=16)
    picture = read_clip(path, 1, 1, (48, 64) if rotation % 180 == 0 else (64, 48))[0, 0]
    corners = {at: picture[at].item() for at in ((0, 0), (0, -1), (-1, 0), (-1, -1))}
    assert {at for at, value in corners.items() if value > 200} == {corner}


def test_the_layout_is_a_decoder_buffers(encode, tmp_path):
    clip = read_clip(encode(tmp_path / "clip.mp4", TEN), 5, 2, (16, 24))
    assert clip.stride() == (1, 16 * 24 * 3, 24 * 3, 3)
    assert clip.permute(1, 2, 3, 0).is_contiguous()


def test_colours_are_red_green_blue(encode, tmp_path, av):
    path = tmp_path / "red.mp4"
    with av.open(str(path), "w") as container:
        stream = encode.add(container, "libx264")
        red = torch.tensor([220, 30, 60], dtype=torch.uint8).expand(48, 64, 3).contiguous()
        container.mux(stream.encode(av.VideoFrame.from_ndarray(red.numpy(), format="rgb24")))
        container.mux(stream.encode())
    means = read_clip(path, 1, 1, 32).float().mean(dim=(1, 2, 3))
    assert (means - torch.tensor([220.0, 30.0, 60.0])).abs().max() < 4


def test_probe_reads_the_header(encode, tmp_path):
    info = probe(encode(tmp_path / "clip.mp4", TEN))
    assert (info.width, info.height, info.streams, info.codec) == (64, 48, 1, "h264")
    assert info.duration == pytest.approx(4.0, abs=0.01) and info.fps == pytest.approx(10, abs=0.1)
