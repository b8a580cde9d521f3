"""Items, draws, replacement of broken files, caching and batches."""

from __future__ import annotations

import logging
from collections import Counter

import pytest
import torch
from greys import numbers
from torch.utils.data import DataLoader

from fastvivit.data import (
    ClipDataset,
    Entry,
    EpochSampler,
    Failure,
    collate,
    dataset,
    sample_seed,
    write_manifest,
)

TEN = [i / 10 for i in range(20)]
LOOK = {"frames": 3, "fps": 2, "size": 32}


@pytest.fixture
def entries(encode, tmp_path):
    """Six clips; clip i begins with grey 2 i."""
    made = []
    for i in range(6):
        path = encode(tmp_path / f"{i}.mp4", TEN)
        made.append(Entry(video=path, captions=(f"{i}a", f"{i}b", f"{i}c"), start=i / 5))
    return made


@pytest.fixture
def half_broken(entries, broken):
    """The same with 1, 2 and 4 broken in three ways."""
    bad = {1: broken["text"], 2: broken["missing"], 4: broken["empty"]}
    return [
        Entry(video=bad.get(i, entry.video), captions=entry.captions, start=entry.start)
        for i, entry in enumerate(entries)
    ]


def test_an_item_is_its_entry(entries, tmp_path):
    data = ClipDataset(write_manifest(tmp_path / "clips.jsonl", entries), **LOOK)
    assert len(data) == 6 and data.failures == {}
    item = data[3]
    assert numbers(item["video"]) == [6, 11, 16] and item["video"].dtype == torch.uint8
    assert item["index"] == 3 and item["caption"] in entries[3].captions
    assert 0 <= item["mask_seed"] < 2**63 and item["failures"] == ()
    with pytest.raises(IndexError, match="index: wanted 0 to 5, got 6"):
        data[6]


def test_start_end_and_stream_of_the_entry(encode, tmp_path, av):
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        streams = [encode.add(container, "libx264") for _ in range(2)]
        for base, stream in zip((0, 30), streams, strict=True):
            encode.draw(container, stream, TEN, base=base)
    excerpt = Entry(video=path, captions=("one",), start=0.5, end=1.2, stream=1)
    assert numbers(ClipDataset([excerpt], **LOOK)[0]["video"]) == [35, 40, 41]


def test_draws_depend_on_seed_epoch_and_index_alone(entries):
    def draws(seed, epoch, order):
        data = ClipDataset(entries, **LOOK, seed=seed)
        data.set_epoch(epoch)
        return {i: (data[i]["caption"], data[i]["mask_seed"]) for i in order}

    assert draws(0, 0, range(6)) == draws(0, 0, reversed(range(6)))
    seeds = [seed for s, e in ((0, 0), (0, 1), (1, 0)) for _, seed in draws(s, e, range(6)).values()]
    assert len(set(seeds)) == 18
    captions = Counter(draws(0, epoch, [0])[0][0] for epoch in range(60))
    assert set(captions) == {"0a", "0b", "0c"} and min(captions.values()) > 8


def test_sample_seeds_are_fixed_for_good():
    """A run must resume to the same masks after an update, so these numbers never change."""
    assert sample_seed(0, 0, 0, "mask") == 1459756084564351749
    assert len({sample_seed(s, e, i, p) for s in (0, 1) for e in (0, 1) for i in (0, 1) for p in "ab"}) == 16


def test_a_broken_file_is_reported_once_and_replaced(half_broken, broken, caplog):
    data = ClipDataset(half_broken, **LOOK, seed=3)
    with caplog.at_level(logging.WARNING, "fastvivit"):
        first = [data[i] for i in range(6)]
        second = [data[i] for i in range(6)]
    assert set(data.failures) == {str(broken[kind]) for kind in ("text", "missing", "empty")}
    assert "no such file" in data.failures[str(broken["missing"])]
    assert len(caplog.records) == 3 and "(3 so far)" in caplog.records[-1].getMessage()
    assert [item["index"] for item in first] == [item["index"] for item in second]
    for asked, item in enumerate(first):
        assert item["index"] in (0, 3, 5) and (asked in (1, 2, 4) or item["index"] == asked)
        start = 2 * item["index"]
        assert numbers(item["video"]) == [start, start + 5, min(start + 10, 19)]
        assert item["caption"][0] == str(item["index"])
    found = [failure for item in first for failure in item["failures"]]
    assert sorted(failure.index for failure in found) == [1, 2, 4]
    assert not any(item["failures"] for item in second)
    # The same in another order, and in a fresh data set.
    again = ClipDataset(half_broken, **LOOK, seed=3)
    assert {i: again[i]["index"] for i in (4, 2, 1)} == {i: first[i]["index"] for i in (4, 2, 1)}


def test_replacements_depend_on_the_seed(half_broken):
    chosen = set()
    for seed in range(12):
        data = ClipDataset(half_broken, **LOOK, seed=seed)
        chosen.add(data[1]["index"])
    assert chosen == {0, 3, 5}


def test_nothing_readable_ends_in_an_error(broken):
    entries = [Entry(video=broken[kind], captions=("one",)) for kind in ("text", "empty")]
    with pytest.raises(ValueError, match=r"source: .*all 2 entries are broken, for example .*can't be opened"):
        ClipDataset(entries, **LOOK)[0]


def test_raising_instead_of_replacing(half_broken):
    with pytest.raises(ValueError, match="can't be opened as a video"):
        ClipDataset(half_broken, **LOOK, on_error="raise")[1]


@pytest.mark.parametrize("cache", [True, False])
def test_the_cache_keeps_clips(entries, monkeypatch, cache):
    reads = []
    real = dataset.read_clip
    monkeypatch.setattr(dataset, "read_clip", lambda *a, **k: (reads.append(a[0]), real(*a, **k))[1])
    data = ClipDataset(entries, **LOOK, cache=cache)
    first, second = data[2], data[2]
    assert torch.equal(first["video"], second["video"])
    assert len(reads) == (1 if cache else 2)


def test_batches(entries):
    data = ClipDataset(entries, **LOOK)
    items = [data[i] for i in (4, 0, 5)]
    batch = collate(items)
    assert batch["video"].shape == (3, 3, 3, 32, 32)
    assert batch["video"].permute(0, 2, 3, 4, 1).is_contiguous()
    assert all(torch.equal(batch["video"][i], items[i]["video"]) for i in range(3))
    assert batch["index"].tolist() == [4, 0, 5]
    assert batch["mask_seed"].tolist() == [item["mask_seed"] for item in items]
    assert batch["caption"] == [item["caption"] for item in items]
    shorter = items[1] | {"video": items[1]["video"][:, :2], "failures": (Failure(1, "x", "y"),)}
    uneven = collate([items[0], shorter])
    assert [tuple(video.shape) for video in uneven["video"]] == [(3, 3, 32, 32), (3, 2, 32, 32)]
    assert uneven["failures"] == (Failure(1, "x", "y"),)


def test_workers_give_the_same_and_tell_what_they_found(half_broken, broken):
    """Living workers see a new epoch, batches are those of one process, and failures reach the parent."""

    def run(workers):
        data = ClipDataset(half_broken, **LOOK, seed=1)
        sampler = EpochSampler(data, 2, 1)
        loader = DataLoader(
            data,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        seen = []
        while sampler.epoch < 2:
            data.set_epoch(sampler.epoch)
            for batch in loader:
                seen.append((batch["index"].tolist(), batch["mask_seed"].tolist(), batch["caption"]))
                data.record_failures(batch["failures"])
                sampler.advance()
        return seen, data.failures

    alone, together = run(0), run(2)
    assert alone[0] == together[0] and len(alone[0]) == 6
    assert alone[1] == together[1] and len(alone[1]) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_hangs_is_replaced_after_its_deadline(entries, hanging, workers):
    bad = [*entries[:2], Entry(video=hanging, captions=("one",)), entries[3]]
    data = ClipDataset(bad, **LOOK, deadline=2.0, threads=1)
    plain = ClipDataset([bad[0], bad[1], bad[3]], **LOOK)
    loader = DataLoader(data, batch_size=2, collate_fn=collate, num_workers=workers)
    first, second = list(loader)
    assert torch.equal(first["video"], collate([plain[0], plain[1]])["video"])
    assert [failure.index for failure in second["failures"]] == [2]
    assert "hanging.mp4: wanted to read it within 2 s" in second["failures"][0].reason
    assert second["index"][0] != 2 and torch.equal(second["video"][1], plain[2]["video"])


def test_entries_without_a_caption_are_refused(entries):
    with pytest.raises(ValueError, match=r"caption: wanted .* for every clip, 1 of 6 have none, for example .*0\.mp4"):
        ClipDataset([Entry(video=entries[0].video, captions=()), *entries[1:]], **LOOK)


def test_twins_are_found_by_their_paths(entries, tmp_path):
    linked = [
        Entry(video=tmp_path / "0.mp4", captions=("one",), twin=tmp_path / "sub/../2.mp4"),
        Entry(video=tmp_path / "1.mp4", captions=("one",)),
        Entry(video=tmp_path / "2.mp4", captions=("one",), twin=tmp_path / "0.mp4"),
    ]
    assert ClipDataset(linked, **LOOK).twin_indices() == [2, -1, 0]
    batches = list(EpochSampler(ClipDataset(linked, **LOOK), 2, pair_twins=True, drop_last=False))
    assert sorted(map(sorted, batches)) == [[0, 2], [1]]
    with pytest.raises(ValueError, match=r"twin: wanted one entry with the video .*2\.mp4, .*found 0"):
        ClipDataset(linked[:2], **LOOK).twin_indices()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frames": 0}, r"frames: wanted an int of at least 1, got 0"),
        ({"fps": -1}, r"fps: wanted a finite number above 0"),
        ({"deadline": 0}, r"deadline: wanted seconds above 0 or None, got 0"),
        ({"threads": 0}, r"threads: wanted an int of at least 1 or None, got 0"),
        ({"on_error": "skip"}, r"on_error: wanted 'replace' or 'raise', got 'skip'"),
        ({"source": []}, r"source: wanted at least one entry, got none"),
    ],
)
def test_errors(entries, arguments, message):
    with pytest.raises(ValueError, match=message):
        ClipDataset(**({"source": entries} | LOOK | arguments))
