"""The demo in miniature, with searches and with captions."""

import re
import shutil

import pytest
import torch

from fastvivit.cli.demo_captions import CAPTIONERS, caption_config, score_texts
from fastvivit.cli.demo_folder import make_room
from fastvivit.cli.demo_runs import MODELS, SHORT, demo_config
from fastvivit.cli.demo_stages import IMAGES, LONG, Files, stage_configs
from fastvivit.data import read_manifest
from fastvivit.data.digits import WORDS
from fastvivit.train import read_metrics
from tests.train.test_loop import parsed


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def test_demo(call, digits, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(digits[1].parent, own)
    (own / "broken.mp4").write_text("no video")
    arguments = ["demo", "--out", tmp_path / "demo", "--clips", 64, "--steps", 3, "--videos", own]
    code, out, _ = call(*arguments)
    assert code == 0 and f"report: {tmp_path / 'demo' / 'report.html'}" in out
    assert "own caption above the twin's" in out and "broken.mp4" in out
    page = parsed(tmp_path / "demo" / "report.html")
    # Two plots, a long clip at two rates, searches of both models, and of the user's own clips.
    assert len(page.images) == 2 + 2 + 4 * (3 + 1) + 4 * 3
    views = {"16-frame model, first 16 frames", "16-frame model, every 4th frame", "after short_to_long, 64 frames"}
    assert {"video-first", "frame-level", "chance", "stretched to 64 frames, not trained", *views} <= set(page.words)
    runs = {*MODELS, IMAGES, LONG}
    assert left(tmp_path / "demo") == sorted([*runs, "report.html", "videos"])
    (tmp_path / "demo" / "notes.txt").write_text("mine")
    make_room(tmp_path / "demo", tuple(runs))
    assert left(tmp_path / "demo") == ["notes.txt", "report.html", "videos"]


def test_the_demo_goes_through_the_papers_stages(tmp_path):
    short = demo_config(SHORT, tmp_path / "a", tmp_path / "b", clips=64, steps=40, seed=5)
    files = Files(**{name: tmp_path / name for name in ("stills", "stills_heldout", "long", "long_heldout")})
    runs = stage_configs(tmp_path, short, files, clips=64)
    assert [run.stage for run in runs.values()] == ["images", "image_to_video", "short_to_long"]
    assert [run.start for run in runs.values()] == [None, str(tmp_path / "images"), str(tmp_path / "video-first")]
    assert [run.masks[0].ratio for run in runs.values()] == [0.0, 0.75, 0.75]
    assert runs[SHORT].masks[1].ratio == 0.0 and runs[LONG].frames == 4 * short.model.frames
    assert all(run.seed == 5 for run in runs.values())


def test_demo_of_captions(call, tmp_path):
    folder = tmp_path / "demo"
    code, out, err = call(
        "demo", "--captions", "--out", folder, "--clips", 32, "--steps", 2, "--caption-steps", 3, "--seed", 1
    )
    assert code == 0, err
    rows = dict(re.findall(r"^(\S.*?) {2,}(\S.*)$", out.split("captions of 8 held-out clips")[1], re.MULTILINE))
    assert len(rows) == 8
    # Clip and twin are the same frames: whichever caption is likelier, it is so for both.
    assert re.split(" {2,}", rows["own caption likelier than the twin's"])[1:] == ["50.0 %", "50.0 %"]
    assert f"report: {folder / 'report.html'}" in out
    page = parsed(folder / "report.html")
    assert len(page.images) == 3 + 8
    assert {"score", "video-first", "frame-level", "chance", *rows} <= set(page.words)
    for kind, captioner in CAPTIONERS.items():
        assert [row["step"] for row in read_metrics(folder / captioner)] == [1, 2, 3]
        assert "eval_loss" in read_metrics(folder / captioner)[-1]
        assert kind in out and len(list((folder / captioner).glob("vision/*/*.safetensors"))) > 0
    clip = read_manifest(folder / "videos" / "heldout" / "manifest.jsonl")[0].video
    code, out, err = call("caption", clip, "--model", folder / CAPTIONERS["video-first"])
    assert code == 0 and out.startswith(f"{clip}\t"), err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--caption-steps", 5], "caption-steps: wanted with --captions only, got 5"),
        (["--captions", "--videos", "."], "videos: wanted without --captions"),
        (["--captions", "--caption-steps", 0], "caption-steps: wanted at least 1, got 0"),
        (["--steps", 0], "steps: wanted at least 1, got 0"),
        (["--clips", 12], "clips: wanted a multiple of 8, at least 16, got 12"),
    ],
)
def test_demo_mistakes(call, tmp_path, arguments, words):
    code, _, err = call("demo", "--out", tmp_path / "demo", *arguments)
    assert code == 2 and words in err and not (tmp_path / "demo").exists()


def test_both_captioners_are_the_same_but_for_what_they_see(tmp_path):
    runs = [
        caption_config(demo_config(kind, tmp_path, tmp_path, clips=64, steps=4, seed=0), tmp_path, steps=3).to_dict()
        for kind in MODELS
    ]
    assert runs[0].pop("mask") == {"ratio": 0.5, "strategy": "random"}
    assert runs[1].pop("mask") == {"ratio": 0.5, "strategy": "frame"}
    assert runs[0] == runs[1]


def test_scores_of_texts():
    true = ["first the digit nine moves up, then the digit six moves down"] * 4
    said = [
        "First the digit nine moves up , then the digit six moves down",  # only the spelling differs
        "first the digit six moves down, then the digit nine moves up",  # the twin's
        "first the digit nine moves up, then the digit",  # cut off
        "first the digit two moves up, then the digit six moves down up",  # a digit wrong, a word too many
    ]
    found = score_texts(said, true)
    assert found["motions"] == 25.0  # the first
    assert found["digits"] == 100 * (2 + 0 + 1 + 1) / 8
    assert found["named"] == 100 * (2 + 2 + 1 + 1) / 8
    assert found["exact"] == 25.0
    perfect = score_texts(true, true)
    assert all(perfect[name] == 100.0 for name in ("motions", "digits", "named", "exact"))
    assert perfect["rouge_l_coco"] == 1.0 and perfect["bleu_4"] == pytest.approx(1.0)


def test_chance_is_what_guessing_comes_to():
    from fastvivit.cli.demo_captions import _CHANCE
    from fastvivit.data.digits import caption, draw_scenes

    scenes = draw_scenes(2000, seed=0)
    captions = [caption(*(scene if i % 2 else scene[::-1])) for i, scene in enumerate(scenes)]
    order = torch.randperm(len(captions), generator=torch.Generator().manual_seed(0)).tolist()
    found = score_texts([captions[i] for i in order], captions)
    assert len({word for text in captions for word in text.split()} & set(WORDS)) == 10
    for name, tolerance in {"motions": 1.5, "digits": 1.5, "named": 1.5, "exact": 0.2}.items():
        assert abs(found[name] - _CHANCE[name]) < tolerance, name
