"""Captions of frames: exactly the right frame, where its text is from, and going on after a kill."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from greys import level, numbers

from fastvivit.data import Entry, read_manifest, write_image, write_manifest
from fastvivit.data.synthetic import caption_frames

RATE = 8  # pictures a second: at 10 FPS frame 50 is picture 40, frame 25 is picture 20


class Seer:
    """Says which picture it sees; remembers how many at a time."""

    def __init__(self, dies_after=None):
        self.batches, self.dies_after = [], dies_after

    def __call__(self, images):
        assert images.dtype == torch.uint8 and images.shape[1:] == (3, 32, 32)
        if len(self.batches) == self.dies_after:
            raise KeyboardInterrupt
        self.batches.append(len(images))
        return [f"picture {number}" for image in images for number in numbers(image[:, None])]


def caption(source, captioner, **more):
    return caption_frames(source, captioner, size=32, **more)


def said(found):
    return [entry.captions for entry in found.entries]


@pytest.fixture
def film(encode, tmp_path):
    def make(pictures, name=None, **look):
        return encode(tmp_path / (name or f"{pictures}.mp4"), [i / RATE for i in range(pictures)], **look)

    return make


@pytest.mark.parametrize(
    "pictures,frame,seen",
    [(48, 50, 40), (41, 50, 40), (40, 25, 20), (21, 25, 20), (20, 0, 0), (1, 0, 0)],
)
def test_the_50th_else_the_25th_else_the_first(film, pictures, frame, seen):
    found = caption([film(pictures)], Seer(), by="seer")
    (entry,) = found.entries
    assert entry.captions == (f"picture {seen}",) and not found.dropped
    assert entry.extra == {
        "text_source": {"kind": "frame caption", "frame": frame, "seconds": frame / 10, "by": "seer"}
    }


def test_frames_count_from_where_the_entry_begins_and_end_with_it(film):
    video = film(48)
    entries = [
        Entry(video=video, captions=("given",), start=0.5),  # 5.5 s
        Entry(video=video, captions=("given",), start=1.5),  # its 50th is past the file's end
        Entry(video=video, captions=("given",), start=1.0, end=4.0),  # and here past the clip's
        Entry(video=video, captions=("given",), start=1.0, end=3.5),  # a clip's end is not in it
    ]
    found = caption(entries, Seer())
    assert said(found) == [("picture 44",), ("picture 32",), ("picture 28",), ("picture 8",)]
    assert [entry.extra["text_source"]["frame"] for entry in found.entries] == [50, 25, 25, 0]
    assert [entry.start for entry in found.entries] == [0.5, 1.5, 1.0, 1.0]


def test_other_frames_at_another_rate(film):
    found = caption([film(48)], Seer(), frames=(90, 6), fps=4.0)
    assert said(found) == [("picture 12",)]
    assert found.entries[0].extra["text_source"]["seconds"] == 1.5


def test_a_frame_that_is_damaged_has_failed(film, cut, tmp_path):
    whole = film(48, "whole.mkv", options={"g": "8"})
    damaged = cut(whole, tmp_path / "damaged.mkv", 0.7)  # ends somewhere between 2.5 s and 5 s
    found = caption([damaged], Seer())
    assert said(found) == [("picture 20",)]


def test_broken_clips_are_listed_and_the_rest_goes_on(film, broken):
    good = film(48)
    files = [broken["text"], good, broken["empty"], broken["missing"]]
    found = caption(files, Seer())
    assert [entry.video for entry in found.entries] == [good]
    assert [(one.index, one.video, one.kind) for one in found.dropped] == [
        (index, str(files[index]), "broken clip") for index in (0, 2, 3)
    ]
    assert found.counts == {"broken clip": 3} and all(str(files[one.index]) in one.reason for one in found.dropped)


def test_captions_are_replaced_or_kept_and_sources_survive_the_manifest(film, tmp_path):
    given = Entry(video=film(48), captions=("one", "two"), extra={"id": "x"})
    replaced = caption([given], Seer(), by="a")
    kept = caption([given], Seer(), by="a", keep_captions=True)
    again = caption(kept.entries, lambda images: ["more"], by="b", keep_captions=True)
    assert said(replaced) == [("picture 40",)]
    assert said(again) == [("one", "two", "picture 40", "more")]
    sources = again.entries[0].extra["text_source"]
    assert [(source["kind"], source.get("by")) for source in sources] == [
        ("given", None), ("given", None), ("frame caption", "a"), ("frame caption", "b"),
    ]  # fmt: skip
    assert again.entries[0].extra["id"] == "x"
    write_manifest(tmp_path / "new.jsonl", replaced.entries + again.entries)
    assert read_manifest(tmp_path / "new.jsonl") == replaced.entries + again.entries


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_job_goes_on(film, tmp_path, workers):
    files = [film(pictures) for pictures in (41, 42, 43, 20, 21, 22, 10)]
    ledger, steps = tmp_path / "ledger", []
    dying = Seer(dies_after=2)
    with pytest.raises(KeyboardInterrupt):
        caption(files, dying, by="seer", batch_size=2, ledger=ledger)
    assert dying.batches == [2, 2]
    text = ledger.read_text()
    ledger.write_text(text[:-9])  # and the last line was cut off
    second = Seer()
    found = caption(files, second, by="seer", batch_size=2, ledger=ledger, advance=steps.append, workers=workers)
    assert second.batches == [2, 2]  # four of seven, three are there
    assert said(found) == said(caption(files, Seer(), batch_size=7)) and sum(steps) == 7
    third = Seer()
    assert said(caption(files, third, by="seer", ledger=ledger)) == said(found) and third.batches == []
    caption(files, third, by="another", ledger=ledger)
    caption(files, third, by="seer", frames=(25, 0), ledger=ledger)
    assert third.batches == [7, 7]


def test_a_clip_of_other_content_or_extent_is_another_one(film, tmp_path):
    ledger, entry = tmp_path / "ledger", Entry(video=film(48, "a.mp4"), captions=("given",))
    assert said(caption([entry], Seer(), by="s", ledger=ledger)) == [("picture 40",)]
    assert said(caption([replace(entry, start=0.5)], Seer(), by="s", ledger=ledger)) == [("picture 44",)]
    film(21, "a.mp4")
    assert said(caption([entry], Seer(), by="s", ledger=ledger)) == [("picture 20",)]


def test_empty_captions_are_dropped_and_texts_are_one_line(film):
    files = [film(48), film(21)]
    found = caption(files, lambda images: [" a\nline ", " "])
    assert said(found) == [("a line",)] and found.counts == {"empty caption": 1}


def test_images_are_seen_as_they_are(film, tmp_path):
    image = write_image(tmp_path / "a.png", np.full((32, 32, 3), level(7), np.uint8))
    entries = [Entry(video=image, kind="image", captions=("given",)), Entry(video=film(48), captions=("given",))]
    found = caption([*entries, Entry(video=tmp_path / "none.png", kind="image", captions=("given",))], Seer(), by="s")
    assert said(found) == [("picture 7",), ("picture 40",)] and found.counts == {"broken clip": 1}
    assert found.entries[0].kind == "image"
    assert found.entries[0].extra == {"text_source": {"kind": "image caption", "by": "s"}}


def test_out_of_tars(film, tmp_path):
    import tarfile

    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(film(48), "one.mp4")
    rows = tmp_path / "m.jsonl"
    rows.write_text(json.dumps({"video": "a.tar/one.mp4", "caption": "given"}))
    assert said(caption(rows, Seer(), ledger=tmp_path / "ledger")) == [("picture 40",)]


def test_bad_arguments_are_named(film):
    video = film(1)
    for change, message in (
        ({"frames": ()}, "frames: wanted"),
        ({"frames": (-1,)}, "frames: wanted"),
        ({"fps": 0.0}, "fps: wanted"),
        ({"batch_size": 0}, "batch_size: wanted"),
        ({"workers": -1}, "workers: wanted"),
    ):
        with pytest.raises(ValueError, match=message):
            caption_frames([video], Seer(), **change)
    for source, message in (([], "at least one clip"), (["a.mp4"], "wanted a manifest, entries or paths, got a str")):
        with pytest.raises(ValueError, match=message):
            caption_frames(source, Seer())
    for texts in ("a", [], ["a", "b"], [1]):
        with pytest.raises(ValueError, match="captioner: wanted 1 strings for 1 images"):
            caption_frames([video], lambda images, texts=texts: texts)
