"""Entries that are made when they are asked for are those that a list would hold, and cost forked workers nothing."""

from __future__ import annotations

import json
import pickle
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastvivit.data import Entries, Entry, read_manifest, write_manifest
from fastvivit.data.entries import EntryRows
from fastvivit.data.entry import entry_of

ROOT = Path(__file__).parents[2]
ODD = [
    {"video": "a.mp4", "caption": "one"},
    {"video": "sub/../a.mp4", "caption": ["one", "zwei \u2028 drei", "café 😀"], "start": 1, "end": 2.5, "stream": 1},
    {"video": "/else/where.mp4", "caption": "two", "twin": "c.mp4", "mood": [1, {"a": None}], "answer": None},
    {"image": "b.png", "caption": "three", "twin": None, "start": None},
    {"image": "caf\udce9.png", "caption": "not UTF-8", "id": "\udce9"},
    {"video": "big.mp4", "caption": "four", "start": 10**13, "end": 10**13 + 1, "captions": 3},
    {"video": "zero.mp4", "caption": "five", "start": 0, "end": 1e-9},
]


def written(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    return path


def by_hand(row, folder: Path) -> Entry:
    known = {"video", "image", "caption", "start", "end", "stream", "twin"}
    captions = row["caption"]
    return Entry(
        video=folder / row.get("video", row.get("image")),
        kind="image" if "image" in row else "video",
        captions=(captions,) if isinstance(captions, str) else tuple(captions),
        start=float(row.get("start") or 0),
        end=row.get("end"),
        stream=row.get("stream"),
        twin=folder / row["twin"] if row.get("twin") else None,
        extra={name: value for name, value in row.items() if name not in known},
    )


def test_every_entry_is_what_its_line_says(tmp_path):
    found = read_manifest(written(tmp_path / "odd.jsonl", ODD))
    wanted = [by_hand(row, tmp_path) for row in ODD]
    assert isinstance(found, Entries) and len(found) == len(wanted)
    assert list(found) == wanted and found == wanted and wanted == found and found == tuple(wanted)
    assert [found[place] for place in range(-len(ODD), len(ODD))] == wanted * 2
    assert found.captions.tolist() == [len(entry.captions) for entry in wanted]
    assert found.images.tolist() == [entry.kind == "image" for entry in wanted]
    assert found.paired.tolist() == [entry.twin is not None for entry in wanted]
    assert read_manifest(write_manifest(tmp_path / "again.jsonl", found)) == [
        replace(entry, video=Path(str(entry.video))) for entry in wanted
    ]


def test_it_reads_like_a_list(tmp_path):
    found = read_manifest(written(tmp_path / "odd.jsonl", ODD))
    wanted = list(found)
    for part in (slice(2), slice(-3, None), slice(1, 6, 2), slice(None, None, -1), slice(9, 20)):
        assert (
            isinstance(found[part], Entries) and found[part] == wanted[part] and len(found[part]) == len(wanted[part])
        )
        assert found[part].captions.tolist() == [len(entry.captions) for entry in wanted[part]]
    assert found[2:][1:][0] == wanted[3] and found[np.int64(1)] == wanted[1]
    assert found + found == wanted + found == found + wanted == wanted + wanted
    assert list(reversed(found)) == wanted[::-1] and wanted[2] in found and found.index(wanted[2]) == 2
    assert found != wanted[:-1] and found != wanted[::-1] and found != "odd" and bool(found) and not found[:0]
    assert found.take([3, 0, 3]) == [wanted[3], wanted[0], wanted[3]]
    assert found.without("mood") == [
        replace(entry, extra={name: value for name, value in entry.extra.items() if name != "mood"}) for entry in wanted
    ]
    assert "7 entries" in repr(found) and "0 entries" in repr(found[:0])
    for place in (len(ODD), -len(ODD) - 1):
        with pytest.raises(IndexError, match=f"index: wanted one of 7 entries, got {place}"):
            found[place]
    with pytest.raises(TypeError):
        found["0"]
    with pytest.raises(ValueError, match="read-only"):
        found.captions[0] = 0


def test_rows_that_were_no_json_are_kept_as_they_were():
    rows, folders = EntryRows(), [Path("a.tar"), Path("b.tar")]
    for place, row in enumerate(ODD):
        rows.add(row, folders[place // 4])
    assert rows.entries() == [by_hand(row, folders[place // 4]) for place, row in enumerate(ODD)]


def test_what_is_changed_in_an_entry_changes_no_other(tmp_path):
    found = read_manifest(written(tmp_path / "odd.jsonl", ODD))
    found[2].extra["mood"].append("mine")
    assert found[2].extra["mood"] == [1, {"a": None}]


def test_line_ends_of_other_systems(tmp_path):
    path = tmp_path / "odd.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(json.dumps(row).encode() for row in ODD) + b" \t\r\r")
    assert read_manifest(path) == [by_hand(row, tmp_path) for row in ODD]


def test_pickled_it_is_little_more_than_its_text(tmp_path):
    path = written(tmp_path / "many.jsonl", ODD * 1000)
    found = read_manifest(path)
    sent = pickle.dumps(found)
    assert pickle.loads(sent) == found and len(sent) < path.stat().st_size + 40 * len(found)


def test_the_quick_look_accepts_nothing_that_is_wrong():
    """Random rows: refused in the same words as ``entry_of``, or taken for what it makes of them."""
    draw, absent, folder = random.Random(0), object(), Path("folder")
    numbers = [absent] * 6 + [
        None,
        0,
        -0.0,
        1,
        2.5,
        -1,
        True,
        "1",
        "2.5",
        "-1",
        "inf",
        "nan",
        "x",
        1e300,
        2**60,
        float("nan"),
        float("inf"),
        [1],
    ]
    values = {
        "video": ["a.mp4"] * 8 + [absent, absent, None, "", 3],
        "image": [absent] * 8 + [None, "", "b.png", "c.png"],
        "caption": ["one"] * 4 + [["one", "two"], ["one", ""], [], " ", "", 3, None, absent, ("one",), ["one", 2]],
        "start": numbers,
        "end": numbers,
        "stream": [absent] * 8 + [None, 0, 2, -1, True, 1.0, "1", "-1"],
        "twin": [absent] * 6 + [None, "", "t.mp4", 3],
        "mood": [absent, None, {"video": 1}],
    }
    taken = 0
    for _ in range(20_000):
        row = {name: value for name, some in values.items() if (value := draw.choice(some)) is not absent}
        rows, refused = EntryRows(), None
        try:
            wanted = entry_of(row, folder)
        except ValueError as error:
            refused = str(error)
        if refused is None and not wanted.captions:
            refused = "caption: wanted a sentence or a list of them, got []"
        try:
            rows.add(row, folder)
        except ValueError as error:
            assert str(error) == refused, row
            continue
        assert refused is None, row
        found, taken = rows.entries(), taken + 1
        assert list(found) == [wanted], row
        assert (found.captions[0], found.images[0], found.paired[0]) == (
            len(wanted.captions),
            wanted.kind == "image",
            wanted.twin is not None,
        ), row
    assert taken > 500


_WALK = """
import gc, os, sys
from fastvivit.data import read_manifest

def private():
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private_")) / 1024

entries = read_manifest(sys.argv[1])
for make in (tuple, lambda: entries, lambda: list(entries)):
    some = make()
    if os.fork() == 0:
        before = private()
        gc.collect()
        for place in range(len(some)):
            some[place].captions
        print(private() - before, flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux tells what memory is private")
def test_a_forked_worker_that_walks_all_entries_copies_none(tmp_path):
    path = tmp_path / "many.jsonl"
    path.write_text("".join(f'{{"video": "{i}.mp4", "caption": "the clip number {i}"}}\n' for i in range(100_000)))
    done = subprocess.run(
        [sys.executable, "-c", _WALK, path], capture_output=True, text=True, check=True, cwd=ROOT, timeout=120
    )
    alone, of_entries, of_list = map(float, done.stdout.split())
    # The collector writes to every object there is, whoever walks. The list shows that the measure sees what it should.
    assert of_entries - alone < 8 and of_list - alone > 25, (alone, of_entries, of_list)
