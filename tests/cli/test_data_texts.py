"""``fastvivit data caption`` and ``fastvivit data transcripts`` as commands."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fastvivit as fv
from fastvivit.cli.data_texts import load_callable
from fastvivit.data import read_clip, read_manifest, write_clip
from tests.tiny_captioner import make_lm, make_tokenizer

MODULE = """
calls = []

def by_grey(images):
    calls.append(len(images))
    return [f"grey {round(float(image.float().mean()))}" for image in images]

def summary(prompt):
    calls.append(prompt)
    return "a summary of " + prompt.split()[-1]

class Captioner:
    def __call__(self, images):
        return ["made"] * len(images)

nothing = 3
"""
SPEECH = "first we cut the onions in half and then we fry them in a pan with some oil until "


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder: two clips and a broken one, a manifest, and a module of callables."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for grey in (40, 80):
        write_clip(videos / f"v{grey}.mp4", np.full((8, 32, 32, 3), grey, np.uint8), 8)
        (videos / f"v{grey}.txt").write_text(f"{SPEECH} golden{grey}")
    (videos / "worse.mp4").write_text("no video")
    rows = [{"video": f"videos/{name}.mp4", "caption": "given"} for name in ("v40", "worse", "v80")]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "own_texts.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("own_texts", None)


def test_captions_by_a_function_of_the_current_folder(call, here):
    command = ("data", "caption", "m.jsonl", "--by", "own_texts:by_grey", "--out", "new.jsonl")
    code, said, told = call(*command, "--dropped", "dropped.jsonl")
    assert code == 0 and said == "2 entries with a new text, 1 dropped: new.jsonl\n"
    assert told.startswith("1 dropped: broken clip\n  videos/worse.mp4: ")
    entries = read_manifest("new.jsonl")
    assert [entry.captions for entry in entries] == [("grey 40",), ("grey 80",)]
    assert [entry.video.name for entry in entries] == ["v40.mp4", "v80.mp4"]
    assert entries[0].extra["text_source"] == {
        "kind": "frame caption", "frame": 0, "seconds": 0.0, "by": "own_texts:by_grey",
    }  # fmt: skip
    assert json.loads((here / "dropped.jsonl").read_text())["kind"] == "broken clip"
    calls = sys.modules["own_texts"].calls
    assert calls == [2]
    assert call(*command)[0] == 0 and calls == [2]  # all are there
    assert call(*command, "--frames", 2, "--fps", 4, "--keep-captions", "--batch-size", 1)[0] == 0 and calls == [
        2,
        1,
        1,
    ]
    assert read_manifest("new.jsonl")[0].captions == ("given", "grey 40")


def test_captions_of_a_folder_by_a_class(call, here):
    code, said, _ = call("data", "caption", "videos", "--by", "own_texts:Captioner", "--out", "new.jsonl")
    assert code == 0 and [entry.captions for entry in read_manifest("new.jsonl")] == [("made",)] * 2


def test_captions_by_a_captioner_of_ours(call, here, captioner):
    code, _, _ = call(
        "data", "caption", "m.jsonl", "--model", captioner, "--out", "new.jsonl", "--max-new-tokens", 4
    )  # fmt: skip
    assert code == 0
    model = fv.load_pretrained(captioner / "model")
    still = read_clip("videos/v80.mp4", 1, 10.0, 32).unsqueeze(0).expand(-1, -1, model.video.config.frames, -1, -1)
    images = torch.cat([read_clip("videos/v40.mp4", 1, 10.0, 32).unsqueeze(0).expand_as(still), still])
    wanted = model.generate(images, "first", 4)
    assert [entry.captions[0] for entry in read_manifest("new.jsonl")] == [" ".join(text.split()) for text in wanted]


def test_summaries_by_a_function(call, here):
    (here / "prompt.txt").write_text("In short: {transcript}")
    command = ("data", "transcripts", "m.jsonl", "--by", "own_texts:summary", "--out", "new.jsonl")
    code, said, told = call(*command, "--prompt", "prompt.txt")
    assert code == 0 and said == "2 entries with a new text, 1 dropped: new.jsonl\n"
    assert told == "1 dropped: no transcript\n  videos/worse.mp4: of the name worse\n"
    assert sys.modules["own_texts"].calls[0] == f"In short: {' '.join(SPEECH.split())} golden40"
    assert [entry.captions for entry in read_manifest("new.jsonl")] == [
        ("a summary of golden40",), ("a summary of golden80",),
    ]  # fmt: skip
    (here / "said").mkdir()
    code, _, told = call(*command, "--transcripts", "said")
    assert code == 2 and told.endswith("no clip got a text, new.jsonl is not written\n")
    assert len(read_manifest("new.jsonl")) == 2


def test_summaries_by_a_chat_model(call, here):
    tokenizer = make_tokenizer()
    make_lm(tokenizer, 1024).save_pretrained("chat")
    tokenizer.save_pretrained("chat")
    code, _, _ = call(
        "data", "transcripts", "m.jsonl", "--llm", "chat", "--out", "new.jsonl", "--max-new-tokens", 5,
        "--max-repetition", 1.0,
    )  # fmt: skip
    assert code == 0
    entry = read_manifest("new.jsonl")[0]
    assert 1 <= len(entry.captions[0].split()) <= 5
    assert entry.extra["text_source"]["by"] == (here / "chat").as_posix()


def test_what_by_names(here):
    assert load_callable("os.path:join")("a", "b") == "a/b"
    for text, message in (
        ("own_texts", "wanted module:function, got 'own_texts'"),
        ("own_texts:nothing", "wanted something to call, own_texts:nothing is a int"),
        ("own_texts:other", "it has no 'other'"),
        ("no_such.module:f", "there is no 'no_such'"),
    ):
        with pytest.raises(ValueError, match=message):
            load_callable(text)
    (here / "wants_more.py").write_text("import no_such_library")
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        load_callable("wants_more:f")


def test_mistakes_are_one_line(call, here):
    for command, message in (
        (("caption", "m.jsonl", "--out", "n.jsonl"), "by: wanted --by or --model, one of the two"),
        (("transcripts", "m.jsonl", "--out", "n.jsonl"), "by: wanted --by or --llm, one of the two"),
        (("caption", "none.jsonl", "--by", "own_texts:by_grey", "--out", "n.jsonl"), "manifest: wanted"),
        (("caption", "m.jsonl", "--by", "own_texts:by_grey", "--out", "n.csv"), "out: wanted a JSONL file"),
        (("caption", "m.jsonl", "--by", "own_texts:by_grey", "--out", "no/n.jsonl"), "out: wanted a file in a folder"),
        (("transcripts", "m.jsonl", "--llm", "none", "--out", "n.jsonl"), "llm: wanted the folder"),
    ):
        code, _, told = call("data", *command)
        assert code == 2 and told.startswith(f"fastvivit data: {message}"), told


def test_the_example_of_the_page(call, here):
    page = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text()
    (module,) = re.findall(r"```python\n# my_models.py\n(.*?)```", page, re.DOTALL)
    (here / "my_models.py").write_text(module)
    (here / "SPEECH").mkdir()
    (here / "SPEECH" / "v40.txt").write_text(SPEECH)
    commands = re.findall(r"^fastvivit (data (?:caption|transcripts) .*)$", page, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        code, _, told = call(*command.replace("MANIFEST", "m.jsonl").split())
        assert code == 0, told
    sys.modules.pop("my_models", None)
    assert read_manifest("captioned.jsonl")[1].captions == ("what the image shows",)
    assert read_manifest("summaries.jsonl")[0].captions == ("what is done in the video",)
