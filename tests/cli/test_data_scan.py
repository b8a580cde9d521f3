"""``fastvivit data scan`` as a command."""

from __future__ import annotations

import numpy as np
import pytest

from fastvivit.data import Quarantine, read_manifest, write_clip, write_image


@pytest.fixture
def clips(tmp_path):
    made = tmp_path / "clips"
    made.mkdir()
    for name, fps in (("a", 10), ("b", 20)):
        write_clip(made / f"{name}.mp4", np.zeros((30, 32, 48, 3), np.uint8), fps=fps)
    (made / "bad.mp4").write_text("no clip")
    (made / "words.csv").write_text("file,caption\na,one\na,two\nb.mp4,three\nc,lost\n")
    return made


def test_scan(call, clips):
    code, said, told = call("data", "scan", clips, "--captions", clips / "words.csv", "--workers", 2)
    assert code == 0
    assert said.splitlines() == [
        "files     2 videos read, 1 not",
        "hours     0.00",
        "sizes     48x32 (2)",
        "fps       10 to 20, median 15",
        f"clips     2 with 3 captions: {clips / 'manifest.jsonl'}",
        f"broken    1 unreadable: {clips / 'quarantine.jsonl'}",
    ]
    assert "1 × broken: bad.mp4: path: " in told and "can't be opened as a video" in told
    assert "1 × caption without a file: c\n" in told
    assert len(read_manifest(clips / "manifest.jsonl")) == 2 and len(Quarantine(clips / "quarantine.jsonl")) == 1
    _, said, _ = call("data", "scan", clips, "--captions", clips / "words.csv")
    assert said.startswith("files     2 videos read, 1 not, 3 as scanned before\n")


def test_every_option_reaches_the_scan(call, clips, tmp_path):
    write_image(clips / "still.png", np.zeros((8, 8, 3), np.uint8))
    out, silent, bad = tmp_path / "m.jsonl", tmp_path / "silent.jsonl", tmp_path / "bad.jsonl"
    (clips / "a.txt").write_text("one\n")
    code, said, _ = call(
        "data", "scan", clips, "--out", out, "--uncaptioned", silent, "--quarantine", bad, "--segments", 1,
        "--min-seconds", 2, "--salvage", "--deadline", 30, "--again", "--kind", "video",
    )  # fmt: skip
    assert code == 0 and "1 images not looked at (--kind image)" in said
    assert "clips     3 with 3 captions" in said and "1 too short, 1 unreadable" in said
    assert [entry.start for entry in read_manifest(out)] == [0.0, 1.0, 2.0]
    assert len(Quarantine(bad)) == 2 and not silent.exists()
    code, said, told = call("data", "scan", clips, "--out", out)
    assert "1 without a caption: left out (--uncaptioned FILE.jsonl lists them)" in said
    assert "1 × clip without a caption: " in told and "b.mp4" in told
    (clips / "a.txt").unlink()
    code, said, _ = call("data", "scan", clips, "--out", tmp_path / "none.jsonl", "--uncaptioned", silent)
    assert code == 0 and f"2 without a caption: {silent}" in said and not (tmp_path / "none.jsonl").exists()
    assert len(read_manifest(silent, captioned=False)) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{here}/none"], "folder: wanted a folder of videos or images, no such folder"),
        (["{here}"], "captions: wanted a caption for at least one of 3 files"),
        (["{here}", "--captions", "{here}/none.csv"], "captions: wanted a JSONL or CSV file, no such file"),
        (["{here}", "--segments", "-1"], "segments: wanted finite seconds above 0"),
        (["{here}", "--kind", "sound"], "sound"),
    ],
)
def test_mistakes_end_with_2(call, clips, arguments, words):
    code, _, told = call("data", "scan", *(word.format(here=clips) for word in arguments))
    assert code == 2 and words in told


def test_help(call):
    code, out, _ = call("data", "scan", "--help")
    assert code == 0 and "--uncaptioned" in out and "quarantine" in out
