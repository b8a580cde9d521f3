"""Cutting by time, and clips brought to a length."""

import pytest
import torch

from fastvivit.modular import fit_frames, uniform_segments
from fastvivit.modular.frames import check_segments, cut


def numbered(frames):
    return torch.arange(frames).view(1, frames, 1, 1)


def numbers(video):
    return video[0, :, 0, 0].tolist()


@pytest.mark.parametrize("fps", [1.0, 5.0, 29.97, 0.5, 24000 / 1001])
@pytest.mark.parametrize("frames", [1, 15, 16, 17, 50, 256])
@pytest.mark.parametrize("seconds", [16.0, 0.9, 2.5])
def test_every_picture_is_in_the_one_segment_of_its_time(frames, fps, seconds):
    segments = uniform_segments(frames, fps, seconds)
    parts = [numbers(cut(numbered(frames), fps, segment)) for segment in segments]
    if seconds * fps >= 1:
        assert sum(parts, []) == list(range(frames))
        for (start, end), part in zip(segments, parts, strict=True):
            assert all(start - 1e-6 <= i / fps < end for i in part) and part
    assert segments[0][0] == 0 and segments[-1][1] == pytest.approx(frames / fps)
    assert all(a[1] == b[0] for a, b in zip(segments, segments[1:], strict=False))
    assert all(end - start == pytest.approx(seconds) for start, end in segments[:-1])
    assert 0 < segments[-1][1] - segments[-1][0] < seconds + 1 / fps


def test_the_last_part_may_be_ragged():
    assert uniform_segments(40, 1.0, 16.0) == [(0.0, 16.0), (16.0, 32.0), (32.0, 40.0)]
    assert numbers(cut(numbered(40), 1.0, (32.0, 40.0))) == list(range(32, 40))
    assert uniform_segments(32, 1.0, 16.0) == [(0.0, 16.0), (16.0, 32.0)]
    assert uniform_segments(8, 1.0, 16.0) == [(0.0, 8.0)]
    assert uniform_segments(3, 0.5, 2.5) == [(0.0, 2.5), (2.5, 6.0)]  # no picture between 5 and 6 s


def test_given_segments_overlap_leave_gaps_and_end_with_the_clip():
    video = numbered(20)
    assert check_segments([(3, 7.5), [5, 30], (25, 30)], 20.0) == [(3.0, 7.5), (5.0, 20.0)]
    assert numbers(cut(video, 1.0, (3.0, 7.5))) == [3, 4, 5, 6, 7]
    assert numbers(cut(video, 1.0, (3.2, 3.9))) == [3]  # between two pictures: what is on screen
    assert numbers(cut(video, 1.0, (19.5, 20.0))) == [19]
    for bad in ([(3, 3)], [(-1, 2)], [(1, float("inf"))], [(1, 2, 3)], [(20, 30)], []):
        with pytest.raises(ValueError, match="segments: wanted"):
            check_segments(bad, 20.0)


@pytest.mark.parametrize(
    ("given", "frames", "wanted"),
    [
        (3, 6, [0, 1, 2, 2, 2, 2]),
        (4, 4, [0, 1, 2, 3]),
        (8, 4, [1, 3, 5, 7]),
        (10, 4, [1, 3, 6, 8]),
        (1, 2, [0, 0]),
    ],
)
def test_clips_are_brought_to_a_length(given, frames, wanted):
    assert numbers(fit_frames(numbered(given), frames)) == wanted


def test_numbers_out_of_range():
    for name, arguments in (("fps", (8, 0, 16)), ("seconds", (8, 1, -1)), ("frames", (0, 1, 1))):
        with pytest.raises(ValueError, match=f"{name}: wanted a finite number above 0"):
            uniform_segments(*arguments)
    with pytest.raises(ValueError, match="frames: wanted at least 1"):
        fit_frames(numbered(3), 0)
    with pytest.raises(ValueError, match="video: wanted"):
        fit_frames(numbered(3)[0], 2)
