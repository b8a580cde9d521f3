"""The loop: what it leaves, what it survives, what stops it."""

import dataclasses
import json
import os
import re
import shutil
import signal
import sys
from html.parser import HTMLParser

import pytest
import torch

import fastvivit as fv
from fastvivit.data import ClipDataset, read_manifest
from fastvivit.train import MaskConfig, NonFiniteLoss, TrainConfig, evaluate, fit, latest_checkpoint, loop, read_metrics
from fastvivit.train.report import write_report
from fastvivit.train.stages import make_stage
from fastvivit.train.step import draw_masks, train_step
from fastvivit.train.summary import changed_settings

VOID = {"meta", "img", "br", "hr"}


class Strict(HTMLParser):
    """Refuses tags that are not closed in order; collects images and text."""

    def __init__(self):
        super().__init__()
        self.open, self.images, self.words = [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(dict(attributes))

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def parsed(path):
    page = Strict()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    assert not page.open
    return page


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("loop")


@pytest.fixture
def run(config, shared, change):
    """One run with everything on, taken once."""
    out = shared / "run"
    config = change(config, run={"eval_every": 4, "tensorboard": True})
    if not (out / "report.html").is_file():
        fit(config, out, quiet=True)
    return out


def test_metrics(run):
    rows = read_metrics(run)
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert [row["epoch"] for row in rows] == [0] * 4 + [1] * 4 + [2] * 2
    assert all({"loss", "lr", "grad_norm", "scale", "seconds", "clips_per_second"} <= row.keys() for row in rows)
    assert all({"tokens_per_second", "data_wait", "data_busy", "memory_peak"} <= row.keys() for row in rows)
    assert not any("mfu" in row for row in rows)  # of a GPU alone
    # 8 frames of 32 pixels in tubelets of 2 x 16 x 16 are 16 tokens, of which half are dropped.
    assert all(row["tokens_per_second"] == pytest.approx(8 * row["clips_per_second"]) for row in rows)
    assert all(0 <= row["data_wait"] <= 1 and 0 <= row["data_busy"] <= 1 for row in rows)
    assert not any({"contrastive", "mlm", "captioning"} & row.keys() for row in rows)  # no auxiliary loss, no parts
    scored = [row["step"] for row in rows if "eval_twin" in row]
    assert scored == [4, 8, 10]
    assert {"eval_t2v_r1", "eval_v2t_medr", "eval_clips"} <= rows[-1].keys()


def test_what_is_left(run, config):
    assert json.loads((run / "config.json").read_text())["model"]["width"] == 32
    assert [path.name for path in (run / "checkpoints").iterdir() if not path.name.startswith(".")]
    assert list((run / "events").glob("events.out.tfevents.*"))
    final, saved = fv.load_pretrained(run / "model"), fv.load_pretrained(latest_checkpoint(run))
    for name, tensor in final.state_dict().items():
        assert torch.equal(tensor, saved.state_dict()[name]), name
    heldout = ClipDataset(config.data.heldout, frames=8, fps=8.0, size=32)
    again = evaluate(final, heldout, batch_size=config.batch_size)
    scores = {f"eval_{name}": value for name, value in again.scores.items()}
    assert scores.items() <= read_metrics(run)[-1].items()


def test_nothing_is_pickled(run):
    suffixes = {path.suffix for path in (run / "checkpoints").rglob("*") if path.is_file()}
    assert suffixes == {".json", ".safetensors"}


def test_report(run):
    page = parsed(run / "report.html")
    images = [image["src"] for image in page.images]
    assert len(images) == 2 + 4 * 3  # small plots in one picture, scores by step, matches
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in images)
    text = " ".join(page.words)
    assert "own caption above the twin's" in text and "50.0 %" in text and "chance" in text
    shown = [word for word in page.words if word.strip()]
    summary = dict(zip(shown, shown[1:], strict=False))
    assert summary["steps"] == "10 of 6 samples" and summary["stage"] == "contrastive"
    assert summary["speed, median step"].endswith(" tokens/s") and summary["memory at most"].endswith("B")
    rows = read_metrics(run)
    best = max((row for row in rows if "eval_t2v_r1" in row), key=lambda row: row["eval_t2v_r1"])
    assert summary["best held-out t2v_r1"] == f"{best['eval_t2v_r1']:.4g} at step {best['step']}, taken 3 times"
    assert "Settings that differ from the preset of stage 'contrastive'" in text
    assert "http" not in (run / "report.html").read_text().replace("data:image", "")


def test_masks_depend_on_the_sample_alone():
    seeds = torch.tensor([5, 9, 2**62])
    keep = draw_masks(seeds, ((4, 3, 3),), MaskConfig(ratio=0.75)).ids
    assert keep.shape == (3, 9) and keep.dtype == torch.int64
    assert torch.equal(draw_masks(seeds.flip(0), ((4, 3, 3),), MaskConfig(ratio=0.75)).ids, keep.flip(0))
    tube = draw_masks(seeds, ((4, 3, 3),), MaskConfig(ratio=0.5, strategy="tube")).ids.view(3, 4, -1)
    assert torch.equal(tube % 9, (tube % 9)[:, :1].expand_as(tube))
    assert draw_masks(seeds, ((4, 3, 3),), MaskConfig(ratio=0)) is None


def test_scores_without_twins_and_with_two_captions(config, tmp_path, run):
    entries = read_manifest(config.data.heldout)
    plain = [type(e)(video=e.video, captions=(*e.captions, "another one")) for e in entries[:4]]
    found = evaluate(fv.load_pretrained(run / "model"), ClipDataset(plain, frames=8, fps=8.0, size=32), batch_size=3)
    assert "twin" not in found.scores and found.similarity.shape == (8, 4)
    assert found.owners == [0, 0, 1, 1, 2, 2, 3, 3] and found.chance["t2v_r1"] == 25.0


def test_a_manifest_with_a_line_a_caption_scores_as_one_with_a_line_a_clip(config, run):
    entries = [
        dataclasses.replace(entry, captions=(f"{entry.captions[0]} {number}", entry.captions[0]))
        for number, entry in enumerate(read_manifest(config.data.heldout))
    ]
    lines = [dataclasses.replace(entry, captions=(caption,)) for entry in entries for caption in entry.captions]
    model, look = fv.load_pretrained(run / "model"), {"frames": 8, "fps": 8.0, "size": 32}
    wanted = evaluate(model, ClipDataset(entries, **look), batch_size=3)
    found = evaluate(model, ClipDataset(lines, **look), batch_size=3)
    assert found.scores == wanted.scores and found.scores["clips"] == 8 and "twin" in found.scores
    assert found.captions == wanted.captions and found.owners == wanted.owners
    assert found.entries == [2 * entry for entry in wanted.entries]
    assert torch.equal(found.similarity, wanted.similarity)


@pytest.fixture
def damaged(config, tmp_path, change):
    """The same run on clips of which two files are broken, and one held-out file."""
    changes = {}
    for name, count in (("train", 2), ("heldout", 1)):
        source = type(tmp_path)(getattr(config.data, name)).parent
        target = tmp_path / name
        shutil.copytree(source, target)
        for broken in sorted(target.glob("*.mp4"))[:count]:
            broken.write_bytes(b"this is no video")
        changes[name] = str(target / "manifest.jsonl")
    return change(config, data=changes)


@pytest.mark.filterwarnings("ignore")
def test_broken_files_are_counted_and_end_nothing(damaged, tmp_path):
    out = fit(damaged, tmp_path / "run", quiet=True)
    rows = read_metrics(out)
    assert rows[-1]["broken"] == 2 and rows[-1]["eval_broken"] == 1 and rows[-1]["eval_clips"] == 7
    text = " ".join(parsed(out / "report.html").words)
    assert "train/00000a.mp4" in text and "train/00000b.mp4" in text and "heldout/00000a.mp4" in text
    found = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert sorted(row["video"].rpartition("/")[2] for row in found) == ["00000a.mp4", "00000b.mp4"]
    assert all(row["reason"] for row in found)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.filterwarnings("ignore")
def test_a_file_that_hangs_holds_nothing_up(damaged, tmp_path, change):
    """Opening a pipe that nobody writes to never returns: the decoder is ended, the run goes on."""
    os.mkfifo(tmp_path / "train" / "pipe.mp4")
    (tmp_path / "train" / "00000a.mp4").write_text("ffconcat version 1.0\nfile pipe.mp4\n")
    config = change(damaged, data={"workers": 1, "deadline": 2.0, "cache": False})
    out = fit(config, tmp_path / "run", quiet=True)
    assert read_metrics(out)[-1]["broken"] == 2
    reasons = [json.loads(line)["reason"] for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert any("within 2 s" in reason for reason in reasons), reasons


def test_no_readable_file_is_an_error(damaged, tmp_path):
    for video in (tmp_path / "train").glob("*.mp4"):
        video.write_bytes(b"")
    with pytest.raises(ValueError, match="wanted at least one readable video"):
        fit(damaged, tmp_path / "run", quiet=True)


def test_nan_stops_the_run_and_spoils_nothing(config, tmp_path, monkeypatch):
    def poisoned(model, optimiser, batch, step, *rest):
        if step == 7:
            with torch.no_grad():
                model.video_proj.weight.fill_(float("nan"))
        return train_step(model, optimiser, batch, step, *rest)

    monkeypatch.setattr(loop, "train_step", poisoned)
    with pytest.raises(NonFiniteLoss, match=r"step 8: the loss is nan.*lower optimiser.lr"):
        fit(config, tmp_path / "run", quiet=True)
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == list(range(1, 8))
    latest = latest_checkpoint(tmp_path / "run")
    assert latest.name == "step-00000005"
    assert all(tensor.isfinite().all() for tensor in fv.load_pretrained(latest).state_dict().values())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves(config, tmp_path, monkeypatch, number):
    def interrupted(*args):
        if args[3] == 2:
            signal.raise_signal(number)
        return train_step(*args)

    before = signal.getsignal(number)
    monkeypatch.setattr(loop, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(config, tmp_path / "run", quiet=True)
    assert latest_checkpoint(tmp_path / "run").name == "step-00000003"
    assert signal.getsignal(number) is before


def test_plain_lines_where_there_is_no_terminal(config, tmp_path, change, capsys):
    fit(change(config, run={"log_every": 4}), tmp_path / "run", name="mine")
    lines = [line.split("  ") for line in capsys.readouterr().err.splitlines()]
    assert [line[0] for line in lines] == [f"mine: step {n}/10" for n in (4, 8, 10, 10)]
    for line in lines[:3]:
        assert [re.sub(r"[\d.]+[kM]?", "N", part) for part in line[1:5]] == [
            "loss N", "N clips/s", "N tokens/s", "data wait N%",
        ]  # fmt: skip
        assert line[5].endswith(" left")
    assert re.fullmatch(r"held-out t2v_r1 [\d.]+, the best so far", lines[3][1])


def test_a_bar_on_a_terminal(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    fit(config, tmp_path / "run", name="mine")
    shown = capsys.readouterr().err
    assert "10/10" in shown and "clips/s" in shown and "tokens/s" in shown and "left" in shown
    assert "mine: step 10/10  held-out t2v_r1" in shown


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 100}, "batch_size: wanted at most the 24 clips of .*, got 100"),
        ({"text": {"folder": "/absent"}}, "text.folder: wanted a folder with a transformers model"),
        ({"data": {"train": "/absent.jsonl"}}, "manifest: wanted a JSONL or CSV file, no such file"),
    ],
)
def test_refusals(config, tmp_path, change, changes, words):
    with pytest.raises(ValueError, match=words):
        fit(change(config, **changes), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_missing_gpu_is_said(config, tmp_path, change):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match="run.device: wanted a CUDA device"):
        fit(change(config, run={"device": "cuda"}), tmp_path / "run", quiet=True)


def test_a_local_text_model_with_dropout_resumes_exactly(config, tmp_path, change, monkeypatch):
    from transformers import BertConfig, BertModel

    from fastvivit.train.build import scratch_tower

    tower = scratch_tower(config.text, [e.captions[0] for e in read_manifest(config.data.train)])
    small = BertConfig(
        vocab_size=tower.tokenizer.vocab_size, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=24,
    )  # fmt: skip
    BertModel(small).save_pretrained(tmp_path / "bert")
    tower.tokenizer.save_pretrained(tmp_path / "bert")
    config = change(config, text={"folder": str(tmp_path / "bert")}, run={"save_every": 3})
    whole = fit(config, tmp_path / "whole", quiet=True)

    def stop(*args):
        if args[3] == 4:
            raise RuntimeError("the power went out")
        return train_step(*args)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "train_step", stop)
        with pytest.raises(RuntimeError, match="power"):
            fit(config, tmp_path / "cut", quiet=True)
    fit(config, tmp_path / "cut", resume=True, quiet=True)
    assert [r["loss"] for r in read_metrics(tmp_path / "cut")] == [r["loss"] for r in read_metrics(whole)]


def test_settings_that_differ_from_the_preset(config, change):
    changed = {name: (own, preset) for name, own, preset in changed_settings(config)}
    assert changed["optimiser.lr"] == ("0.001", "5e-05") and changed["mask.ratio"] == ("0.5", "0.75")
    assert changed["model.frames"][0] == "8" and changed["batch_size"] == ("6", "512")
    assert not any(name in changed for name in ("optimiser.weight_decay", "seed", "model.tubelet"))
    assert not any(name.startswith("data.train") or name == "steps" for name in changed)
    same = TrainConfig.for_stage("image_to_video", data={"train": "a.jsonl"}, steps=2000)
    assert {name for name, *_ in changed_settings(same)} <= {"model.images"}, changed_settings(same)
    long = TrainConfig.for_stage("short_to_long", start="x", data={"train": "a.jsonl"}, tuning={"layers": 2})
    assert changed_settings(long) == [("start", "x", "–"), ("tuning.layers", "2", "4")]


def test_a_report_of_a_run_that_waited_says_for_what(config, tmp_path):
    out = fit(config, tmp_path / "run", quiet=True)
    rows = [row | {"data_wait": 0.5, "data_busy": 1.0} for row in read_metrics(out)]
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_report(out, make_stage(config), None, (), torch.device("cpu"))
    assert "Data: 50% of the time is spent waiting for clips" in " ".join(parsed(out / "report.html").words)
    for row in rows:  # a run from before these were noted
        del row["data_busy"], row["tokens_per_second"], row["memory_peak"]
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_report(out, make_stage(config), None, (), torch.device("cpu"))
    assert "speed" not in " ".join(parsed(out / "report.html").words)
