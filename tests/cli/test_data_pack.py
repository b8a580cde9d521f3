"""``fastvivit data pack`` as a command."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fastvivit.data import Entry, PackedDataset, read_clip, write_clip, write_manifest

LOOK = ("--frames", "4", "--fps", "2", "--size", "32", "--tubelet", "2,16,16")


@pytest.fixture
def manifest(tmp_path):
    """Three clips, of which one is none."""
    pytest.importorskip("av")
    entries = []
    for i in range(2):
        pictures = np.random.default_rng(i).integers(256, size=(16, 32, 48, 3), dtype=np.uint8)
        entries.append(Entry(video=write_clip(tmp_path / f"{i}.mp4", pictures), captions=("a clip",)))
    (tmp_path / "text.mp4").write_text("this is no video")
    entries.insert(1, Entry(video=tmp_path / "text.mp4", captions=("no clip",)))
    return write_manifest(tmp_path / "clips.jsonl", entries)


def test_pack_and_check(call, manifest, tmp_path):
    out = tmp_path / "pack"
    code, said, told = call("data", "pack", manifest, "--out", out, *LOOK, "--workers", "2")
    assert code == 0 and said == f"2 clips, 0.0 MB: {out}\n"
    assert told == f"1 entries could not be read, reasons are in {out / 'quarantine.jsonl'}\n"
    assert json.loads((out / "quarantine.jsonl").read_text())["video"] == str(tmp_path / "text.mp4")
    data = PackedDataset(out)
    assert torch.equal(data.clip(1), read_clip(tmp_path / "1.mp4", 4, 2.0, 32))
    assert call("data", "pack", "--check", out)[:2] == (0, f"1 of 1 shards are as they were written: {out}\n")
    shard = out / "shard-00000.bin"
    shard.write_bytes(bytes(shard.stat().st_size))
    code, said, told = call("data", "pack", "--check", out)
    assert code == 1 and said.startswith("0 of 1 shards") and "shard-00000.bin: wanted the bytes with SHA-256" in told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("clips.jsonl",), "manifest, out: wanted both (or --check FOLDER), got no out"),
        ((), "manifest, out: wanted both (or --check FOLDER), got none"),
        (("clips.jsonl", "--out", "pack", "--tubelet", "2x16"), "tubelet: wanted whole numbers as 2,16,16, got '2x16'"),
        (("clips.jsonl", "--out", "pack", "--tubelet", "3,16,16"), "tubelet: wanted one that tiles"),
        (("clips.jsonl", "--out", "pack", "--shard-size", "a lot"), "shard-size: wanted a size such as 16GB"),
        (("none.jsonl", "--out", "pack"), "manifest: wanted a JSONL or CSV file, no such file"),
        (("--check", "none"), "wanted a folder that `fastvivit data pack` has written"),
    ],
)
def test_mistakes_end_with_2(call, manifest, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, _, told = call("data", "pack", *arguments)
    assert code == 2 and words in told
