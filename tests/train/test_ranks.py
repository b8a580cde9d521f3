"""One process, two and four are the same run: losses, gradients, checkpoints, scores."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fastvivit as fv
from fastvivit.train import checkpoint as checkpoints
from fastvivit.train import fit, latest_checkpoint, read_metrics
from fastvivit.train.ranks import joined
from tests.train.ranks_job import cut

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "PYTHONPATH": str(ROOT)}


def torchrun(count, *command):
    """A process of torchrun that starts ``python -m command`` so many times."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*launcher, "-m", *map(str, command)], cwd=ROOT, env=ENVIRONMENT, **pipes)


def ended(process, wanted=0):
    """Wait for it; what it said."""
    try:
        said, _ = process.communicate(timeout=150)
    finally:
        process.kill()
    assert (process.returncode == 0) == (wanted == 0), said
    return said


def run(count, folder, *tasks, wanted=0, functions="tests.train.ranks_job"):
    job = folder / f"job-{count}.json"
    job.write_text(json.dumps(tasks))
    return ended(torchrun(count, functions, job), wanted)


def settings(folder, config, steps):
    """The TOML file of a small run."""
    file = folder / "run.toml"
    file.write_text(
        f'steps = {steps}\nbatch_size = 12\ndim = 16\n[data]\ntrain = "{config.data.train}"\nfps = 8.0\ncache = true\n'
        "[schedule]\nwarmup = 2\n[text]\nwidth = 32\ndepth = 1\nheads = 2\n"
        "[model]\nframes = 8\nsize = 32\nwidth = 32\ndepth = 1\nheads = 2\nff = 64\n"
        '[run]\ntensorboard = false\ndevice = "cpu"\nlog_every = 1\n'
    )
    return str(file)


def close(run, whole):
    """The same losses, norms and scores, to rounding in float32."""
    found, wanted = read_metrics(run), read_metrics(whole)
    assert [row["step"] for row in found] == [row["step"] for row in wanted]
    for row, other in zip(found, wanted, strict=True):
        names = [name for name in other if name in ("loss", "grad_norm", "scale", "epoch") or name.startswith("eval_")]
        assert row == row | {name: pytest.approx(other[name], rel=1e-4) for name in names}
        assert names == [name for name in row if name in names]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture
def config(config, change):
    """12 clips a step, which 2 and 4 divide; nothing is dropped at random."""
    model = config.model.replace(drop_path=0.0, depth=2)
    return change(config, batch_size=12, model=model, text={"depth": 2}, run={"eval_every": 4})


@pytest.fixture
def whole(config, shared):
    """The run in one process."""
    out = shared / "whole"
    return out if out.exists() else fit(config, out, quiet=True)


def gradient_tasks(*cases):
    for tuning, auxiliary, images, chunk in cases:
        for how in ("ddp", "fsdp"):
            arguments = {"how": how, "tuning": tuning, "auxiliary": auxiliary, "images": images, "chunk": chunk}
            yield "gradients", arguments


@pytest.fixture
def four(config, shared, change):
    """What four processes are asked for, in one launch: starting them takes longer than the runs."""
    if not (shared / "four").exists():
        fsdp = change(config, run={"parallel": "fsdp", "save_every": 3})
        run(
            4,
            shared,
            ("words", {}),
            ("unused", {}),
            *gradient_tasks(("all", None, True, 0), ("last_layers", "mlm", True, 1)),
            ("train", {"config": fsdp.to_dict(), "out": str(shared / "four")}),
        )
    return shared


@pytest.fixture
def two(config, whole, four, change, digits):
    """What two processes are asked for, in one launch."""
    shared = four
    if (shared / "fsdp").exists():
        return shared
    damaged = {}
    for name, manifest, count in (("train", digits[0], 2), ("heldout", digits[1], 1)):
        shutil.copytree(Path(manifest).parent, shared / name)
        for broken in sorted((shared / name).glob("*.mp4"))[:count]:
            broken.write_bytes(b"this is no video")
        damaged[name] = str(shared / name / "manifest.jsonl")
    dropping = change(config, model=config.model.replace(drop_path=0.2), data={"workers": 0}).to_dict()
    fsdp = change(config, run={"parallel": "fsdp"})
    chunked = change(config, memory={"chunk": 4}).to_dict()
    narrow = {
        how: change(config, memory={"chunk": 4}, run={"precision": "bfloat16", "parallel": how}, steps=4)
        for how in ("ddp", "fsdp")
    }

    def task(config, name, **more):
        return "train", {"config": config, "out": str(shared / name)} | more

    def rest(config, name, of, step):
        return task(config, name, resume=True, cut_from=str(shared / of), step=step)

    words = "wanted one that the 2 processes divide evenly, got 9"
    odd = change(config, batch_size=9, data={"pair_twins": False})
    run(
        2,
        shared,
        ("refused", {"config": odd.to_dict(), "out": str(shared / "no"), "words": words}),
        ("eight_bits_and_parts", {}),
        *gradient_tasks(
            ("all", None, True, 0),
            ("all", None, True, 3),
            ("last_layers", "mlm", True, 3),
            ("lora", "captioning", False, 0),
            ("full", None, True, 1),
            ("selective", None, False, 0),
        ),
        ("bfloat16", {"chunk": 0}),
        ("bfloat16", {"chunk": 3}),
        ("command", {"settings": settings(shared, config, 3), "out": str(shared / "command")}),
        task(config.to_dict(), "ddp"),
        task(fsdp.to_dict(), "fsdp"),
        task(chunked, "chunked"),
        *(task(narrow[how].to_dict(), f"bfloat16-{how}") for how in narrow),
        rest(fsdp.to_dict(), "from-one", "whole", 5),
        rest(config.to_dict(), "from-four", "four", 3),
        task(dropping, "drop"),
        rest(dropping, "drop-cut", "drop", 5),
        task(change(config, data=damaged, steps=4).to_dict(), "damaged"),
        ("poisoned", {"config": fsdp.to_dict(), "out": str(shared / "nan")}),
        ("interrupted", {"config": config.to_dict(), "out": str(shared / "interrupted")}),
    )
    return shared


@pytest.mark.slow
def test_gradients_are_those_of_one_process(two):
    """In float64, on two and on four: ``ranks_job.gradients`` says how near."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp", "chunked", "four"])
def test_losses_and_scores_are_those_of_one_process(two, whole, name):
    close(two / name, whole)
    final, saved = fv.load_pretrained(two / name / "model"), fv.load_pretrained(latest_checkpoint(two / name))
    for key, tensor in final.state_dict().items():
        assert torch.equal(tensor, saved.state_dict()[key]), key
    suffixes = {path.suffix for path in (two / name / "checkpoints").rglob("*") if path.is_file()}
    assert suffixes == {".json", ".safetensors"}
    assert (two / name / "report.html").is_file()


@pytest.mark.slow
def test_a_checkpoint_is_the_same_whoever_wrote_it(two, whole):
    """Names and shapes; there is a random state for each process."""
    for file in ("model.safetensors", "training.safetensors"):
        shapes = {}
        for name in ("whole", "ddp", "fsdp"):
            tensors = load_file(latest_checkpoint(two / name) / file)
            shapes[name] = {key: t.shape for key, t in tensors.items() if not key.startswith("random/")}
            random = sorted(key for key in tensors if key.startswith("random/") and key.endswith("/cpu"))
            if file.startswith("training"):
                assert random == (["random/cpu"] if name == "whole" else ["random/0/cpu", "random/1/cpu"])
        assert shapes["ddp"] == shapes["fsdp"] == shapes["whole"]


@pytest.mark.slow
def test_another_number_of_processes_goes_on(two, whole, config, tmp_path):
    close(two / "from-one", whole)
    close(two / "from-four", whole)
    cut(two / "fsdp", tmp_path / "from-two", 5)
    fit(config, tmp_path / "from-two", resume=True, quiet=True)
    close(tmp_path / "from-two", whole)


@pytest.mark.slow
def test_parts_under_autocast_are_what_copies_are(two):
    close(two / "bfloat16-fsdp", two / "bfloat16-ddp")


@pytest.mark.slow
def test_each_rank_gets_its_random_numbers_back(two):
    """With dropout: bit-equal on as many processes."""
    for row, other in zip(read_metrics(two / "drop-cut"), read_metrics(two / "drop"), strict=True):
        assert (row["loss"], row["grad_norm"]) == (other["loss"], other["grad_norm"])


@pytest.mark.slow
def test_broken_files_are_counted_once_by_all(two):
    last = read_metrics(two / "damaged")[-1]
    assert last["broken"] == 2 and last["eval_broken"] == 1 and last["eval_clips"] == 7
    text = (two / "damaged" / "report.html").read_text()
    assert all(f"{name}/00000a.mp4" in text for name in ("train", "heldout"))


@pytest.mark.slow
def test_nan_on_one_rank_stops_all(two):
    assert [row["step"] for row in read_metrics(two / "nan")] == [1, 2]
    assert latest_checkpoint(two / "nan") is None


@pytest.mark.slow
def test_no_rank_leaves_while_another_writes_the_last_checkpoint(two):
    assert [folder.name for folder in checkpoints.checkpoints(two / "interrupted")] == ["step-00000003"]


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "how"), [(0, "ddp"), (1, "fsdp")])
def test_a_rank_that_is_killed_while_saving_ends_the_run_and_spoils_nothing(config, whole, tmp_path, change, rank, how):
    out, parallel = tmp_path / "killed", change(config, run={"parallel": how})
    began = time.monotonic()
    run(2, tmp_path, ("killed", {"config": parallel.to_dict(), "out": str(out), "rank": rank}), wanted=1)
    assert time.monotonic() - began < 120
    assert [folder.name for folder in checkpoints.checkpoints(out)] == ["step-00000005"]
    fit(config, out, resume=True, quiet=True)
    close(out, whole)
    assert not list((out / "checkpoints").glob(".*"))


@pytest.mark.slow
def test_the_command_and_sigterm(config, tmp_path, change):
    """``torchrun -m fastvivit train``: one voice, and one checkpoint when it is told to stop."""
    out = tmp_path / "run"
    process = torchrun(2, "fastvivit", "train", settings(tmp_path, config, 100000), "--out", out)
    try:
        while len(read_metrics(out)) < 3:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        said = ended(process, wanted=1)
    finally:
        process.kill()
    rows = read_metrics(out)
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert [folder.name for folder in checkpoints.checkpoints(out)] == [f"step-{len(rows):08d}"]
    assert said.count("step 1/100000") == 1 and said.count("saved, resume goes on from there") == 1
    assert fv.load_pretrained(latest_checkpoint(out)).dim == 16


def test_alone_nothing_of_torch_distributed_is_touched():
    with joined(torch.device("cpu")) as ranks:
        assert ranks.alone and ranks.first and not torch.distributed.is_initialized()
    assert ranks.largest([1.0, 2.0]) == [1.0, 2.0] and ranks.gather("a") == ["a"] and ranks.lead(lambda: 3) == 3
    tensor = torch.ones(2)
    assert ranks.mean(tensor) is tensor
    ranks.meet()
