"""Packing: what is written, what is left out, going on after a kill, and damage that is found."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from noise import LOOK, pixels

from fastvivit.data import Entry, PackedDataset, Quarantine, pack, read_clip, read_manifest, write_clip, write_manifest
from fastvivit.data.shards import check, decode, is_pack
from fastvivit.data.shards.job import WORK

CLIP = 8 * 64 * 64 * 3  # bytes, which fill their pages
THREE = {**LOOK, "shard_size": 3 * CLIP + 5}


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_clips_come_back_to_the_bit(undecoded, entries, tmp_path):
    made = pack(entries(7), tmp_path / "pack", **THREE, workers=3)
    assert (made.clips, made.bytes, made.failures) == (7, 7 * CLIP, ())
    sizes = {path.name: path.stat().st_size // CLIP for path in sorted((tmp_path / "pack").glob("*.bin"))}
    assert sizes == {"shard-00000.bin": 3, "shard-00001.bin": 3, "shard-00002.bin": 1}
    data = PackedDataset(tmp_path / "pack")
    assert data.entries == entries(7) and not (tmp_path / "pack" / WORK).exists()
    for i, entry in enumerate(entries(7)):
        want = pixels(entry, 8, 2.0, 64)
        assert torch.equal(data.clip(i), want) and data.clip(i).stride() == want.stride()
    assert check(tmp_path / "pack") == []


@pytest.mark.parametrize(("size", "tubelet"), [((48, 80), (4, 16, 16)), ((28, 42), (2, 14, 14)), (32, (8, 32, 32))])
def test_other_geometry(undecoded, entries, tmp_path, size, tubelet):
    pack(entries(2), tmp_path / "pack", frames=8, size=size, tubelet=tubelet, deadline=None)
    data = PackedDataset(tmp_path / "pack")
    assert torch.equal(data.clip(1), pixels(entries(2)[1], 8, 1.0, size))


def test_workers_and_the_manifest_file_change_nothing(undecoded, entries, tmp_path):
    manifest = write_manifest(tmp_path / "clips.jsonl", entries(7))
    for name, source, workers in (("a", entries(7), 1), ("b", manifest, 4)):
        pack(source, tmp_path / name / "pack", **THREE, workers=workers)
    assert files(tmp_path / "a" / "pack") == files(tmp_path / "b" / "pack")


def test_what_was_packed_is_a_manifest(undecoded, entries, tmp_path):
    pack(entries(2), tmp_path / "pack", **LOOK)
    again = read_manifest(tmp_path / "pack" / "entries.jsonl")
    assert [entry.captions for entry in again] == [entry.captions for entry in entries(2)]
    assert again[1].extra == {"id": 1, "packed": {"shard": 0, "row": 1, "entry": 1}}


def test_what_cannot_be_read_is_left_out(undecoded, entries, tmp_path):
    given = entries(9, broken=(0, 3, 4, 5, 8))
    made = pack(given, tmp_path / "pack", **THREE)
    assert [failure.index for failure in made.failures] == [0, 3, 4, 5, 8]
    lines = [json.loads(line) for line in (tmp_path / "pack" / "quarantine.jsonl").read_text().splitlines()]
    part = {"start": given[3].start, "end": given[3].end, "stream": given[3].stream}
    assert lines[1] == {"video": str(given[3].video)} | part | {"reason": f"{given[3].video}: no video"}
    bad = Quarantine(tmp_path / "pack" / "quarantine.jsonl")
    assert [place for place, entry in enumerate(given) if bad.reason(entry)] == [0, 3, 4, 5, 8]
    data = PackedDataset(tmp_path / "pack")
    assert [entry.extra["id"] for entry in data.entries] == [1, 2, 6, 7] and data.failures == {}
    # The middle shard has nothing, and is not there.
    assert sorted(path.name for path in (tmp_path / "pack").glob("*.bin")) == ["shard-00000.bin", "shard-00002.bin"]
    for i, entry in enumerate(data.entries):
        assert torch.equal(data.clip(i), pixels(entry, 8, 2.0, 64))
    with pytest.raises(ValueError, match="source: wanted at least one readable video, all 2 entries are broken"):
        pack(entries(2, broken=(0, 1)), tmp_path / "none", **LOOK)


def test_a_finished_pack_is_not_packed_again(undecoded, entries, tmp_path, monkeypatch):
    made = pack(entries(4, broken=(2,)), tmp_path / "pack", **THREE)
    monkeypatch.setattr(decode, "read_entry", None)
    assert pack(entries(4, broken=(2,)), tmp_path / "pack", **THREE) == made
    for change in ({"fps": 1.0}, {"shard_size": CLIP}, {"frames": 4}):
        with pytest.raises(ValueError, match="out: .* holds a pack of another manifest or other settings"):
            pack(entries(4, broken=(2,)), tmp_path / "pack", **(THREE | change))


def stopped(entries, out, after, monkeypatch):
    """A packing that ends with an error after so many clips; the clips that were read."""
    read = []

    def reading(entry, *look):
        if len(read) == after:
            raise RuntimeError("the power went out")
        read.append(entry)
        return pixels(entry, *look)

    with monkeypatch.context() as patched:
        patched.setattr(decode, "read_entry", reading)
        with pytest.raises(RuntimeError, match="power"):
            pack(entries, out, **THREE)


def test_packing_goes_on_where_it_stopped(undecoded, entries, tmp_path, monkeypatch):
    pack(entries(7), tmp_path / "whole" / "pack", **THREE)
    out = tmp_path / "cut" / "pack"
    stopped(entries(7), out, 5, monkeypatch)
    assert not is_pack(out) and [path.name for path in out.glob("*.bin")] == ["shard-00000.bin"]
    with pytest.raises(ValueError, match="found no index.json"):
        PackedDataset(out)
    with pytest.raises(ValueError, match="out: .* holds part of a packing of another manifest"):
        pack(entries(6), out, **THREE)
    read, told = [], []
    monkeypatch.setattr(decode, "read_entry", lambda entry, *look: read.append(entry) or pixels(entry, *look))
    pack(entries(7), out, **THREE, progress=told.append)
    assert [entry.extra["id"] for entry in read] == [3, 4, 5, 6] and told == [3, 3, 1]
    assert files(out) == files(tmp_path / "whole" / "pack")


def test_a_shard_cut_short_meanwhile_is_packed_again(undecoded, entries, tmp_path, monkeypatch):
    pack(entries(7), tmp_path / "whole" / "pack", **THREE)
    out = tmp_path / "cut" / "pack"
    stopped(entries(7), out, 5, monkeypatch)
    with (out / "shard-00000.bin").open("r+b") as stream:
        stream.truncate(CLIP)
    pack(entries(7), out, **THREE)
    assert files(out) == files(tmp_path / "whole" / "pack")


def test_two_at_once_are_refused(undecoded, entries, tmp_path, monkeypatch):
    inner = []

    def reading(entry, *look):
        if not inner:
            inner.append(1)
            with pytest.raises(ValueError, match="another process is packing"):
                pack(entries(2), tmp_path / "pack", **LOOK)
        return pixels(entry, *look)

    monkeypatch.setattr(decode, "read_entry", reading)
    pack(entries(2), tmp_path / "pack", **LOOK)
    assert inner


KILLS = """
    import os, shutil, signal, sys
    from pathlib import Path
    sys.path.insert(0, {here!r})
    from noise import LOOK, pixels
    from fastvivit.data import Entry, PackedDataset, pack
    from fastvivit.data.shards import decode, is_pack
    decode.read_entry = pixels
    root = Path({root!r})
    entries = [Entry(video=root / f"{{name}}{{i}}.mp4", captions=("a",)) for i, name in enumerate(
        ("clip", "clip", "broken", "broken", "clip"))]
    look = LOOK | {{"shard_size": 2 * 8 * 64 * 64 * 3}}

    def files(folder):
        return {{path.name: path.read_bytes() for path in folder.iterdir()}}

    def forked(kill_at):
        pid = os.fork()
        if pid == 0:
            seen = 0
            def hook(event, args):
                nonlocal seen
                if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir") and "cut" in str(args[0]):
                    seen += 1
                    if seen == kill_at:
                        os.kill(os.getpid(), signal.SIGKILL)
            sys.addaudithook(hook)
            pack(entries, root / "cut", **look)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    pack(entries, root / "whole", **look)
    whole = files(root / "whole")
    kill_at = killed = 0
    while True:
        kill_at += 1
        shutil.rmtree(root / "cut", ignore_errors=True)
        code = forked(kill_at)
        if is_pack(root / "cut"):
            assert len(PackedDataset(root / "cut")) == 3
        if code == 0:
            break
        assert code == -signal.SIGKILL, code
        killed += 1
        pack(entries, root / "cut", **look)
        found = files(root / "cut")
        assert found == whole, (kill_at, sorted(found), sorted(whole))
    print(killed)
"""


def test_killed_at_every_file_operation(tmp_path):
    """SIGKILL in front of each one, then once more to the end: the same bytes, nothing left over."""
    code = textwrap.dedent(KILLS).format(here=str(Path(__file__).parent), root=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3], timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 25


def test_an_interrupted_packing_does_not_wait_for_its_decoders(tmp_path):
    pytest.importorskip("av")
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "hanging.mp4").write_text("ffconcat version 1.0\nfile pipe.mp4\n")
    given = [Entry(video=tmp_path / "hanging.mp4", captions=("a",))] * 4
    main = threading.main_thread().ident
    threading.Timer(2.0, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        pack(given, tmp_path / "pack", frames=2, fps=4.0, size=32, tubelet=(2, 16, 16))
    assert time.monotonic() - began < 10


def test_a_file_that_hangs_its_decoder_is_left_out(tmp_path):
    """A real hang: it names a pipe that nobody writes to, and opening that blocks."""
    pytest.importorskip("av")
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "hanging.mp4").write_text("ffconcat version 1.0\nfile pipe.mp4\n")
    pictures = np.random.default_rng(0).integers(256, size=(8, 32, 32, 3), dtype=np.uint8)
    videos = [write_clip(tmp_path / "a.mp4", pictures), tmp_path / "hanging.mp4", tmp_path / "a.mp4"]
    given = [Entry(video=video, captions=("a",)) for video in videos]
    made = pack(given, tmp_path / "pack", frames=2, fps=4.0, size=32, tubelet=(2, 16, 16), workers=2, deadline=5.0)
    assert made.clips == 2 and [failure.index for failure in made.failures] == [1]
    assert "within 5 s, it took longer" in made.failures[0].reason
    data = PackedDataset(tmp_path / "pack")
    assert torch.equal(data.clip(1), read_clip(videos[0], 2, 4.0, 32))


def damage(folder, how):
    def edit(name, change):
        value = json.loads((folder / name).read_text())
        change(value)
        (folder / name).write_text(json.dumps(value))

    def lines(change):
        rows = [json.loads(line) for line in (folder / "entries.jsonl").read_text().splitlines()]
        rows = change(rows) or rows
        (folder / "entries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    {
        "version": lambda: edit("index.json", lambda index: index.update(version=2)),
        "field": lambda: edit("index.json", lambda index: index.pop("shards")),
        "shape": lambda: edit("index.json", lambda index: index.update(shape=[8, 64, 60])),
        "group": lambda: edit("index.json", lambda index: index.update(group=4)),
        "clips": lambda: edit("index.json", lambda index: index["shards"][0].update(clips=4)),
        "outside": lambda: edit("index.json", lambda index: index["shards"][0].update(file="../shard-00000.bin")),
        "rate": lambda: edit("index.json", lambda index: index.update(fps=None)),
        "json": lambda: (folder / "index.json").write_text("{"),
        "short": lambda: (folder / "shard-00001.bin").write_bytes(b"x" * 100),
        "missing": lambda: (folder / "shard-00001.bin").unlink(),
        "row": lambda: lines(lambda rows: rows[1]["packed"].update(row=5)),
        "place": lambda: lines(lambda rows: rows[1].pop("packed") and None),
        "fewer": lambda: lines(lambda rows: rows[:-1]),
        "more": lambda: lines(lambda rows: [*rows, rows[-1]]),
    }[how]()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("version", "index.json: wanted 'fastvivit shards' of version 1, got 'fastvivit shards' of 2"),
        ("field", "index.json: wanted the field 'shards'"),
        ("shape", "index.json: tubelet: wanted one that tiles"),
        ("group", "index.json: group: wanted 8 for this geometry, got 4"),
        ("clips", "index.json: shards: wanted 393216 bytes of 4 clips"),
        ("outside", "index.json: shards: wanted a file name"),
        ("rate", "index.json: wanted clips, with a shape of three axes and fps, or images"),
        ("json", "index.json: wanted a JSON file"),
        ("short", "shard-00001.bin: wanted 98304 bytes, got 100: it is damaged"),
        ("missing", "shard-00001.bin: wanted 98304 bytes, got no such file"),
        ("row", "entries.jsonl:2: 'packed': wanted the next clip of the shards"),
        ("place", "entries.jsonl:2: 'packed': wanted shard, row and entry, got None"),
        ("fewer", "entries.jsonl: wanted 4 entries as in index.json, got 3"),
        ("more", "entries.jsonl:5: 'packed': wanted the next clip"),
    ],
)
def test_damage_is_found_when_a_pack_is_opened(undecoded, entries, tmp_path, how, message):
    pack(entries(4), tmp_path / "pack", **THREE)
    damage(tmp_path / "pack", how)
    with pytest.raises(ValueError, match=message):
        PackedDataset(tmp_path / "pack")


def test_a_shard_cut_short_while_it_is_open(undecoded, entries, tmp_path):
    pack(entries(2), tmp_path / "pack", **LOOK)
    data = PackedDataset(tmp_path / "pack", mask_ratio=0.5)
    data[1]
    with (tmp_path / "pack" / "shard-00000.bin").open("r+b") as stream:
        stream.truncate(CLIP + 1000)
    data[0]
    with pytest.raises(ValueError, match=r"shard-00000.bin: wanted .* the file ends after"):
        data[1]


def test_changed_bytes_are_found_by_check(undecoded, entries, tmp_path):
    pack(entries(4), tmp_path / "pack", **THREE)
    with (tmp_path / "pack" / "shard-00001.bin").open("r+b") as stream:
        stream.seek(5000)
        byte = stream.read(1)[0]
        stream.seek(5000)
        stream.write(bytes([byte ^ 1]))
    (wrong,) = check(tmp_path / "pack")
    assert "shard-00001.bin: wanted the bytes with SHA-256" in wrong


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 0}, "frames: wanted"),
        ({"fps": 0}, "fps: wanted"),
        ({"tubelet": (3, 16, 16)}, "tubelet: wanted one that tiles"),
        ({"tubelet": (16, 16)}, "tubelet: wanted 3 whole numbers"),
        ({"shard_size": 0}, "shard_size, workers: wanted at least 1"),
        ({"deadline": 0.0}, "deadline: wanted seconds above 0"),
        ({"workers": 0}, "shard_size, workers: wanted at least 1"),
    ],
)
def test_bad_arguments(undecoded, entries, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        pack(entries(2), tmp_path / "pack", **(LOOK | change))
    assert not (tmp_path / "pack").exists()
