"""VATEX: ids with times, cut clips and whole videos."""

from __future__ import annotations

import pytest

from fastvivit.data import import_annotations


def clip(name, captions=3):
    texts = [f"Someone does thing {i}." for i in range(captions)]
    return {"videoID": name, "enCap": texts, "chCap": ["有人做事。"] * captions}


OFFICIAL = [clip("Ab_-2VRj-V0_000122_000132", 10), clip("--07WQ2iBlw_000001_000011"), clip("zzzzzzzzzzz_000000_000010")]


def test_cut_clips(written, videos):
    folder = videos("val/Ab_-2VRj-V0_000122_000132.mp4", "--07WQ2iBlw_1_11.mkv")
    found = import_annotations("vatex", written("vatex_validation_v1.0.json", OFFICIAL), folder)
    first, second = found.entries
    assert first.video.name == "Ab_-2VRj-V0_000122_000132.mp4" and second.video.name == "--07WQ2iBlw_1_11.mkv"
    assert (first.start, first.end, len(first.captions)) == (0.0, None, 10)
    assert first.captions[9] == "Someone does thing 9." and first.extra == {"id": "Ab_-2VRj-V0_000122_000132"}
    assert found.missing == ("zzzzzzzzzzz_000000_000010",) and found.seconds == 20


@pytest.mark.parametrize("name", ["Ab_-2VRj-V0.mp4", "A title [Ab_-2VRj-V0].webm", "A title-Ab_-2VRj-V0.MP4"])
def test_whole_videos(written, videos, name):
    (entry,) = import_annotations("vatex", written("a.json", OFFICIAL), videos(name)).entries
    assert (entry.video.name, entry.start, entry.end) == (name, 122.0, 132.0)


def test_the_test_set_without_captions(written, videos):
    folder = videos("zzzzzzzzzzz_000000_000010.mp4")
    bare = [{"videoID": "zzzzzzzzzzz_000000_000010"}]
    with pytest.raises(ValueError, match=r"got none, for example .*\[0\].videoID: 'zzz.*' has no captions"):
        import_annotations("vatex", written("vatex_private_test_without_annotations.json", bare), folder)
    found = import_annotations("vatex", written("a.json", [*bare, clip("zzzzzzzzzzz_000000_000010")]), folder)
    assert len(found.entries) == 1 and len(found.skipped) == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "a.json: wanted a list, got {}"),
        ([{"enCap": ["x"]}], r"a.json: \[0\]: wanted the field 'videoID'"),
        ([clip("short_1_2")], r"\[0\].videoID: wanted YOUTUBEID_START_END in whole seconds, got 'short_1_2'"),
        ([clip("zzzzzzzzzzz_000020_000010")], r"\[0\].videoID: wanted YOUTUBEID_START_END"),
        ([{"videoID": "zzzzzzzzzzz_000000_000010", "enCap": "x"}], r"\[0\].enCap: wanted a list, got 'x'"),
    ],
)
def test_bad_files(written, videos, value, message):
    with pytest.raises(ValueError, match=message):
        import_annotations("vatex", written("a.json", value), videos("a.mp4"))
