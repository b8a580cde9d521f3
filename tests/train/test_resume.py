"""A run that is cut anywhere and resumed gives the losses of one that was not, to the bit."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastvivit import _folders
from fastvivit.train import checkpoint as checkpoints
from fastvivit.train import fit, latest_checkpoint, loop, read_metrics
from fastvivit.train.step import train_step


def losses(run):
    return [(row["step"], row["loss"], row["grad_norm"]) for row in read_metrics(run)]


def weights(run):
    return load_file(run / "model" / "model.safetensors")


@pytest.fixture
def whole(config, tmp_path):
    """The run that nothing interrupts."""
    return fit(config, tmp_path / "whole", quiet=True)


def stop_after(monkeypatch, steps):
    """Raise in the place of the step after the first ``steps`` of them."""
    taken = []

    def step(*args):
        if len(taken) == steps:
            raise RuntimeError("the power went out")
        taken.append(1)
        return train_step(*args)

    monkeypatch.setattr(loop, "train_step", step)


def same(a, b):
    assert losses(a) == losses(b)
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("stop", [5, 8])
def test_resumed_is_bit_equal(config, whole, tmp_path, monkeypatch, stop):
    out = tmp_path / "cut"
    with monkeypatch.context() as patched:
        stop_after(patched, stop)
        with pytest.raises(RuntimeError, match="power"):
            fit(config, out, quiet=True)
    assert latest_checkpoint(out).name == "step-00000005"
    assert [row["step"] for row in read_metrics(out)] == list(range(1, stop + 1))
    fit(config, out, resume=True, quiet=True)
    assert [row["step"] for row in read_metrics(out)] == list(range(1, 11))
    same(out, whole)


@pytest.mark.parametrize("kind", ["mlm", "captioning"])
def test_resumed_with_an_auxiliary_loss_is_bit_equal(config, tmp_path, monkeypatch, change, kind):
    config = change(config, auxiliary={"kind": kind, "depth": 1, "weight": 0.5}, steps=6, run={"save_every": 3})
    whole, out = fit(config, tmp_path / "whole", quiet=True), tmp_path / "cut"
    with monkeypatch.context() as patched:
        stop_after(patched, 4)
        with pytest.raises(RuntimeError, match="power"):
            fit(config, out, quiet=True)
    fit(config, out, resume=True, quiet=True)
    same(out, whole)
    rows, again = read_metrics(whole), read_metrics(out)
    assert [row[kind] for row in rows] == [row[kind] for row in again] and len(rows) == 6
    for row in rows:
        assert row["loss"] == pytest.approx(row["contrastive"] + 0.5 * row[kind], rel=1e-5)


def test_a_run_from_before_a_field_existed_resumes(config, whole):
    file = whole / "config.json"
    fields = json.loads(file.read_text())
    del fields["auxiliary"]
    file.write_text(json.dumps(fields))
    fit(config, whole, resume=True, quiet=True)
    assert json.loads(file.read_text())["auxiliary"]["kind"] == "none"


def test_masks_and_order_come_back(config, tmp_path, monkeypatch, change):
    config = change(config, run={"save_every": 3})
    seen = []

    def spy(*args):
        (batch,), step = args[2], args[3]
        seen.append((step, batch["index"].tolist(), batch["mask_seed"].tolist()))
        if len(seen) == 8:
            raise RuntimeError("the power went out")
        return train_step(*args)

    monkeypatch.setattr(loop, "train_step", spy)
    with pytest.raises(RuntimeError, match="power"):
        fit(config, tmp_path / "cut", quiet=True)
    fit(config, tmp_path / "cut", resume=True, quiet=True)
    first, again = {s[0]: s for s in seen[:8]}, {s[0]: s for s in seen[8:]}
    assert list(again) == list(range(6, 10))  # steps count from 0 here; 6 had been saved
    assert again[6] == first[6] and again[7] == first[7]
    assert len({tuple(s[2]) for s in seen[:8]}) == 8


def test_resume_without_a_checkpoint_begins(config, whole, tmp_path, monkeypatch):
    out = tmp_path / "cut"
    with monkeypatch.context() as patched:
        stop_after(patched, 2)
        with pytest.raises(RuntimeError, match="power"):
            fit(config, out, quiet=True)
    assert latest_checkpoint(out) is None
    fit(config, out, resume=True, quiet=True)
    same(out, whole)


def test_resume_of_a_finished_run_changes_nothing(config, whole):
    before = losses(whole), weights(whole)
    fit(config, whole, resume=True, quiet=True)
    assert losses(whole) == before[0]
    assert all(torch.equal(weights(whole)[name], tensor) for name, tensor in before[1].items())


def test_a_run_is_not_overwritten_nor_mixed(config, whole, change):
    with pytest.raises(ValueError, match="holds a run already; resume it, or name another folder"):
        fit(config, whole, quiet=True)
    with pytest.raises(ValueError, match=r"these tables or fields differ: seed, optimiser$"):
        fit(change(config, seed=1, optimiser={"lr": 1.0}), whole, resume=True, quiet=True)
    fit(change(config, run={"log_every": 1}), whole, resume=True, quiet=True)


def test_workers_give_the_same_losses(config, whole, tmp_path, change):
    out = fit(change(config, data={"workers": 1}), tmp_path / "workers", quiet=True)
    same(out, whole)


def test_the_callers_random_numbers_are_left_alone(config, tmp_path):
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    fit(config, tmp_path / "run", quiet=True)
    assert torch.equal(torch.rand(4), wanted)


@pytest.mark.parametrize("seed", [0, 1])
def test_sigkill_at_a_random_instant(config, whole, tmp_path, change, seed):
    config = change(config, run={"save_every": 1, "keep_last": 2})
    out, settings = tmp_path / "killed", tmp_path / "config.json"
    settings.write_text(json.dumps(config.to_dict()))
    code = (
        "import json, sys, torch; from fastvivit.train import TrainConfig, fit; torch.set_num_threads(1); "
        "fit(TrainConfig.from_dict(json.load(open(sys.argv[1]))), sys.argv[2], quiet=True)"
    )
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    process = subprocess.Popen([sys.executable, "-c", code, settings, out], env=environment)
    while latest_checkpoint(out) is None:
        assert process.poll() is None, "the run ended before its first checkpoint"
        time.sleep(0.002)
    time.sleep(random.Random(seed).uniform(0, 0.2))
    process.send_signal(signal.SIGKILL)
    process.wait()
    for folder in checkpoints.checkpoints(out):
        assert checkpoints.read_state(folder)["step"] == int(folder.name[5:])
    fit(config, out, resume=True, quiet=True)
    same(out, whole)
    assert len(checkpoints.checkpoints(out)) == 2
    assert not list((out / "checkpoints").glob(".*"))


@pytest.mark.parametrize("crash", ["write_pretrained", "save_file", "_flush", "rename"])
def test_a_crash_while_saving_leaves_the_one_before(config, whole, tmp_path, monkeypatch, crash):
    out, calls = tmp_path / "cut", []

    def second_time(original):
        def wrapped(*args, **kwargs):
            if crash != "rename" or str(args[0]).find("checkpoints/.step") > 0:
                calls.append(1)
                if len(calls) == 2:
                    raise RuntimeError("the power went out")
            return original(*args, **kwargs)

        return wrapped

    owner = {"rename": Path, "_flush": _folders}.get(crash, checkpoints)
    with monkeypatch.context() as patched:
        patched.setattr(owner, crash, second_time(getattr(owner, crash)))
        # A process that is killed runs no `finally`, so what it was writing stays behind.
        patched.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
        with pytest.raises(RuntimeError, match="power"):
            fit(config, out, quiet=True)
    assert [path.name for path in checkpoints.checkpoints(out)] == ["step-00000005"]
    assert list((out / "checkpoints").glob(".step-00000010-*"))
    fit(config, out, resume=True, quiet=True)
    same(out, whole)


def test_a_damaged_checkpoint_is_named(config, whole):
    (latest_checkpoint(whole) / "training.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"checkpoint: .*step-00000010 can't be loaded"):
        fit(config, whole, resume=True, quiet=True)
    (latest_checkpoint(whole) / "training.json").write_text("{}")
    with pytest.raises(ValueError, match="checkpoint: wanted format 1, got None"):
        fit(config, whole, resume=True, quiet=True)
