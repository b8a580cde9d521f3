"""What is asked of all entries at once: a list and the entries of a manifest give the same, as a plain loop does."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fastvivit.data import ClipDataset, Quarantine, one_a_clip, read_manifest
from fastvivit.data.groups import captions_of, check_captioned, clips_of, files_of, has_twins, kinds_of, twins_of

ROWS = [
    {"video": "a.mp4", "caption": "one", "twin": "sub/../b.mp4"},
    {"video": "c.mp4", "caption": ["two", "three"], "start": 1.0, "end": 2.0},
    {"video": "./b.mp4", "caption": "four", "twin": "a.mp4", "id": 3},
    {"video": "c.mp4", "caption": "five", "start": 1, "end": 2, "id": 4},
    {"video": "c.mp4", "caption": "six", "start": 1.5, "end": 2.0},
    {"image": "d.png", "caption": "seven"},
]


def both(tmp_path, rows=ROWS, **options):
    path = tmp_path / "clips.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    entries = read_manifest(path, **options)
    return entries, list(entries)


def test_a_list_and_a_manifest_give_the_same(tmp_path):
    for entries in both(tmp_path):
        listed = list(entries)
        assert twins_of(entries) == [2, -1, 0, -1, -1, -1] and has_twins(entries)
        assert kinds_of(entries) == {"video", "image"} and kinds_of(entries[:5]) == {"video"}
        assert list(captions_of(entries)) == ["one", "two", "three", "four", "five", "six", "seven"]
        assert list(files_of(entries)) == [str(tmp_path / f"{name}") for name in
                                           ("a.mp4", "c.mp4", "b.mp4", "c.mp4", "c.mp4", "d.png")]  # fmt: skip
        clips = clips_of(entries)
        assert list(clips) == [0, 1, 2, 4, 5] and one_a_clip(entries) == list(clips.values())
        assert clips[1] == replace(listed[1], captions=("two", "three", "five")) and clips[4] == listed[4]
        assert not has_twins(entries[3:]) and twins_of(entries[3:]) == [-1, -1, -1]
        check_captioned(entries)


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([{"video": "a.mp4", "caption": "one", "twin": "b.mp4"}, {"video": "c.mp4", "caption": "two"}], 0),
        ([{"video": "a.mp4", "caption": "one", "twin": "b.mp4"}, *[{"video": "b.mp4", "caption": "two"}] * 2], 2),
    ],
)
def test_a_twin_is_one_entry(tmp_path, rows, found):
    for entries in both(tmp_path, rows):
        with pytest.raises(ValueError, match=rf"twin: wanted one entry with the video .*b\.mp4, .*, found {found}"):
            twins_of(entries)


def test_silent_entries_are_counted(tmp_path):
    silent = [{"video": "x.mp4"}, {"video": "y.mp4", "caption": []}]
    for entries in both(tmp_path, [*ROWS[:2], *silent], captioned=False):
        with pytest.raises(ValueError, match=r"2 of 4 have none, for example .*x\.mp4"):
            check_captioned(entries)


def test_a_quarantine_is_asked_by_file_and_part(tmp_path):
    for number, entries in enumerate(both(tmp_path, ROWS[:5])):
        bad = Quarantine(tmp_path / f"bad{number}.jsonl")
        bad.add(entries[2], "broken", whole=True)
        bad.add(entries[4], "cut")
        for quarantine in (bad, bad.path):
            known = ClipDataset(entries, frames=2, quarantine=quarantine).known
            assert [(one.index, one.reason) for one in known] == [(2, "broken"), (4, "cut")]
            assert known[0].video == str(entries[2].video)
