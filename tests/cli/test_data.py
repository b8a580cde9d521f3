"""``fastvivit data import`` as a command."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch

from fastvivit.cli.data import Import
from fastvivit.data import ClipDataset, read_manifest, write_clip
from fastvivit.data.imports import DATASETS


@pytest.fixture
def here(tmp_path):
    """A folder with ActivityNet's file of eight videos, of which two are there."""
    names = [f"v_{letter * 11}" for letter in "abcdefgh"]
    node = {"duration": 20.0, "timestamps": [[0, 9], [4, 4]], "sentences": ["Someone walks.", "They stop."]}
    (tmp_path / "val_1.json").write_text(json.dumps(dict.fromkeys(names, node)))
    (tmp_path / "videos").mkdir()
    for name in names[:2]:
        (tmp_path / "videos" / f"{name}.mp4").touch()
    (tmp_path / "videos" / f"{names[0]}.webm").touch()
    return tmp_path


def test_every_benchmark_is_a_name_of_the_command():
    annotation = get_type_hints(Import)["name"]
    assert get_args(annotation) == tuple(DATASETS)


PAGE = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text()
COMMANDS = [line for line in re.findall(r"`([^`\n]+)`", PAGE) if line.split()[0] in DATASETS and len(line.split()) > 1]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_page_is_understood(call, command, tmp_path):
    code, _, told = call("data", "import", *command.split(), tmp_path / "none", "--out", tmp_path / "m.jsonl")
    # The options come first; what is wrong is only that nothing is there.
    assert code == 2 and told.startswith("fastvivit data: videos: wanted a folder of video files, no such folder")


def test_the_page_has_every_benchmark():
    assert {command.split()[0] for command in COMMANDS} == set(DATASETS)


def test_import(call, here):
    out = here / "m.jsonl"
    code, said, told = call(
        "data", "import", "activitynet", here / "val_1.json", here / "videos", "--out", out,
        "--missing", here / "missing.txt",
    )  # fmt: skip
    assert code == 0
    assert said == f"2 entries, 2 captions, 0.01 hours, 6 videos missing: {out}\n"
    assert (
        "6 videos not found: v_ccccccccccc, v_ddddddddddd, v_eeeeeeeeeee, v_fffffffffff, v_ggggggggggg, ...\n" in told
    )
    assert "1 videos in several files, the first by path taken: v_aaaaaaaaaaa\n" in told
    assert "8 annotations skipped: " in told and ".sentences[1]: a segment from 4.0 to 4.0 s" in told
    assert (here / "missing.txt").read_text().split() == [f"v_{letter * 11}" for letter in "cdefgh"]
    first = json.loads(out.read_text().splitlines()[0])
    assert first == {
        "video": "videos/v_aaaaaaaaaaa.mp4", "caption": "Someone walks.", "end": 9.0,
        "id": "v_aaaaaaaaaaa", "duration": 20.0, "segment": 0,
    }  # fmt: skip


def test_every_option_reaches_the_import(call, here):
    out, ids = here / "m.jsonl", here / "ids.txt"
    ids.write_text("aaaaaaaaaaa\nbbbbbbbbbbb\n")
    code, said, _ = call(
        "data", "import", "activitynet", here / "val_1.json", here / "videos", "--out", out, "--level", "paragraph",
        "--first", 16, "--references", here / "val_1.json", "--subset", ids, "--limit", 1, "--seed", 3,
    )  # fmt: skip
    assert code == 0 and said.startswith("1 entries, 2 captions, 0.00 hours, 0 videos missing")
    (entry,) = read_manifest(out)
    assert entry.captions == ("Someone walks. They stop.",) * 2 and entry.end == 16.0

    questions = [{"q_uid": f"u{i}", "question": "What?", "option 0": "a", "option 1": "b"} for i in range(2)]
    (here / "questions.json").write_text(json.dumps(questions))
    (here / "answers.json").write_text('{"u1": 1}')
    (here / "videos" / "u1.mp4").touch()
    code, said, _ = call(
        "data", "import", "egoschema", here / "questions.json", here / "videos", "--out", out,
        "--answers", here / "answers.json", "--split", "subset",
    )  # fmt: skip
    assert code == 0 and "1 entries, 1 captions, length unknown, 0 videos missing" in said
    assert read_manifest(out)[0].extra["answer"] == 1


def test_a_perception_test_manifest_is_read_at_5_fps(call, tmp_path):
    (tmp_path / "videos").mkdir()
    greys = np.arange(0, 240, 8, dtype=np.uint8)
    pictures = np.broadcast_to(greys[:, None, None, None], (30, 32, 32, 3))
    write_clip(tmp_path / "videos" / "video_5.mp4", pictures, fps=10)
    question = {"id": 0, "question": "What?", "options": ["a", "b", "c"], "answer_id": 1}
    about = {"split": "valid", "video_id": "video_5", "frame_rate": 10.0, "num_frames": 30}
    (tmp_path / "a.json").write_text(json.dumps({"video_5": {"metadata": about, "mc_question": [question]}}))
    (tmp_path / "cuts.json").write_text('{"video_5": 20}')
    code, said, told = call(
        "data", "import", "perception_test", tmp_path / "a.json", tmp_path / "videos", "--out", tmp_path / "m.jsonl",
        "--cut-frames", tmp_path / "cuts.json",
    )  # fmt: skip
    assert code == 0 and not told and "the paper reads these videos at 5 FPS" in said
    video = ClipDataset(tmp_path / "m.jsonl", frames=15, fps=5, size=32)[0]["video"]
    levels = video.float().mean((0, 2, 3))
    # Ten pictures of two seconds, then the last one before the cut again and again.
    assert torch.allclose(levels[:10], torch.arange(10) * 16.0, atol=6)
    assert torch.allclose(levels[10:], torch.full((5,), 19 * 8.0), atol=6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "got 'nonsense'"),
        (["import", "vatex", "{here}/absent.json", "{here}/videos", "--out", "m.jsonl"], "no such file"),
        (["import", "vatex", "{here}/val_1.json", "{here}/videos", "--out", "m.jsonl"], "val_1.json: wanted a list"),
        (["import", "activitynet", "{here}/val_1.json", "{here}/none", "--out", "m.jsonl"], "no such folder"),
        (["import", "vatex", "a", "b", "--out", "m.jsonl", "--first", "3"], "first: wanted an option that VATEX has"),
        (["import", "kinetics", "a", "b", "--out", "m.jsonl"], "kinetics"),
        (
            ["import", "activitynet", "{here}/val_1.json", "{here}/videos", "--out", "{here}/m.csv"],
            "wanted a JSONL file",
        ),
    ],
)
def test_mistakes_end_with_2(call, here, arguments, words):
    code, _, told = call("data", *(word.format(here=here) for word in arguments))
    assert code == 2 and words in told
    assert not (here / "m.csv").exists()


def test_nothing_found_ends_with_2_and_writes_nothing(call, here):
    for file in (here / "videos").iterdir():
        file.rename(file.with_name(f"x{file.name}"))
    out = here / "m.jsonl"
    code, _, told = call("data", "import", "activitynet", here / "val_1.json", here / "videos", "--out", out)
    assert code == 2 and "wanted at least one of the 8 videos" in told and not out.exists()


def test_help(call):
    code, out, _ = call("data", "import", "--help")
    assert code == 0 and "perception_test" in out and "--cut-frames" in out
    assert call("data")[0] == 2
