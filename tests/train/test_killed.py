"""Checkpoints of a process that is killed at a random instant: none lost, none half-written."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastvivit.train import SourceConfig, fit, latest_checkpoint, read_metrics
from fastvivit.train import checkpoint as checkpoints
from tests.train.test_resume import same

ROOT = Path(__file__).parents[2]
KILLS = 50

# One process imports torch and forks the writers: fifty imports would take minutes.
SAVER = '''
import json, os, random, signal, sys, time
from pathlib import Path
import torch
import fastvivit as fv
from fastvivit.models import ViViTConfig
from fastvivit.train.checkpoint import (
    checkpoints, latest_checkpoint, load_checkpoint, read_state, remove_scratch, save_checkpoint
)

torch.set_num_threads(1)
run, kills = Path(sys.argv[1]), int(sys.argv[2])
draw = random.Random(0)
model = fv.ViViT(ViViTConfig(frames=4, size=32, width=32, depth=2, heads=2, ff=64, images=False))
optimiser = torch.optim.AdamW(model.parameters())


def set_to(step):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(step)
            optimiser.state[parameter] = {
                "step": torch.tensor(float(step)),
                "exp_avg": torch.full_like(parameter, step),
                "exp_avg_sq": torch.full_like(parameter, step),
            }


def save(step):
    set_to(step)
    began = time.perf_counter()
    save_checkpoint(run, step, model, optimiser, {"said": step}, keep_last=2)
    return time.perf_counter() - began


def write_for_ever(done):
    remove_scratch(run)
    step = int(latest_checkpoint(run).name[5:])
    while True:
        step += 1
        save(step)
        os.write(done, step.to_bytes(8, "little"))


def check():
    """Every checkpoint under its final name holds its own step and nothing of another."""
    for folder in checkpoints(run):
        step = int(folder.name[5:])
        assert read_state(folder)["step"] == read_state(folder)["said"] == step
        set_to(-1)
        load_checkpoint(folder, model, optimiser)
        tensors = [*model.parameters(), *(t for p in model.parameters() for t in optimiser.state[p].values())]
        assert all(bool((t == step).all()) for t in tensors), folder


seconds = max(save(step) for step in (1, 2, 3))
torn, finished = 0, 3
for _ in range(kills):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        write_for_ever(writer)
    os.close(writer)
    time.sleep(draw.uniform(0, 2 * seconds))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read()
    finished = max(finished, int.from_bytes(told[-8:] or bytes(1), "little"))
    names = [int(path.name[5:]) for path in checkpoints(run)]
    # What the writer was told to be finished is there, and so is the one before.
    assert names[-1] in (finished, finished + 1) and len(names) in (2, 3), (finished, names)
    assert names == list(range(names[0], names[-1] + 1))
    check()
    finished = names[-1]
    torn += any(path.name.startswith(".step") for path in (run / "checkpoints").iterdir())
print(json.dumps({"torn": torn, "finished": finished}))
'''


def environment():
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fifty_kills_during_saves_lose_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SAVER, str(tmp_path), str(KILLS)], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # Or the kills would have come between the saves, and shown nothing.
    assert found["torn"] >= KILLS // 3 and found["finished"] >= KILLS // 3


FIT = (
    "import json, sys, torch; from fastvivit.train import TrainConfig, fit; torch.set_num_threads(1); "
    "fit(TrainConfig.from_dict(json.load(open(sys.argv[1]))), sys.argv[2], quiet=True)"
)


def test_killed_in_the_middle_of_the_epochs_of_two_sources_with_workers(config, tmp_path, change):
    data = {
        "train": None,
        "sources": (
            SourceConfig(path=config.data.train, batch=4, weight=1.0),
            SourceConfig(path=config.data.heldout, batch=2, weight=0.25),
        ),
    }
    config = change(config, data=data)
    whole = fit(config, tmp_path / "whole", quiet=True)
    config = change(config, data={"workers": 2})
    out, settings = tmp_path / "killed", tmp_path / "config.json"
    settings.write_text(json.dumps(config.to_dict()))
    process = subprocess.Popen([sys.executable, "-c", FIT, settings, out], env=environment())
    # 24 and 8 clips: epochs of 6 and 4 steps, of which step 5 ends neither.
    while len(read_metrics(out)) < 6 or latest_checkpoint(out) is None:
        assert process.poll() is None, "the run ended too early"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    state = checkpoints.read_state(out / "checkpoints" / "step-00000005")["sampler"]["sources"]
    assert [(one["epoch"], one["next_batch"]) for one in state] == [(0, 5), (1, 1)]
    fit(config, out, resume=True, quiet=True)
    same(out, whole)
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]
