"""Bad files on the disk: a line each, once, also after a kill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastvivit.data import ClipDataset, Entry, Quarantine


def entry(path, **fields):
    return Entry(video=Path(path), captions=("one",), **fields)


@pytest.fixture
def path(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run" / "quarantine.jsonl"


def test_a_clip_is_noted_once_and_found_again(path, tmp_path):
    bad, other = entry(tmp_path / "a.mp4", start=2.0, end=3.0), entry(tmp_path / "a.mp4")
    made = Quarantine(path)
    assert not path.exists() and len(made) == 0
    assert made.add(bad, "no good") and not made.add(bad, "still no good")
    again = Quarantine(path)
    assert not again.add(bad, "no good") and len(again) == 1
    assert again.reason(bad) == "no good" and again.reason(other) is None
    assert again.reason(entry(tmp_path / "b.mp4", start=2.0, end=3.0)) is None
    # A clip from the beginning of a file is not yet the file.
    assert again.add(other, "damaged") and again.reason(entry(tmp_path / "a.mp4", end=1.0)) is None
    assert again.add(other, "gone", whole=True)
    last = Quarantine(path)
    assert last.reason(entry(tmp_path / "run/../a.mp4", end=1.0)) == "gone" and len(last) == 3
    assert not last.add(entry(tmp_path / "a.mp4", start=9.0), "one more")


def test_lines_are_plain_and_relative(path):
    made = Quarantine(path)
    made.add(entry(path.parent / "sub" / "ä.mp4", start=1.5), "no\nörder")
    made.add(entry(path.parent / "b.png", kind="image"), "cut", whole=True)
    made.add(entry("/else/where.mp4"), "gone", whole=True)
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == [
        {"video": "sub/ä.mp4", "start": 1.5, "end": None, "stream": None, "reason": "no\nörder"},
        {"image": "b.png", "reason": "cut"},
        {"video": "/else/where.mp4", "reason": "gone"},
    ]
    assert list(Quarantine(path)) == list(made)
    assert Quarantine(path).reason(entry(path.parent / "b.png", kind="image")) == "cut"


@pytest.mark.parametrize("lost", range(1, 40, 3))
def test_a_line_that_was_cut_off_was_never_written(path, tmp_path, lost):
    made = Quarantine(path)
    made.add(entry(tmp_path / "a.mp4"), "first")
    whole = path.read_bytes()
    made.add(entry(tmp_path / "b.mp4"), "second")
    with path.open("r+b") as file:
        file.truncate(len(path.read_bytes()) - lost)
    again = Quarantine(path)
    assert len(again) == 1 and path.read_bytes() != whole  # reading mends nothing
    assert again.add(entry(tmp_path / "b.mp4"), "second")
    assert [bad.reason for bad in Quarantine(path)] == ["first", "second"]


@pytest.mark.parametrize("line", ["{", "[]", '{"reason": "x"}', '{"video": "a.mp4"}', '{"video": 3, "reason": "x"}'])
def test_what_is_no_quarantine(path, line):
    path.write_text(f'{{"video": "a.mp4", "reason": "x"}}\n{line}\n')
    with pytest.raises(ValueError, match=r"quarantine\.jsonl:2: wanted a line of a quarantine"):
        Quarantine(path)


def test_a_data_set_never_tries_what_is_known(encode, tmp_path, path):
    times = [i / 10 for i in range(20)]
    entries = [entry(encode(tmp_path / f"{i}.mp4", times)) for i in range(4)]
    found = Quarantine(path)
    found.add(entries[1], "it took longer")
    entries[1].video.unlink()  # trying would give another reason
    for given in (path, found):
        data = ClipDataset(entries, frames=2, fps=2, size=32, quarantine=given)
        assert [failure.index for failure in data.known] == [1]
        assert data.failures == {str(entries[1].video): "it took longer"}
        item = data[1]
        assert item["index"] != 1 and item["failures"] == ()
        assert ClipDataset(entries, frames=2, fps=2, size=32)[1]["index"] == item["index"]
    assert ClipDataset(entries, frames=2, fps=2, size=32, quarantine=tmp_path / "none.jsonl").known == ()
