"""The training loop."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fastvivit
from fastvivit._folders import file_written_whole
from fastvivit.caption import VideoCaptioner
from fastvivit.caption.files import frozen_hashes
from fastvivit.data import MixSampler
from fastvivit.data.dataset import Failure
from fastvivit.data.quarantine import QUARANTINE, Quarantine
from fastvivit.data.seeds import sample_seed
from fastvivit.pretrained import CONFIG
from fastvivit.train.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    read_state,
    remove_scratch,
    save_checkpoint,
    save_model,
)
from fastvivit.train.config import TrainConfig
from fastvivit.train.folders import MODEL
from fastvivit.train.interrupts import interrupts
from fastvivit.train.journal import Journal, Silence
from fastvivit.train.loading import make_loader, make_sampler
from fastvivit.train.meter import Meter
from fastvivit.train.optimiser import make_optimiser, widen_masters
from fastvivit.train.parallel import spread
from fastvivit.train.ranks import Ranks, joined
from fastvivit.train.report import write_report
from fastvivit.train.shortage import shortages_explained
from fastvivit.train.stages import Stage, make_stage
from fastvivit.train.stages.base import Scored
from fastvivit.train.starvation import Starvation, usable_cores
from fastvivit.train.step import train_step


def fit(
    config: TrainConfig,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    quiet: bool = False,
    name: str = "train",
) -> Path:
    """Train, and leave everything in one folder.

    ``config.json``, ``metrics.jsonl`` (each step once), ``events`` (TensorBoard), ``checkpoints``,
    ``quarantine.jsonl`` (files that can't be read, where there are some), and at the
    end ``model`` (for ``fastvivit.load_pretrained``) and ``report.html``. Killed at any instant and resumed,
    a run gives the same losses, to the bit, on the same machine.

    Started by ``torchrun`` with several processes, it is the same run: each takes its part of every batch, and losses
    and gradients are those of one process, to rounding. Rank 0 alone writes and prints.

    Args:
        config: the run.
        out: its folder; made if it doesn't exist.
        resume: go on with the run in ``out`` from its latest checkpoint, or begin where there is none yet.
        quiet: print nothing.
        name: what the console calls the run.

    Returns:
        ``out``.

    Raises:
        ValueError: a folder that holds a run already (without ``resume``), or one with other settings; bad
            data.
        OutOfMemory: a step needed more memory than there is; the message says what to turn.
        NonFiniteLoss: the loss or gradient became NaN or infinite; the checkpoints before it are intact.
        KeyboardInterrupt: Ctrl-C or SIGTERM; a checkpoint has been written.
    """
    device = choose_device(config)
    with joined(device) as ranks:
        return _fit(config, Path(out), ranks, device, resume=resume, quiet=quiet, name=name)


def _fit(
    config: TrainConfig, out: Path, ranks: Ranks, device: torch.device, *, resume: bool, quiet: bool, name: str
) -> Path:
    stage = make_stage(config)
    if not (ranks.alone or stage.spreads):
        raise ValueError(f"stage: wanted one process for {config.stage!r}, got {ranks.size}")
    config = stage.config  # what was left out is said
    stage.ranks = ranks
    sampler = make_sampler(stage)
    devices = [torch.cuda.current_device()] if device.type == "cuda" else []
    # The caller's random numbers are none of ours, and ours none of the caller's.
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(config.seed)
        model = stage.build(out).to(device)
        widened = widen_masters(model)
        spread(model, config.run.parallel, ranks)
        optimiser = make_optimiser(model, config.optimiser)
        # Only now: a mistake in the config leaves no folder behind that would have to be resumed.
        checkpoint = ranks.lead(lambda: _prepare(config, out, resume))
        with torch.random.fork_rng(devices=devices):
            stage.prepare(model, out, quiet=quiet)
        step, broken, random = 0, {}, ranks.alone
        if checkpoint is not None:
            state = read_state(checkpoint)
            step = state["step"]
            broken = {(source, index): Failure(index, *rest) for source, index, *rest in state["broken"]}
            for (source, _), failure in broken.items():
                stage.sources[source].record_failures([failure])
            sampler.load_state_dict(state["sampler"])
            random = load_checkpoint(checkpoint, model, optimiser, ranks)
        if not random:
            torch.manual_seed(sample_seed(config.seed, step, ranks.rank, "ranks"))  # each rank drops other things
        journal = Silence()
        if ranks.first:
            journal = Journal(
                out,
                start=step,
                steps=config.steps,
                log_every=config.run.log_every,
                tensorboard=config.run.tensorboard,
                headline=stage.headline,
                quiet=quiet,
                name=name,
            )
        if widened:
            journal.say(f"loaded in 16 bits and trained in float32: {', '.join(widened)}")
        for remark in stage.remarks:
            journal.say(remark)
        run = _Run(
            stage=stage,
            out=out,
            device=device,
            sampler=sampler,
            model=model,
            optimiser=optimiser,
            journal=journal,
            meter=Meter(stage, model, device),
            starvation=Starvation(config.data.workers, usable_cores(), cached=config.data.cache),
            quarantine=Quarantine(out / QUARANTINE) if ranks.first else None,
            step=step,
            broken=broken,
        )
        try:
            evaluation = run.loop()
        finally:
            journal.close()
    save_model(out / MODEL, model, ranks)
    if ranks.first:
        stage.finish(out / MODEL)
        write_report(out, stage, evaluation, list(run.broken.values()), device)
    ranks.meet()  # who goes on finds everything
    return out


@dataclass(kw_only=True)
class _Run:
    """The moving parts of a run.

    ``broken`` holds the files that could not be read, by source and entry; ``frozen`` the hashes of a captioner's
    frozen models.
    """

    stage: Stage
    out: Path
    device: torch.device
    sampler: MixSampler
    model: nn.Module
    optimiser: torch.optim.Optimizer
    journal: Journal | Silence
    meter: Meter
    starvation: Starvation
    quarantine: Quarantine | None
    step: int
    broken: dict[tuple[int, int], Failure]
    frozen: dict[str, str] | None = None

    @property
    def config(self) -> TrainConfig:
        """The run's."""
        return self.stage.config

    @property
    def ranks(self) -> Ranks:
        """The run's."""
        return self.stage.ranks

    def loop(self) -> Scored | None:
        """Take the steps that are left; the scores of the last one, where there are held-out clips."""
        self._note_broken(0, self.stage.failures)
        if self.step == self.config.steps:
            return self._evaluate(last=True)  # resumed after its last step
        with interrupts() as interrupted:
            began = time.monotonic()
            for batches in make_loader(self.stage, self.sampler, self.device):
                waited = time.monotonic() - began
                with self._shortages("the first step"):
                    began += self.meter.prepare(batches)
                evaluation = self._take(batches, began, waited)
                last = self.step == self.config.steps
                stopped = bool(self.ranks.largest([len(interrupted)])[0])
                if last or stopped or self.step % self.config.run.save_every == 0:
                    self._save()
                if last:
                    return evaluation
                if stopped:
                    self.ranks.meet()  # torchrun ends the rank that still writes when another one is gone
                    self.journal.say(f"interrupted at step {self.step}; saved, resume goes on from there")
                    raise KeyboardInterrupt
                began = time.monotonic()
        raise AssertionError("the sampler has no end")

    def _take(self, batches: Sequence[dict[str, Any]], began: float, waited: float) -> Scored | None:
        """One step and its line in the journal, with scores where they are due."""
        config = self.config
        waited, *failed = self.ranks.largest([waited, *(len(batch["failures"]) for batch in batches)])
        if any(failed):
            for found in self.ranks.gather([(batch["source"], batch["failures"]) for batch in batches]):
                for source, failures in found:
                    self._note_broken(source, failures)
        with self._shortages(f"step {self.step + 1}"):
            values = train_step(self.model, self.optimiser, batches, self.step, self.stage, self.device)
        row: dict[str, Any] = {"step": self.step + 1, "epoch": self.sampler.epoch, **values}
        self.sampler.advance()
        self.step += 1
        row |= {"broken": len(self.broken)} | self.meter.row(batches, time.monotonic() - began, waited)
        every = config.run.eval_every
        last = self.step == config.steps
        due = last or (every and self.step % every == 0)
        evaluation = self._evaluate(last=last) if due else None
        if evaluation is not None:
            row |= {f"eval_{name}": value for name, value in evaluation.scores.items()}
        self.journal.step(row)
        hungry = self.starvation.note(row)
        if hungry is not None:
            self.journal.say(hungry)
        return evaluation

    def _evaluate(self, *, last: bool) -> Scored | None:
        with self._shortages("evaluation"):
            return self.stage.evaluate(self.model, last=last)

    def _shortages(self, what: str) -> AbstractContextManager[None]:
        return shortages_explained(what, self.config, self.device, self.out)

    def _note_broken(self, source: int, failures: Sequence[Failure]) -> None:
        self.stage.sources[source].record_failures(failures)
        for failure in failures:
            if (source, failure.index) not in self.broken:
                self.broken[source, failure.index] = failure
                if self.quarantine is not None:
                    self.quarantine.add(self.stage.sources[source].entries[failure.index], failure.reason)
                self.journal.say(f"broken file, replaced ({len(self.broken)} so far): {failure.reason}")

    def _save(self) -> None:
        state = {
            "sampler": self.sampler.state_dict(),
            "broken": [[source, *failure] for (source, _), failure in self.broken.items()],
            "config": self.config.to_dict(),
            "versions": {"fastvivit": fastvivit.__version__, "torch": torch.__version__},
        }
        self.journal.sync()  # first: a resumed run appends to the lines up to its checkpoint
        if self.frozen is None and isinstance(self.model, VideoCaptioner):
            self.frozen = frozen_hashes(self.model)  # once: they don't change, and may be billions of weights
        save_checkpoint(
            self.out,
            self.step,
            self.model,
            self.optimiser,
            state,
            keep_last=self.config.run.keep_last,
            frozen=self.frozen,
            ranks=self.ranks,
        )


def choose_device(config: TrainConfig) -> torch.device:
    """The device of a run. Raises ``ValueError`` for a GPU that isn't there."""
    if config.run.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("run.device: wanted a CUDA device that torch can use, found none; 'auto' takes what there is")
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(automatic if config.run.device == "auto" else config.run.device)


def _prepare(config: TrainConfig, out: Path, resume: bool) -> Path | None:
    """Make the folder, or check that it holds this very run; the checkpoint to go on from, if any."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: wanted a folder, {out} is a file")
    fields, file = config.to_dict(), out / CONFIG
    if file.is_file():
        if not resume:
            raise ValueError(f"out: {out} holds a run already; resume it, or name another folder")
        # Read as a config: a run from before a field existed has its default.
        before = TrainConfig.from_dict(json.loads(file.read_text(encoding="utf-8"))).to_dict()
        changed = [name for name in fields if name not in ("run", "memory") and fields[name] != before[name]]
        if changed:
            raise ValueError(
                f"resume: wanted the settings of the run in {out}, these tables or fields differ: {', '.join(changed)}"
            )
    with file_written_whole(file) as partial:
        partial.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    remove_scratch(out)
    return latest_checkpoint(out)
