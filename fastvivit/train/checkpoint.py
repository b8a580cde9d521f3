"""Checkpoints as folders: each appears whole or not at all, and holds all that an exact resume needs.

``<run>/checkpoints/step-00000100/`` is a model that ``fastvivit.load_pretrained`` reads (of a captioner its new layers
alone, for ``VideoCaptioner.load``: the frozen rest is elsewhere and would be the same in each), beside
``training.safetensors`` (the optimiser's state and the states of the random generators) and ``training.json``
(step, position in the data, config). It is written under another name, flushed to the disk and renamed; which
one is the latest is found by listing, so there is no pointer that could be wrong.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fastvivit._folders import written_whole
from fastvivit.caption import VideoCaptioner
from fastvivit.caption.files import write_layers
from fastvivit.pretrained import WEIGHTS, load_weights, write_pretrained
from fastvivit.train.optimiser import load_optimiser, optimiser_tensors
from fastvivit.train.parallel import gathered, parts_of, whole_weights
from fastvivit.train.ranks import Ranks

FOLDER, TENSORS, STATE = "checkpoints", "training.safetensors", "training.json"
_NAME = re.compile(r"step-(\d{8,})")
_FORMAT = 1


def checkpoints(run: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first."""
    found = [path for path in (run / FOLDER).glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def latest_checkpoint(run: Path) -> Path | None:
    """The newest finished checkpoint of a run, or None."""
    found = checkpoints(run)
    return found[-1] if found else None


def save_checkpoint(
    run: Path,
    step: int,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    state: dict[str, Any],
    *,
    keep_last: int = 3,
    frozen: dict[str, str] | None = None,
    ranks: Ranks | None = None,
) -> Path:
    """Write the checkpoint of ``step``, then remove all but the last ``keep_last``.

    Killed at any instant, it leaves the checkpoints before it as they were. Of several ranks the first writes, when it
    has what the others hold: the files are those of one process, but for a state of the random generators each.

    Args:
        run: the run's folder.
        step: steps taken.
        model: a ``VideoTextModel``, ``ViViT`` or ``VideoCaptioner``.
        optimiser: its optimiser.
        state: anything else, as plain JSON.
        keep_last: how many stay.
        frozen: hashes of a captioner's frozen models, ``frozen_hashes``, if they are known already.
        ranks: of the run; all of them call this.

    Returns:
        The checkpoint's folder.
    """
    target, ranks = run / FOLDER / f"step-{step:08d}", ranks or Ranks()
    if ranks.lead(target.exists):  # made by this run at this very step, or by the one that it goes on with
        return target
    weights = whole_weights(model, ranks)
    tensors = gathered(optimiser_tensors(model, optimiser), ranks)
    random = ranks.gather(_random_states())
    if not ranks.first:
        return target
    for rank, states in enumerate(random):
        tensors |= {f"random/{name}" if ranks.alone else f"random/{rank}/{name}": t for name, t in states.items()}
    with written_whole(target) as scratch:
        if isinstance(model, VideoCaptioner):
            write_layers(model, scratch, frozen)
        else:
            write_pretrained(model, scratch, weights)
        save_file(tensors, scratch / TENSORS)
        (scratch / STATE).write_text(json.dumps({"format": _FORMAT, "step": step} | state, indent=2) + "\n")
    for old in checkpoints(run)[:-keep_last]:
        # Renamed first: a kill half-way through a removal must not leave something that looks finished.
        gone = old.with_name(f".{old.name}-removed")
        old.rename(gone)
        shutil.rmtree(gone)
    return target


def save_model(folder: Path, model: nn.Module, ranks: Ranks) -> None:
    """``fastvivit.save_pretrained`` of a model of which ranks may hold parts; all of them call this."""
    weights = whole_weights(model, ranks)
    if ranks.first:
        with written_whole(folder) as scratch:
            write_pretrained(model, scratch, weights)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint.

    Raises:
        ValueError: a folder without one, or of another format.
    """
    try:
        state = json.loads((checkpoint / STATE).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"checkpoint: {checkpoint} has no readable {STATE}: {error}") from None
    if state.get("format") != _FORMAT:
        raise ValueError(f"checkpoint: wanted format {_FORMAT}, got {state.get('format')!r} in {checkpoint}")
    return state


def load_checkpoint(
    checkpoint: Path, model: nn.Module, optimiser: torch.optim.Optimizer, ranks: Ranks | None = None
) -> bool:
    """Put a checkpoint's weights, optimiser state and random states in place; every rank reads it.

    Returns:
        Whether it has random states for so many ranks; those of another number of them are left out.

    Raises:
        ValueError: weights or state that do not fit the model, or can't be read.
    """
    try:
        tensors = load_file(checkpoint / TENSORS)
        if isinstance(model, VideoCaptioner):
            model.load(checkpoint)
        else:
            weights = parts_of(load_file(checkpoint / WEIGHTS), model)
            load_weights(model, weights, f"checkpoint: {checkpoint}")
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"checkpoint: {checkpoint} can't be loaded: {error}") from error
    random = {name: tensors.pop(name) for name in list(tensors) if name.startswith("random/")}
    load_optimiser(model, optimiser, tensors)
    ranks = ranks or Ranks()
    saved = sum(name.endswith("/cpu") for name in random)
    if saved != ranks.size:
        return False
    own = "random" if ranks.alone else f"random/{ranks.rank}"
    torch.set_rng_state(random[f"{own}/cpu"])
    if f"{own}/cuda" in random and torch.cuda.is_available():
        torch.cuda.set_rng_state(random[f"{own}/cuda"])
    return True


def remove_scratch(run: Path) -> None:
    """Remove what killed writers left."""
    for path in (*(run / FOLDER).glob(".step-*"), *run.glob(".language-*"), *run.glob(".model-*")):
        shutil.rmtree(path, ignore_errors=True)
    for name in (".config.json-*", ".metrics.jsonl-*"):
        for path in run.glob(name):
            path.unlink(missing_ok=True)


def _random_states() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states
