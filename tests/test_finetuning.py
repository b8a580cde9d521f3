"""docs/finetuning.md: its commands and configs run in this order, small; its figures are the report's."""

import contextlib
import csv
import io
import json
import os
import re
import shlex
import signal
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro

import fastvivit as fv
from fastvivit.cli import main
from fastvivit.train import TrainConfig, fit, loop
from fastvivit.train.starvation import remedy
from fastvivit.train.step import train_step
from tests.test_docs import maker

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "finetuning.md").read_text()
CONFIGS = ("image_to_video.toml", "finetune_long.toml")
# What the page says, and what is run here instead.
SMALL_WORDS = {
    "--segments 16": "--segments 0.5",
    "--segments 64": "--segments 1",
    "--frames 16": "--frames 4",
    "--frames 64": "--frames 8",
    "--fps 1 ": "--fps 8 ",
    "--size 224": "--size 28",
}
SMALL_FIELDS = {
    "frames": {"16": "4", "64": "8"},
    "size": {"224": "28"},
    "fps": {"1.0": "8.0"},
    "batch_size": {"128": "4", "256": "4"},
    "batch": {"128": "2"},
    "steps": {"20_000": "4", "5_000": "4"},
    "warmup": {"1000": "1", "500": "1"},
    "workers": {"4": "0"},
    "chunk": {"64": "2"},
    "eval_every": {"1000": "2", "500": "2"},
}


def commands():
    """Every command of the page, in its order, on one line."""
    found = []
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL):
        if not language:
            found += [line for line in block.replace("\\\n", " ").splitlines() if line]
    return found


def small(toml):
    for name, values in SMALL_FIELDS.items():
        for value, other in values.items():
            toml = re.sub(rf"^({name} += ){value}\b", rf"\g<1>{other}", toml, flags=re.MULTILINE)
    return toml


def write_captions(file, videos):
    with file.open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["file", "caption"])
        table.writerows((entry.video.name, caption) for entry in videos for caption in entry.captions)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder as the page begins with: moving digits, images, two tiny models, the two configs made small."""
    pytest.importorskip("av", reason='PyAV is not installed: pip install "fastvivit[video]"')
    transformers = pytest.importorskip("transformers", reason='not installed: pip install "fastvivit[hf]"')
    from fastvivit.data import DigitsConfig, read_manifest, write_digits, write_image
    from fastvivit.train.build import scratch_tower

    folder = tmp_path_factory.mktemp("world")
    digits = DigitsConfig(frames=8, size=32, digit=16, step=8)
    for name, count, which in (("videos", 6, "train"), ("heldout", 4, "heldout")):
        manifest = write_digits(folder / name, count, seed=0, split=which, config=digits)
        entries = read_manifest(manifest)
        write_captions(folder / ("captions.csv" if name == "videos" else "heldout.csv"), entries)
    (folder / "videos" / "broken.mp4").write_bytes(b"nothing that plays")
    (folder / "pictures").mkdir()
    rows = ["file,caption"]
    for number in range(4):
        write_image(folder / "pictures" / f"{number}.png", np.full((32, 32, 3), 60 * number, np.uint8))
        rows.append(f"{number}.png,a grey of {number}")
    (folder / "pictures.csv").write_text("\n".join(rows))
    sizes = {"hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 2}
    image = transformers.Dinov2Config(image_size=28, patch_size=14, **sizes)
    transformers.Dinov2Model(image).save_pretrained(folder / "dinov2_small")
    captions = [caption for entry in entries for caption in entry.captions]
    tokenizer = scratch_tower(TrainConfig.for_stage("contrastive", steps=2000, data={"train": "x"}).text, captions)
    bert = transformers.BertConfig(
        vocab_size=tokenizer.tokenizer.vocab_size, intermediate_size=64, max_position_embeddings=80, **sizes
    )
    transformers.BertModel(bert).save_pretrained(folder / "minilm")
    tokenizer.tokenizer.save_pretrained(folder / "minilm")
    for name in CONFIGS:
        (folder / name).write_text(small((ROOT / "examples" / name).read_text()))
    return folder


@pytest.fixture(scope="module")
def said(world):
    """What every command of the page has said, in the order of the page; the first training is stopped by Ctrl-C."""
    found, trained, threads = {}, 0, torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with contextlib.chdir(world), pytest.MonkeyPatch.context() as patch:
            for command in commands():
                words = shlex.split(small_command(command), comments=True)
                if words[0] != "fastvivit":
                    continue
                first = words[1] == "train" and not trained
                trained += words[1] == "train"
                patch.setattr(loop, "train_step", interrupted_at(2) if first else train_step)
                with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
                    code = main(words[1:])
                assert code == (130 if first else 0), (command, err.getvalue())
                found[command] = out.getvalue() + err.getvalue()
    finally:
        torch.set_num_threads(threads)
    return found


def small_command(command):
    for word, other in SMALL_WORDS.items():
        command = command.replace(word, other)
    return command


def interrupted_at(step):
    def taken(*args):
        if args[3] == step - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return train_step(*args)

    return taken


@pytest.mark.slow
def test_every_command_of_the_page_runs(world, said):
    kinds = {" ".join(command.split()[1:3]) for command in said}
    assert {"data scan", "data pack", "plan image_to_video.toml", "train finetune_long.toml"} <= kinds
    assert {"evaluate heldout_long.jsonl", "embed videos", "train image_to_video.toml"} <= kinds
    assert "broken.mp4" in (world / "quarantine.jsonl").read_text()
    scan = next(iter(said.values()))
    assert "6 videos read, 1 not" in scan and "clips     12 with" in scan
    plans = [text for command, text in said.items() if " plan " in command]
    assert len(plans) == 2 and all("fits" in text and "largest batch" in text for text in plans)
    (scores,) = [text for command, text in said.items() if " evaluate " in command]
    assert all(name in scores for name in ("t2v_r1", "v2t_r1", "t2v_medr"))
    (found,) = [text for command, text in said.items() if " search " in command]
    assert "videos/" in found and "heldout" not in found


@pytest.mark.slow
def test_the_runs_are_what_the_page_says(world, said):
    short, long = (fv.load_pretrained(world / "runs" / name / "model").video for name in ("short", "long"))
    assert (short.config.frames, long.config.frames) == (4, 8) and long.config.size == (28, 28)
    stopped = next(text for command, text in said.items() if " train " in command)
    assert "interrupted at step 2; saved, resume goes on from there" in stopped
    assert [row["step"] for row in fv.train.read_metrics(world / "runs" / "short")] == [1, 2, 3, 4]
    report = (world / "runs" / "short" / "report.html").read_text()
    named = re.findall(r"\*([A-Z][^*]+)\*", TEXT[TEXT.index("is one file:") : TEXT.index("## Stage 2")])
    assert len(named) == 4 and all(name in report for name in named), named


@pytest.mark.slow
@pytest.mark.parametrize("number", range(4))
def test_the_variations_of_the_page_train(world, said, number, tmp_path, monkeypatch):
    monkeypatch.chdir(world)
    block = re.findall(r"^```toml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)[number]
    fields = tomllib.loads((world / CONFIGS[0]).read_text())
    for name, value in tomllib.loads(small(block)).items():
        fields[name] = fields.get(name, {}) | value if isinstance(value, dict) else value
    if "sources" in fields["data"]:
        del fields["data"]["train"]
    fields |= {"steps": 2}
    config = TrainConfig.from_dict(fields)
    if config.optimiser.states == "8bit":
        return  # bitsandbytes has tests of its own
    (row, _) = fv.train.read_metrics(fit(config, tmp_path / "run", quiet=True))
    assert ("loss_1" in row) == (len(config.sources) == 2)
    tuned = fv.load_pretrained(tmp_path / "run" / "model").video.tuning
    assert (tuned is not None and tuned["method"] == "add_lora") == (config.tuning.method == "lora")


def test_there_are_so_many_variations():
    assert len(re.findall(r"^```toml\n", TEXT, re.MULTILINE)) == 4


def test_the_command_for_more_gpus_is_one():
    from fastvivit.cli.train import Train

    (command,) = [command for command in commands() if command.startswith("torchrun")]
    words = shlex.split(command)
    assert words[1:5] == ["--nproc-per-node", "4", "-m", "fastvivit"] and words[5] == "train"
    assert tyro.cli(Train, args=words[6:]).config == Path("finetune_long.toml")


def test_the_configs_of_the_page_are_the_papers_but_for_what_they_say():
    short, long = (TrainConfig.from_toml(ROOT / "examples" / name) for name in CONFIGS)
    for config in (short, long):
        assert (config.optimiser.lr, config.mask.ratio, config.optimiser.clip) == (5e-5, 0.75, 2.0)
    assert short.model.mean == (0.485, 0.456, 0.406) and short.model.std == (0.229, 0.224, 0.225)
    assert (short.model.frames, short.model.tubelet, short.init.time_std) == (16, (2, 14, 14), 0.2)
    assert (long.frames, long.tuning.method, long.tuning.layers, long.batch_size) == (64, "last_layers", 4, 128)
    assert long.start.endswith("/examples/runs/short") and short.start.endswith("/examples/dinov2_small")


def test_figures_in_words():
    assert remedy(0.4, 0.9, 4, 16) in TEXT
    assert f"is {64 * 3 * 224 * 224 / 1e6:.1f} MB" in TEXT


def test_the_page_is_what_the_report_says():
    made = maker("make_finetuning")
    report = json.loads(made.REPORT.read_text())
    assert made.page(TEXT, report) == TEXT, "run python docs/make_finetuning.py"
    # What the page says of the run in words.
    scores, said, resumed = report["scores"], report["said"], report["resumed"]
    found = {name: {file for file, ranks in score["ranks"].items() if 1 in ranks} for name, score in scores.items()}
    assert scores["untrained"]["t2v_r1"] + scores["untrained"]["v2t_r1"] <= 2 * 100 / 8
    assert min(scores["short"]["t2v_r1"], scores["short"]["v2t_r1"]) > 2 / 3 * 100
    assert len(found["stretched"]) == 4 and found["long"] - found["stretched"] == {"big_buck_bunny_0_30.webm"}
    assert scores["long"]["t2v_r1"] - scores["stretched"]["t2v_r1"] == pytest.approx(100 * 2 / 12)
    assert not any("cup.mp4" in files for files in found.values())
    losses = [row["loss"] for row in report["metrics"]["long"]]
    assert sum(losses[:10]) < sum(losses[-10:]) and max(sum(losses[:10]), sum(losses[-10:])) < 6.5
    assert resumed["twice"] == resumed["same"] == 10 and resumed["killed_after"] % 20
    rabbit, globe, bottle = [
        [line.split("/")[-1] for line in found["said"][1:]] for name, found in said.items() if "search " in name
    ]
    assert (rabbit[0], globe[0], bottle[0]) == ("bigbuckbunny.mp4", "world.mp4", "box.mp4")
    assert report["clips"]["short"]["cup.mp4"] == [0, 1] == report["clips"]["long"]["cup.mp4"]
    assert not re.search(r"[\s\"]/\w", json.dumps(report)), "a path of the machine that it ran on"
    report["scores"]["short"]["t2v_r1"] = 12.7
    assert "| 13 % |" in made.page(TEXT, report)
