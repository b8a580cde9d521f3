"""A folder to a manifest: what is good, what is left out and why, and that nothing is decoded twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from greys import numbers

from fastvivit.data import ClipDataset, Quarantine, read_clip, read_manifest, scan, write_image
from fastvivit.data.scanning import decode

TEN = [i / 10 for i in range(40)]
ROOT = Path(__file__).resolve().parents[3]
FRONT = {"movflags": "+faststart"}  # the index comes first, so that a cut file opens


@pytest.fixture
def folder(encode, tmp_path):
    """Two good clips in two folders, and a caption for each in a text file beside it."""
    made = tmp_path / "clips"
    (made / "sub").mkdir(parents=True)
    for name, size in (("a", (64, 48)), ("sub/b", (48, 32))):
        encode(made / f"{name}.mp4", TEN, size=size)
        (made / f"{name}.txt").write_text(f"{name} one\n\n{name} two\n")
    return made


@pytest.fixture
def counted(monkeypatch):
    """The files that were really decoded."""
    seen = []
    real = decode.GuardedReader.survey

    def survey(self, path, *args, **kwargs):
        seen.append(path.name)
        return real(self, path, *args, **kwargs)

    monkeypatch.setattr(decode.GuardedReader, "survey", survey)
    return seen


def reasons(found):
    return {bad.file: (bad.kind, bad.reason) for bad in found.broken}


def test_a_manifest_of_what_is_there(folder):
    (folder / ".hidden.mp4").write_text("no clip")
    (folder / ".trash").mkdir()
    shutil.copy(folder / "a.mp4", folder / ".trash")
    (folder / "notes.doc").write_text("no clip")
    found = scan(folder, workers=2)
    assert found.manifest == folder / "manifest.jsonl" and found.kind == "video"
    assert [json.loads(line) for line in found.manifest.read_text().splitlines()] == [
        {"video": "a.mp4", "caption": ["a one", "a two"], "duration": 4.0},
        {"video": "sub/b.mp4", "caption": ["sub/b one", "sub/b two"], "duration": 4.0},
    ]
    assert read_manifest(found.manifest) == found.entries
    about = found.surveys["sub/b.mp4"]
    assert (about.pictures, about.width, about.height, about.codec) == (40, 48, 32, "h264")
    assert about.fps == pytest.approx(10) and found.seconds == pytest.approx(8.0)
    assert found.broken == found.unmatched == found.misled == () and len(Quarantine(found.quarantine)) == 0
    assert len(ClipDataset(found.manifest, frames=2, size=32)) == 2


def test_what_can_not_be_read_is_left_out_with_a_reason(folder, broken, encode, cut, tmp_path, av):
    shutil.copy(broken["text"], folder / "text.mp4")
    (folder / "empty.mp4").touch()
    times = [i / 10 for i in range(120)]
    whole = encode(tmp_path / "whole.mp4", times, muxer=FRONT, size=(320, 240), options={"g": "10", "qp": "20"})
    cut(whole, folder / "cut.mp4", 0.5)
    cut(whole, folder / "no_index.mp4", 0.01)
    encode(folder / "short.mp4", TEN[:3])
    with av.open(str(folder / "sound.mp4"), "w") as file:
        stream = file.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        frame.sample_rate = 44100
        for packet in (*stream.encode(frame), *stream.encode()):
            file.mux(packet)
    found = scan(folder, workers=2)
    assert [entry.video.name for entry in found.entries] == ["a.mp4", "b.mp4"]
    kinds = {file: kind for file, (kind, _) in reasons(found).items()}
    assert kinds == {
        "text.mp4": "unreadable",
        "empty.mp4": "empty file",
        "cut.mp4": "damaged",
        "no_index.mp4": "unreadable",
        "short.mp4": "too short",
        "sound.mp4": "no video stream",
    }
    assert reasons(found)["short.mp4"][1] == "wanted at least 0.5 s, it has 0.300 s"
    quarantine = Quarantine(found.quarantine)
    assert {bad.video.name: bad.reason for bad in quarantine} == {
        file: reason for file, (_, reason) in reasons(found).items()
    }
    assert all(bad.part is None for bad in quarantine)


def test_damage_is_told_with_how_far_the_file_is_good(folder, encode, cut, tmp_path):
    times = [i / 10 for i in range(120)]
    whole = encode(tmp_path / "whole.mp4", times, muxer=FRONT, size=(320, 240), options={"g": "10", "qp": "20"})
    path = cut(whole, folder / "cut.mp4", 0.5)
    path.with_suffix(".txt").write_text("half\n")
    kind, reason = reasons(scan(folder, workers=1))["cut.mp4"]
    assert kind == "damaged" and "cut.mp4 is damaged after" in reason
    good = float(reason.rpartition("good until ")[2].removesuffix(" s"))
    assert 2 < good < 10

    found = scan(folder, workers=1, salvage=True)
    (entry,) = (entry for entry in found.entries if entry.video == path)
    assert entry.end == pytest.approx(good, abs=1e-3) and entry.extra == {"duration": entry.end} and not found.broken
    item = ClipDataset([entry], frames=200, fps=10, size=32, on_error="raise")[0]
    last = round(good * 10) - 1
    assert numbers(item["video"]) == [i % 50 for i in [*range(last), *[last] * (200 - last)]]
    # Not much more could be had: 16 pictures wait to be put in order when the damage is met.
    with pytest.raises(ValueError, match="is damaged"):
        read_clip(path, last + 18, 10, 32)
    pieces = [entry for entry in scan(folder, salvage=True, segments=2.0).entries if entry.video == path]
    assert [entry.start for entry in pieces] == [2.0 * i for i in range(len(pieces))]
    assert all(entry.end == entry.start + 2.0 for entry in pieces[:-1]) and pieces[-1].end <= good + 1e-9


def test_a_header_that_promises_too_much(folder, encode, cut, tmp_path):
    whole = encode(tmp_path / "whole.mkv", TEN)
    path = cut(whole, folder / "cut.mkv", 0.5)
    path.with_suffix(".txt").write_text("half\n")
    found = scan(folder)
    (text,) = found.misled
    assert text.startswith("cut.mkv: the header says 4.0 s, pictures end at ")
    seconds = found.surveys["cut.mkv"].seconds
    assert 0.5 < seconds < 3.5 and found.entries[1].extra["duration"] == pytest.approx(seconds, abs=1e-3)


def test_real_headers(real, tmp_path):
    for name in ("box.mp4", "cup.mp4", "captions.jsonl"):
        (tmp_path / name).symlink_to(real(name))
    found = scan(tmp_path, captions=tmp_path / "captions.jsonl")
    assert found.misled == ("box.mp4: the header says 456 pictures, there are 455",)
    assert [found.surveys[name].pictures for name in ("box.mp4", "cup.mp4")] == [455, 217]
    assert len(found.unmatched) == 6 and all(len(entry.captions) == 2 for entry in found.entries)


def test_a_hanging_and_a_crashing_file_cost_themselves_only(folder, hanging, monkeypatch):
    shutil.move(hanging, folder / "hanging.mp4")
    shutil.move(hanging.with_name("pipe.mp4"), folder / "pipe.mp4")
    began = time.monotonic()
    found = scan(folder, workers=2, deadline=1.5)
    assert time.monotonic() - began < 8
    assert reasons(found)["hanging.mp4"][0] == "too slow" and "within 1.5 s" in reasons(found)["hanging.mp4"][1]
    assert len(found.entries) == 2

    real = decode.GuardedReader.survey

    def crash(self, path, *args, **kwargs):
        if path.name == "hanging.mp4":
            threading.Timer(1.0, lambda: os.kill(self._child.process.pid, signal.SIGSEGV)).start()
        return real(self, path, *args, **kwargs)

    monkeypatch.setattr(decode.GuardedReader, "survey", crash)
    found = scan(folder, workers=2)  # what the machine may be to blame for is tried again
    assert reasons(found)["hanging.mp4"][0] == "decoder died" and "SIGSEGV" in reasons(found)["hanging.mp4"][1]
    assert found.reused == 2


def test_only_what_changed_is_decoded_again(folder, encode, counted):
    (folder / "bad.mp4").write_text("no clip")
    first = scan(folder)
    assert sorted(counted) == ["a.mp4", "b.mp4", "bad.mp4"] and first.reused == 0
    counted.clear()
    second = scan(folder, segments=2.0)
    assert counted == [] and second.reused == 3 and len(second.entries) == 4
    assert second.broken == first.broken and second.surveys == first.surveys
    encode(folder / "bad.mp4", TEN)
    (folder / "bad.txt").write_text("good now\n")
    (folder / "a.mp4").unlink()
    third = scan(folder)
    assert counted == ["bad.mp4"] and third.broken == () and len(Quarantine(third.quarantine)) == 0
    assert [entry.video.name for entry in third.entries] == ["bad.mp4", "b.mp4"]
    counted.clear()
    os.utime(folder / "bad.mp4")
    scan(folder)
    assert counted == ["bad.mp4"]
    counted.clear()
    assert scan(folder, again=True).reused == 0 and sorted(counted) == ["b.mp4", "bad.mp4"]


def test_a_killed_scan_goes_on(folder, hanging, counted):
    shutil.move(hanging, folder / "z_hanging.mp4")
    shutil.move(hanging.with_name("pipe.mp4"), folder / "pipe.mp4")
    code = "import sys; from fastvivit.data import scan; scan(sys.argv[1], workers=1)"
    records = folder / "manifest.scan.jsonl"
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], cwd=ROOT) as process:
        until = time.monotonic() + 30
        while not records.exists() or len(records.read_text().split("\n")) < 3:
            assert time.monotonic() < until
            time.sleep(0.05)
        process.kill()
    with records.open("a") as file:
        file.write('\n{"format": 1, "file": "sub/b.m')  # a line that was being written
    assert not (folder / "manifest.jsonl").exists()
    found = scan(folder, deadline=1.0)
    assert counted == ["z_hanging.mp4"] and len(found.entries) == 2


def test_an_interrupted_scan_ends_at_once(folder, hanging):
    shutil.move(hanging, folder / "hanging.mp4")
    shutil.move(hanging.with_name("pipe.mp4"), folder / "pipe.mp4")
    threads = threading.active_count()
    main = threading.main_thread().ident
    threading.Timer(2.0, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        scan(folder, workers=2)
    assert time.monotonic() - began < 10 and threading.active_count() == threads


def test_captions_of_a_table(folder):
    table = folder / "words.csv"
    table.write_text(
        "file_name,text,start,end,mood\na,first,,,glad\na.mp4,second,,,\nb,begin,0,1.5,\nb,late,9,,\nc,lost,,,\n"
    )
    found = scan(folder, captions=table)
    assert [(e.video.name, e.captions, e.start, e.end) for e in found.entries] == [
        ("a.mp4", ("first", "second"), 0.0, None),
        ("b.mp4", ("begin",), 0.0, 1.5),
    ]
    assert found.entries[0].extra == {"mood": "glad", "duration": 4.0}
    assert found.unmatched == ("c",)
    assert reasons(found)["sub/b.mp4"] == (
        "beyond the end", "sub/b.mp4, 9 s to the end: it can be read until 4.000 s only",
    )  # fmt: skip
    (bad,) = Quarantine(found.quarantine)
    assert bad.part == (9.0, None, None)


def test_clips_without_a_caption(folder):
    (folder / "sub" / "b.txt").unlink()
    found = scan(folder)
    assert [entry.video.name for entry in found.entries] == ["a.mp4"]
    assert [entry.video.name for entry in found.uncaptioned] == ["b.mp4"]
    (folder / "a.txt").unlink()
    with pytest.raises(
        ValueError, match=r"captions: wanted a caption for at least one of 2 files, found none: .*\.txt"
    ):
        scan(folder)
    listed = folder / "silent.jsonl"
    found = scan(folder, uncaptioned=listed, segments=2.0)
    silent = read_manifest(listed, captioned=False)
    assert silent == found.uncaptioned and [(e.start, e.end) for e in silent] == [(0.0, 2.0), (2.0, None)] * 2


def test_silent_clips_get_captions_from_a_frame(folder):
    from fastvivit.data import caption_frames

    for text in folder.rglob("*.txt"):
        text.unlink()
    scan(folder, uncaptioned=folder / "silent.jsonl", segments=2.0)
    made = caption_frames(folder / "silent.jsonl", lambda images: ["seen"] * len(images), frames=(5, 0))
    assert [(e.video.name, e.start, e.captions) for e in made.entries] == [
        ("a.mp4", 0.0, ("seen",)), ("a.mp4", 2.0, ("seen",)), ("b.mp4", 0.0, ("seen",)), ("b.mp4", 2.0, ("seen",)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [
        (1.5, [(0.0, 1.5), (1.5, 3.0), (3.0, None)]),  # a rest of 1.0 s
        (3.0, [(0.0, 3.0)]),  # one of 1.0 s is less than half
        (2.0, [(0.0, 2.0), (2.0, None)]),
        (4.0, [(0.0, None)]),
        (9.0, [(0.0, None)]),
    ],
)
def test_pieces(folder, seconds, wanted):
    found = scan(folder, segments=seconds)
    assert [(e.start, e.end) for e in found.entries] == wanted * 2
    assert all(len(e.captions) == 2 and e.extra == {"duration": 4.0} for e in found.entries)


def test_images(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.jpg", "c.webp"):
        write_image(tmp_path / name, rng.integers(0, 256, (40, 60, 3), np.uint8))
        (tmp_path / name).with_suffix(".txt").write_text(f"{name[0]}\n")
    with (tmp_path / "b.jpg").open("r+b") as file:
        file.truncate(1000)
    found = scan(tmp_path)
    assert found.kind == "image" and found.manifest.name == "images.jsonl" and found.others == 0
    assert [json.loads(line) for line in found.manifest.read_text().splitlines()] == [
        {"image": "a.png", "caption": "a"},
        {"image": "c.webp", "caption": "c"},
    ]
    assert reasons(found)["b.jpg"][0] == "unreadable" and "b.jpg is damaged" in reasons(found)["b.jpg"][1]
    assert (found.surveys["a.png"].width, found.surveys["a.png"].height) == (60, 40)
    data = ClipDataset(found.manifest, frames=1, size=32, quarantine=found.quarantine)
    assert data[0]["video"].shape == (3, 32, 32) and data[0]["video"].dtype == torch.uint8


def test_images_beside_videos_are_another_scan(folder):
    write_image(folder / "a.png", np.zeros((8, 8, 3), np.uint8))
    (folder / "bad.mp4").write_text("no clip")
    (folder / "bad.png").write_text("no image")
    videos = scan(folder)
    assert videos.others == 2 and len(videos.entries) == 2
    images = scan(folder, kind="image")
    assert images.others == 3 and [entry.kind for entry in images.entries] == ["image"]
    # One quarantine for both.
    assert {bad.video.name for bad in Quarantine(folder / "quarantine.jsonl")} == {"bad.mp4", "bad.png"}
    (folder / "bad.mp4").unlink()
    scan(folder, kind="image")
    assert {bad.video.name for bad in Quarantine(folder / "quarantine.jsonl")} == {"bad.png"}


def test_the_stream_that_was_looked_at_is_named(folder, encode, av):
    with av.open(str(folder / "two.mkv"), "w") as container:
        streams = [encode.add(container, "libx264", size=size) for size in ((32, 32), (64, 48))]
        for base, stream in zip((0, 30), streams, strict=True):
            encode.draw(container, stream, TEN, base=base)
    (folder / "two.txt").write_text("two\n")
    found = scan(folder)
    (entry,) = (entry for entry in found.entries if entry.video.name == "two.mkv")
    assert entry.stream == found.surveys["two.mkv"].stream and found.surveys["two.mkv"].streams == 2
    clip = read_clip(entry.video, 1, 1, 32, stream=entry.stream)
    assert torch.equal(clip, read_clip(entry.video, 1, 1, 32))


def test_progress(folder):
    told = []
    scan(folder, progress=lambda done, total: told.append((done, total)))
    assert told == [(0, 2), (1, 2), (1, 2)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"folder": "none"}, r"folder: wanted a folder of videos or images, no such folder"),
        ({"kind": "sound"}, r"kind: wanted one of \('video', 'image'\) or None, got 'sound'"),
        ({"kind": "image"}, r"folder: wanted images \(\.bmp.*found none"),
        ({"segments": 0}, r"segments: wanted finite seconds above 0 or None, got 0"),
        ({"deadline": -1}, r"deadline: wanted finite seconds above 0 or None, got -1"),
        ({"min_seconds": -1}, r"min_seconds: wanted finite seconds of at least 0, got -1"),
        ({"workers": 0}, r"workers: wanted at least 1, got 0"),
        ({"out": "m.csv"}, r"out: wanted a JSONL file to write, got m\.csv"),
        ({"out": "none/m.jsonl"}, r"out: wanted a file in a folder that exists"),
        ({"uncaptioned": "none/m.jsonl"}, r"uncaptioned: wanted a file in a folder that exists"),
        ({"captions": "none.csv"}, r"captions: wanted a JSONL or CSV file, no such file: none\.csv"),
    ],
)
def test_mistakes_are_told_before_anything_is_decoded(folder, counted, arguments, message):
    with pytest.raises(ValueError, match=message):
        scan(**({"folder": folder} | arguments))
    assert not counted and not list(folder.glob("*.jsonl"))


def test_nothing_that_can_be_read(tmp_path):
    (tmp_path / "bad.mp4").write_text("no clip")
    with pytest.raises(ValueError, match=r"wanted a video that can be read, none of 1 can: reasons in .*quarantine"):
        scan(tmp_path, uncaptioned=tmp_path / "silent.jsonl")
    assert len(Quarantine(tmp_path / "quarantine.jsonl")) == 1
