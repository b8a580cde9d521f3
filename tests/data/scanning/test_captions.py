"""Which file a caption is for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastvivit.data.entry import Entry
from fastvivit.data.scanning.captions import match, read_table, text_beside

FILES = ["a.mp4", "deep/b.mp4", "deep/c.v2.mp4", "x/same.mp4", "y/same.mp4", "z/same.webm"]


def matched(tmp_path, name):
    table = tmp_path / "deep" / "words.jsonl"
    table.parent.mkdir(exist_ok=True)
    table.write_text(json.dumps({"video": name, "caption": "one"}))
    found, unmatched = match(read_table(table, "video"), FILES, tmp_path, table.parent)
    assert all(entry.video == tmp_path / file for file, entries in found.items() for entry in entries)
    assert bool(found) != bool(unmatched)
    return next(iter(found)) if found else unmatched[0]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("a.mp4", "a.mp4"),
        ("deep/b.mp4", "deep/b.mp4"),
        ("{tmp_path}/deep/b.mp4", "deep/b.mp4"),
        ("b.mp4", "deep/b.mp4"),  # a name, and a path from the table's folder
        ("elsewhere/a.mp4", "a.mp4"),
        ("a", "a.mp4"),
        ("a.avi", "a.mp4"),
        ("c.v2", "deep/c.v2.mp4"),
        ("same.webm", "z/same.webm"),
        ("x/same.mp4", "x/same.mp4"),
        ("same.mp4", "same.mp4 (several files: x/same.mp4, y/same.mp4)"),
        ("same", "same (several files: x/same.mp4, y/same.mp4, z/same.webm)"),
        ("../x/same.mp4", "x/same.mp4"),  # from the table's folder
        ("A.mp4", "A.mp4"),
        ("c", "c"),
    ],
)
def test_names(tmp_path, name, file):
    assert matched(tmp_path, name.format(tmp_path=tmp_path)) == file


@pytest.mark.parametrize(
    ("names", "taken", "why"),
    [
        (["gone/a.mp4", "a.mp4"], ["a.mp4"], {"gone/a.mp4": "a.mp4"}),
        (["gone/b.mp4", "deep/b.mp4"], ["deep/b.mp4"], {"gone/b.mp4": "deep/b.mp4"}),
        (["here/a.mp4", "there/a.mp4"], [], {"here/a.mp4": "there/a.mp4", "there/a.mp4": "here/a.mp4"}),
        (["a.avi", "a.mp4"], ["a.mp4"], {"a.avi": "a.mp4"}),
        (["a", "a.mp4", "./a.mp4"], ["a", "a.mp4", "./a.mp4"], {}),
        (["far/a.mp4", "far/a.mp4"], ["far/a.mp4", "far/a.mp4"], {}),
    ],
)
def test_a_guess_yields_to_other_names_of_the_file(tmp_path, names, taken, why):
    rows = [(name, Entry(video=Path(name), captions=(name,))) for name in names]
    found, unmatched = match(rows, FILES, tmp_path, tmp_path)
    assert [entry.captions[0] for entries in found.values() for entry in entries] == taken
    assert [text.split(" ")[0] for text in unmatched] == list(why)
    assert all(text.endswith(f"may be that of {other})") for text, other in zip(unmatched, why.values(), strict=True))


@pytest.mark.parametrize(
    ("head", "row"),
    [("video,caption", "a,b"), ("caption,file_name", "b,a"), ("id,video_id,text", "7,a,b"), ("path,caption", "a,b")],
)
def test_columns(tmp_path, head, row):
    table = tmp_path / "words.csv"
    table.write_text(f"{head}\n{row}\n")
    ((name, entry),) = read_table(table, "video")
    assert name == "a" and entry.captions == ("b",) and entry.extra == ({"id": "7"} if "id," in head[:3] else {})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"caption": "one"}, r"wanted a file as one of video, image, .*, got only \['caption'\]"),
        ({"video": "a", "title": "one"}, r"wanted a caption as one of caption, captions, text, got only"),
        ({"video": "a", "caption": []}, r"caption: wanted a sentence or a list of them, got \[\]"),
        ({"video": "a", "caption": "one", "start": "x"}, r"'start': wanted seconds, got 'x'"),
        ({"video": "a", "caption": "one", "start": 2, "end": 1}, r"end: wanted finite seconds after start"),
    ],
)
def test_a_bad_row_is_told_by_file_and_line(tmp_path, row, message):
    table = tmp_path / "words.jsonl"
    table.write_text(json.dumps({"video": "a", "caption": "one"}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=rf"words\.jsonl:2: {message}"):
        read_table(table, "video")


def test_an_image_has_no_start(tmp_path):
    table = tmp_path / "words.jsonl"
    table.write_text('{"image": "a", "caption": "one", "start": 1}\n')
    with pytest.raises(ValueError, match=r"words\.jsonl:1: start: wanted none for an image"):
        read_table(table, "image")


def test_text_beside(tmp_path):
    assert text_beside(tmp_path / "a.mp4") == ()
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf one \r\n\r\ntwo")
    assert text_beside(tmp_path / "a.mp4") == ("one", "two")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"a\.txt: wanted captions in UTF-8"):
        text_beside(Path(tmp_path / "a.mp4"))
