"""What the processes of tests/train/test_ranks.py do: ``torchrun -m tests.train.ranks_job JOB.json``.

A job is a list of tasks, taken in turn by all ranks; each names a function of this file and its arguments.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from unittest import mock

import torch
from torch import distributed as dist

import fastvivit as fv
from fastvivit.cli import main as cli
from fastvivit.contrastive import ContrastivePart, chunked_backward, contrastive_losses
from fastvivit.models import ViViTConfig
from fastvivit.modules.dual import VideoTextModel
from fastvivit.train import NonFiniteLoss, TrainConfig, checkpoint, fit, loop, parallel
from fastvivit.train.build import scratch_tower
from fastvivit.train.ranks import Ranks, joined
from fastvivit.train.step import autocast, train_step
from fastvivit.train.tables import OptimiserConfig, TextConfig

CPU = torch.device("cpu")
TOLERANCE = 1e-12


def cut(run: str | Path, out: str | Path, step: int) -> None:
    """A copy of a run as if it had been killed after ``step``, its last checkpoint."""
    shutil.copytree(run, out)
    shutil.rmtree(Path(out) / "model")
    for folder in checkpoint.checkpoints(Path(out)):
        if int(folder.name[5:]) > step:
            shutil.rmtree(folder)


# --- what a run of several processes is asked to do


def train(config: dict, out: str, resume: bool = False, cut_from: str | None = None, step: int = 0) -> None:
    """A run, or the rest of one that was cut."""
    if cut_from is not None:
        with joined(CPU) as ranks:
            ranks.lead(lambda: cut(cut_from, out, step))
    fit(TrainConfig.from_dict(config), out, resume=resume, quiet=True)


def command(*, settings: str, out: str) -> None:
    """``fastvivit train``: rank 0 alone says how it ended."""
    said = io.StringIO()
    with redirect_stdout(said):
        assert cli(["train", settings, "--out", out]) == 0
    with joined(CPU) as ranks:
        assert ("report:" in said.getvalue()) == ranks.first
        assert ranks.first or not said.getvalue()


def refused(config: dict, out: str, words: str) -> None:
    """A run that every rank refuses before it has left anything."""
    try:
        fit(TrainConfig.from_dict(config), out, quiet=True)
    except ValueError as error:
        assert words in str(error), error
        assert not Path(out).exists()
        return
    raise AssertionError("nothing was refused")


def poisoned(config: dict, out: str) -> None:
    """The loss of one rank becomes NaN: all ranks stop, and say the same."""

    def spoil(model, optimiser, batches, step, stage, *rest):
        if step == 2 and dist.get_rank() == 1:
            losses = stage.losses
            stage.losses = lambda *args: {name: value * float("nan") for name, value in losses(*args).items()}
        return train_step(model, optimiser, batches, step, stage, *rest)

    with mock.patch.object(loop, "train_step", spoil):
        try:
            fit(TrainConfig.from_dict(config), out, quiet=True)
        except NonFiniteLoss as error:
            assert "step 3: the loss is nan" in str(error), error
            return
    raise AssertionError("nothing was raised")


def interrupted(config: dict, out: str) -> None:
    """One rank is told to stop: no rank leaves before the checkpoint is there, or torchrun would end the writer."""
    whole = checkpoint.written_whole

    def told(model, optimiser, batches, step, *rest):
        if step == 2 and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(model, optimiser, batches, step, *rest)

    def slow(folder):
        time.sleep(1)
        return whole(folder)

    with mock.patch.object(loop, "train_step", told), mock.patch.object(checkpoint, "written_whole", slow):
        try:
            fit(TrainConfig.from_dict(config), out, quiet=True)
        except KeyboardInterrupt:
            assert [folder.name for folder in checkpoint.checkpoints(Path(out))] == ["step-00000003"]
            return
    raise AssertionError("nothing stopped it")


def killed(config: dict, out: str, rank: int) -> None:
    """A rank dies while it writes, or sends its part of, the second checkpoint."""
    name = "written_whole" if rank == 0 else "gathered"
    whole, calls = getattr(checkpoint, name), []

    def die(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2 and dist.get_rank() == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*args, **kwargs)

    with mock.patch.object(checkpoint, name, die):
        fit(TrainConfig.from_dict(config), out, quiet=True)


# --- gradients in float64

CAPTIONS = [f"a digit {word} goes {side}" + " and on" * len(word) for word in ("one", "three") for side in "lrud"]
LENGTH = len(CAPTIONS)


def dual(tuning: str, auxiliary: str | None) -> VideoTextModel:
    """The same model on every rank."""
    torch.manual_seed(0)
    text = scratch_tower(TextConfig(width=32, depth=2, heads=2, max_length=24), CAPTIONS, mask_token=True)
    config = ViViTConfig(frames=4, size=32, width=32, depth=2, heads=2, ff=64)
    model = VideoTextModel(fv.ViViT(config), text, 16, auxiliary=auxiliary).double().train()
    if tuning == "last_layers":
        fv.tune.last_layers(model.video, 1)
    elif tuning == "lora":
        fv.tune.add_lora(model.video, 4)
        model.double()
    elif tuning in ("full", "selective"):
        model.set_grad_checkpointing(policy=tuning)
    return model


def parts(first: int, last: int, images: bool) -> list[ContrastivePart]:
    """Clips ``first`` to ``last`` of a batch under masks, and images with another weight."""
    generator = torch.Generator().manual_seed(1)
    video = torch.rand(LENGTH, 3, 4, 32, 32, dtype=torch.float64, generator=generator)
    still = torch.rand(LENGTH, 3, 32, 32, dtype=torch.float64, generator=generator)
    keep = torch.stack([torch.randperm(8, generator=generator)[:5].sort().values for _ in range(LENGTH)])
    some, seeds = slice(first, last), list(range(first, last))
    found = [ContrastivePart(video[some], CAPTIONS[some], keep=keep[some], weight=2.0, text_seeds=seeds)]
    if images:
        found.append(ContrastivePart(still[some], CAPTIONS[some], weight=0.3, text_seeds=seeds))
    return found


def backward(model: VideoTextModel, batch: list[ContrastivePart], chunk: int, *, gather: bool) -> torch.Tensor:
    """The loss; gradients are left in the model."""
    if chunk:
        return chunked_backward(model, batch, chunk=chunk, gather=gather)["loss"]
    loss = contrastive_losses(model, batch, gather=gather)["loss"]
    loss.backward()
    return loss.detach()


def whole_gradients(model: VideoTextModel) -> dict[str, torch.Tensor | None]:
    """By name, of all ranks."""
    found = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        found[name] = gradient.full_tensor() if gradient is not None and parallel.in_parts(gradient) else gradient
    return found


def gradients(how: str, tuning: str, auxiliary: str | None, images: bool, chunk: int) -> None:
    """Loss, norm, gradients before and after clipping, are those of one process."""
    alone = dual(tuning, auxiliary)
    loss = backward(alone, parts(0, LENGTH, images), 0, gather=False)
    before = whole_gradients(alone)
    norm = parallel.clip_gradients(alone, 0.05, Ranks())
    assert norm > 0.05
    with joined(CPU) as ranks:
        model = dual(tuning, auxiliary)
        if not ranks.first:  # its weights come from rank 0
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(1.0)
        parallel.spread(model, how, ranks)
        held = [parameter for parameter in model.parameters() if parallel.in_parts(parameter)]
        assert bool(held) == (how == "fsdp")
        share = LENGTH // ranks.size
        own = parts(ranks.rank * share, (ranks.rank + 1) * share, images)
        found = ranks.mean(backward(model, own, chunk, gather=True))
        assert abs(found - loss) <= TOLERANCE
        parallel.average_gradients(model, ranks)
        _same(whole_gradients(model), {name: g if g is None else g.clone() for name, g in before.items()}, norm, ranks)
        assert abs(parallel.clip_gradients(model, 0.05, ranks) - norm) <= TOLERANCE
        clipped = whole_gradients(model)
        assert all((g is None) == (clipped[name] is None) for name, g in before.items())
        total = torch.stack([g.square().sum() for g in clipped.values() if g is not None]).sum().sqrt()
        assert abs(total - 0.05) <= 1e-6


def _same(found: dict, clipped: dict, norm: torch.Tensor, ranks: Ranks) -> None:
    scale = 0.05 / (norm + 1e-6)
    for name, gradient in clipped.items():
        assert (found[name] is None) == (gradient is None), name
        if gradient is not None:  # it has been clipped in place since
            worst = (found[name] * scale - gradient).abs().max()
            assert worst <= TOLERANCE, (name, float(worst))


def bfloat16(chunk: int) -> None:
    """Under autocast parts are cast as copies are: the same gradients, to rounding in float32."""
    with joined(CPU) as ranks:
        share, found = LENGTH // ranks.size, {}
        for how in ("ddp", "fsdp"):
            model = dual("last_layers", None).float()
            parallel.spread(model, how, ranks)
            with autocast("bfloat16", CPU, cache=False):  # which rounds a sum over images and clips
                backward(model, parts(ranks.rank * share, (ranks.rank + 1) * share, True), chunk, gather=True)
            parallel.average_gradients(model, ranks)
            found[how] = whole_gradients(model)
        for name, gradient in found["ddp"].items():
            if gradient is not None:
                assert gradient.dtype == found["fsdp"][name].dtype == torch.float32
                torch.testing.assert_close(found["fsdp"][name], gradient, rtol=1e-5, atol=1e-7)


def unused() -> None:
    """A gradient that one rank has counts for all; one that none has stays None."""
    with joined(CPU) as ranks:
        model = torch.nn.ParameterDict({name: torch.ones(3) for name in ("one", "none", "both")})
        if ranks.first:
            model["one"].grad = torch.full((3,), 2.0)
        model["both"].grad = torch.full((3,), float(ranks.rank))
        parallel.average_gradients(model, ranks)
        assert model["none"].grad is None
        assert torch.equal(model["one"].grad, torch.full((3,), 2.0 / ranks.size))
        assert torch.equal(model["both"].grad, torch.full((3,), (ranks.size - 1) / 2))


def eight_bits_and_parts() -> None:
    """What no optimiser can do is refused."""
    from fastvivit.train.optimiser import make_optimiser

    with joined(CPU) as ranks:
        model = dual("all", None)
        parallel.spread(model, "fsdp", ranks)
        try:
            make_optimiser(model, OptimiserConfig(states="8bit"))
        except ValueError as error:
            assert "optimiser.states: wanted 'float32' with run.parallel = 'fsdp', got '8bit'" in str(error)
            return
    raise AssertionError("nothing was refused")


def words() -> None:
    """What ranks say to each other; an error of the one that leads reaches all."""
    with joined(CPU) as ranks:
        assert ranks.largest([float(ranks.rank), -1.0]) == [ranks.size - 1.0, -1.0]
        assert ranks.gather(f"rank {ranks.rank}") == [f"rank {number}" for number in range(ranks.size)]
        assert ranks.lead(lambda: ranks.rank) == 0
        assert torch.equal(ranks.mean(torch.full((2,), float(ranks.rank))), torch.full((2,), (ranks.size - 1) / 2))
        try:
            ranks.lead(lambda: TrainConfig.from_dict({}))
        except ValueError:
            return
    raise AssertionError("the error stayed with rank 0")


def main(job: str, functions: dict) -> None:
    """Do all tasks of a job."""
    torch.set_num_threads(1)
    for name, arguments in json.loads(Path(job).read_text()):
        functions[name](**arguments)
    if dist.is_initialized():  # a run that failed leaves it so
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], globals())
