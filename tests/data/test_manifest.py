"""What a manifest may say, and that what it may not is told by file, line and field."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fastvivit.data import Entry, read_manifest, write_manifest


def lines(path, *rows):
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def test_fields_and_paths(tmp_path):
    path = lines(
        tmp_path / "clips.jsonl",
        {
            "video": "a/b.mp4",
            "caption": "one",
            "start": 1,
            "end": 2.5,
            "stream": 1,
            "twin": "c.mp4",
            "mood": [1],
        },
        "",
        {"video": "/else/where.mp4", "caption": ["one", "two"]},
    )
    first, second = read_manifest(path)
    assert first == Entry(
        video=tmp_path / "a/b.mp4",
        captions=("one",),
        start=1.0,
        end=2.5,
        stream=1,
        twin=tmp_path / "c.mp4",
        extra={"mood": [1]},
    )
    assert second == Entry(video=Path("/else/where.mp4"), captions=("one", "two"))


def test_csv_with_the_same_columns(tmp_path):
    path = tmp_path / "clips.CSV"
    path.write_text('video,caption,start,end,mood\na.mp4,"one, two",0.5,,glad\nb.mp4,three,,7,\n')
    assert read_manifest(path) == [
        Entry(video=tmp_path / "a.mp4", captions=("one, two",), start=0.5, extra={"mood": "glad"}),
        Entry(video=tmp_path / "b.mp4", captions=("three",), end=7.0),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", r"wanted one JSON object a line: Expecting"),
        ("[1]", r"wanted a JSON object, got list"),
        ({"caption": "one"}, r"'video': wanted this field, got only \['caption'\]"),
        ({"video": "a.mp4"}, r"'caption': wanted this field, got only \['video'\]"),
        ({"video": 3, "caption": "one"}, r"'video': wanted a path, got 3"),
        (
            {"image": "a.png", "video": "a.mp4", "caption": "one"},
            r"'image': wanted either 'video' or 'image', got both",
        ),
        ({"image": "a.png"}, r"'caption': wanted this field, got only \['image'\]"),
        (
            {"image": "a.png", "caption": "one", "start": 2},
            r"start: wanted none for an image, got 2.0",
        ),
        ({"video": "a.mp4", "caption": 3}, r"'caption': wanted a sentence or a list of them, got 3"),
        ({"video": "a.mp4", "caption": []}, r"caption: wanted a sentence or a list of them, got \[\]"),
        ({"video": "a.mp4", "caption": ["one", " "]}, r"caption: wanted a sentence or a list of them"),
        ({"video": "a.mp4", "caption": "one", "start": "x"}, r"'start': wanted seconds, got 'x'"),
        ({"video": "a.mp4", "caption": "one", "start": True}, r"'start': wanted seconds, got True"),
        (
            {"video": "a.mp4", "caption": "one", "start": -1},
            r"start: wanted finite seconds of at least 0, got -1",
        ),
        (
            {"video": "a.mp4", "caption": "one", "start": 2, "end": 1},
            r"end: wanted finite seconds after start",
        ),
        ({"video": "a.mp4", "caption": "one", "stream": 1.5}, r"'stream': wanted an index .* got 1\.5"),
        (
            {"video": "a.mp4", "caption": "one", "stream": -1},
            r"stream: wanted an index of at least 0, got -1",
        ),
        ({"video": "a.mp4", "caption": "one", "twin": 5}, r"'twin': wanted a path, got 5"),
    ],
)
def test_a_bad_line_is_told_by_file_line_and_field(tmp_path, row, message):
    path = lines(tmp_path / "clips.jsonl", {"video": "a.mp4", "caption": "one"}, "", row)
    with pytest.raises(ValueError, match=rf"clips\.jsonl:3: {message}"):
        read_manifest(path)


def test_bad_files(tmp_path):
    with pytest.raises(ValueError, match=r"manifest: wanted a JSONL or CSV file, no such file: .*none\.jsonl"):
        read_manifest(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match=r"empty\.jsonl: wanted at least one entry"):
        read_manifest(lines(tmp_path / "empty.jsonl", "", ""))
    (tmp_path / "latin.jsonl").write_bytes(b'{"video": "a.mp4", "caption": "caf\xe9"}\n')
    with pytest.raises(ValueError, match=r"latin\.jsonl: wanted UTF-8 text"):
        read_manifest(tmp_path / "latin.jsonl")
    (tmp_path / "short.csv").write_text("video,caption,start\na.mp4,one,1\nb.mp4,two\n")
    with pytest.raises(ValueError, match=r"short\.csv:3: wanted 3 cells"):
        read_manifest(tmp_path / "short.csv")


def test_what_is_written_is_read_back(tmp_path):
    entries = [
        Entry(video=tmp_path / "a.mp4", captions=("café", "two"), twin=tmp_path / "sub/b.mp4", extra={"x": [1]}),
        Entry(video=tmp_path / "sub/b.mp4", captions=("one",), start=0.1, end=3.0, stream=0),
        Entry(video=Path("/else/where.mp4"), captions=("one",)),
    ]
    path = write_manifest(tmp_path / "clips.jsonl", entries)
    assert read_manifest(path) == entries
    assert '"video": "a.mp4"' in path.read_text() and "café" in path.read_text()


def test_a_failed_write_leaves_the_old_file(tmp_path):
    good = Entry(video=tmp_path / "a.mp4", captions=("one",))
    path = write_manifest(tmp_path / "clips.jsonl", [good])
    bad = Entry(video=tmp_path / "a.mp4", captions=("one",), extra={"x": object()})
    with pytest.raises(ValueError, match=r"entries\[1\]\.extra: wanted what JSON can hold"):
        write_manifest(path, [good, bad])
    assert read_manifest(path) == [good]
    assert os.listdir(tmp_path) == ["clips.jsonl"]  # noqa: PTH208
    with pytest.raises(ValueError, match=r"path: wanted a JSONL file to write, got .*clips\.csv"):
        write_manifest(tmp_path / "clips.csv", [good])


def test_extra_may_not_hide_a_field():
    with pytest.raises(ValueError, match=r"extra: wanted fields that an entry doesn't have itself, got \['end'\]"):
        Entry(video=Path("a.mp4"), captions=("one",), extra={"end": 3})


def test_entries_without_a_caption_when_asked_for(tmp_path):
    silent = Entry(video=tmp_path / "a.mp4", captions=(), start=1.0, extra={"duration": 3.0})
    path = write_manifest(tmp_path / "clips.jsonl", [silent, Entry(video=tmp_path / "b.mp4", captions=("one",))])
    assert path.read_text().startswith('{"video": "a.mp4", "start": 1.0, "duration": 3.0}\n')
    assert read_manifest(path, captioned=False)[0] == silent
    with pytest.raises(ValueError, match=r"clips\.jsonl:1: 'caption': wanted this field"):
        read_manifest(path)
    lines(path, {"video": "a.mp4", "caption": ""})
    with pytest.raises(ValueError, match=r"clips\.jsonl:1: caption: wanted a sentence"):
        read_manifest(path, captioned=False)
