"""Captioning stages on one process and on two are the same run: losses, trained weights, checkpoints, scores."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fastvivit as fv
from fastvivit.caption.files import fingerprint
from fastvivit.train import TrainConfig, fit, latest_checkpoint, read_metrics
from fastvivit.train.checkpoint import checkpoints
from tests.train import test_ranks
from tests.train.ranks_job import cut
from tests.train.test_ranks import close

pytestmark = pytest.mark.slow


def run(folder, *tasks, wanted=0):
    return test_ranks.run(2, folder, *tasks, wanted=wanted, functions="tests.train.caption_ranks_job")


def same_weights(run, whole):
    """What was trained is the same, to rounding."""
    found, wanted = (load_file(out / "model" / "captioner.safetensors") for out in (run, whole))
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        if name.endswith("kv.bias"):  # softmax does not see that of the keys: Adam follows the rounding of a 0
            found[name], tensor = found[name].chunk(2)[1], tensor.chunk(2)[1]
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("caption-ranks")


@pytest.fixture
def manifests(shared, digits):
    """Those of the digits, with captions of different lengths: processes have shares of different weights."""
    found = {}
    for name, manifest in zip(("train", "heldout"), digits, strict=True):
        file = shared / name / "manifest.jsonl"
        if not file.exists():
            shutil.copytree(Path(manifest).parent, file.parent)
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            for number, row in enumerate(rows):
                row["caption"] += " and on" * (number % 5)
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found[name] = str(file)
    return found


@pytest.fixture
def config(captioning, manifests, change):
    """Without the cache, scored in the middle, too."""
    return change(captioning, data=manifests, run={"eval_every": 4})


@pytest.fixture
def cached(config, change):
    return change(config, vision={"cache": True})


@pytest.fixture
def damaged(cached, shared, change, manifests):
    """Two broken clips in each manifest, one of them for each process."""
    found = {}
    for name, manifest in manifests.items():
        folder = shared / f"damaged-{name}"
        if not folder.exists():
            shutil.copytree(Path(manifest).parent, folder)
            for broken in sorted(folder.glob("*.mp4"))[:2]:
                broken.write_bytes(b"this is no video")
        found[name] = str(folder / "manifest.jsonl")
    return change(cached, data=found)


@pytest.fixture
def whole(config, cached, damaged, shared):
    """The runs in one process."""
    for name, one in (("whole", config), ("whole-cached", cached), ("whole-damaged", damaged)):
        if not (shared / name).exists():
            fit(one, shared / name, quiet=True)
    return shared


@pytest.fixture
def finetune(whole, config, captioning):
    return TrainConfig.for_stage(
        "finetune",
        start=str(whole / "whole"),
        steps=3,
        batch_size=4,
        data=config.data,
        vision={"cache": False},
        captions={"describe": 3},
        schedule={"warmup": 1},
        optimiser={"lr": 1e-3},
        run=captioning.run,
    )


@pytest.fixture
def two(config, cached, damaged, finetune, whole):
    """What two processes are asked for, in one launch."""
    shared = whole
    if (shared / "ddp").exists():
        return shared

    def task(config, name, function="train", **more):
        return function, {"config": config.to_dict(), "out": str(shared / name)} | more

    run(
        shared,
        ("shares", {}),
        task(config, "ddp"),
        task(cached, "cached", "encoded_once"),
        task(damaged, "damaged"),
        task(config, "from-one", resume=True, cut_from=str(shared / "whole"), step=4),
        task(cached, "cut-cached", resume=True, cut_from=str(shared / "cached"), step=4),
        task(finetune, "finetune"),
        task(config, "failing", "failing"),
        task(config, "slow", "slow_preparation"),
    )
    return shared


def test_losses_gradients_and_scores_are_those_of_one_process(two):
    for name, other in (("ddp", "whole"), ("cached", "whole-cached")):
        close(two / name, two / other)
        same_weights(two / name, two / other)
        assert "eval_rouge_l_f1" in read_metrics(two / name)[-1]


def test_the_language_model_is_that_of_one_process(two):
    """Rank 0 taught it, and what stands in the checkpoints of a run is what every rank has trained with."""
    found, wanted = (fv.load_pretrained(two / name / "model") for name in ("ddp", "whole"))
    assert fingerprint(found.lm) == fingerprint(wanted.lm) and fingerprint(found.video) == fingerprint(wanted.video)


def test_a_checkpoint_is_the_same_whoever_wrote_it(two):
    for file in ("captioner.safetensors", "training.safetensors"):
        shapes = []
        for name in ("ddp", "whole"):
            tensors = load_file(latest_checkpoint(two / name) / file)
            shapes.append({key: t.shape for key, t in tensors.items() if not key.startswith("random/")})
        assert shapes[0] == shapes[1]
    assert (two / "ddp" / "report.html").is_file() and len(checkpoints(two / "ddp")) == 2


def test_another_number_of_processes_goes_on(two, config, cached, tmp_path):
    close(two / "from-one", two / "whole")
    same_weights(two / "from-one", two / "whole")
    for name, one in (("ddp", config), ("cached", cached)):
        cut(two / name, tmp_path / name, 4)
        fit(one, tmp_path / name, resume=True, quiet=True)
        close(tmp_path / name, two / name)
        same_weights(tmp_path / name, two / name)


def test_as_many_processes_go_on_to_the_bit(two):
    for row, other in zip(read_metrics(two / "cut-cached"), read_metrics(two / "cached"), strict=True):
        assert (row["loss"], row["grad_norm"]) == (other["loss"], other["grad_norm"])


def test_broken_files_are_known_to_all(two):
    close(two / "damaged", two / "whole-damaged")
    rows = read_metrics(two / "damaged")
    assert rows[0]["broken"] == 2 and rows[-1]["eval_broken"] == 2 and rows[-1]["eval_clips"] == 6
    text = (two / "damaged" / "report.html").read_text()
    assert all(f"damaged-{name}/00000{letter}.mp4" in text for name in ("train", "heldout") for letter in "ab")


def test_finetune(two, finetune, tmp_path):
    whole = fit(finetune, tmp_path / "whole", quiet=True)
    close(two / "finetune", whole)
    same_weights(two / "finetune", whole)


def test_a_rank_that_is_killed_while_encoding_ends_the_run(cached, whole, tmp_path, change):
    out = tmp_path / "killed"
    small = change(cached, batch_size=2)
    began = time.monotonic()
    run(tmp_path, ("killed", {"config": small.to_dict(), "out": str(out)}), wanted=1)
    assert time.monotonic() - began < 60
    assert (out / "language").is_dir() and latest_checkpoint(out) is None
    fit(small, out, resume=True, quiet=True)
    close(out, fit(small, tmp_path / "whole", quiet=True))
