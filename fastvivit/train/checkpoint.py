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
) -> Path:
    """Write the checkpoint of ``step``, then remove all but the last ``keep_last``.

    Killed at any instant, it leaves the checkpoints before it as they were.

    Args:
        run: the run's folder.
        step: steps taken.
        model: a ``VideoTextModel``, ``ViViT`` or ``VideoCaptioner``.
        optimiser: its optimiser.
        state: anything else, as plain JSON.
        keep_last: how many stay.
        frozen: hashes of a captioner's frozen models, ``frozen_hashes``, if they are known already.

    Returns:
        The checkpoint's folder.
    """
    target = run / FOLDER / f"step-{step:08d}"
    if target.exists():  # made by this run at this very step, or by the one that it goes on with
        return target
    with written_whole(target) as scratch:
        if isinstance(model, VideoCaptioner):
            write_layers(model, scratch, frozen)
        else:
            write_pretrained(model, scratch)
        tensors = optimiser_tensors(model, optimiser) | _random_states()
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, scratch / TENSORS)
        (scratch / STATE).write_text(json.dumps({"format": _FORMAT, "step": step} | state, indent=2) + "\n")
    for old in checkpoints(run)[:-keep_last]:
        # Renamed first: a kill half-way through a removal must not leave something that looks finished.
        gone = old.with_name(f".{old.name}-removed")
        old.rename(gone)
        shutil.rmtree(gone)
    return target


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


def load_checkpoint(checkpoint: Path, model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Put a checkpoint's weights, optimiser state and random states in place.

    Raises:
        ValueError: weights or state that do not fit the model, or can't be read.
    """
    try:
        tensors = load_file(checkpoint / TENSORS)
        if isinstance(model, VideoCaptioner):
            model.load(checkpoint)
        else:
            load_weights(model, load_file(checkpoint / WEIGHTS), f"checkpoint: {checkpoint}")
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"checkpoint: {checkpoint} can't be loaded: {error}") from error
    random = {name: tensors.pop(name) for name in list(tensors) if name.startswith("random/")}
    load_optimiser(model, optimiser, tensors)
    torch.set_rng_state(random["random/cpu"])
    if "random/cuda" in random and torch.cuda.is_available():
        torch.cuda.set_rng_state(random["random/cuda"])


def remove_scratch(run: Path) -> None:
    """Remove what killed writers left."""
    for path in (*(run / FOLDER).glob(".step-*"), *run.glob(".language-*"), *run.glob(".model-*")):
        shutil.rmtree(path, ignore_errors=True)
    for name in (".config.json-*", ".metrics.jsonl-*"):
        for path in run.glob(name):
            path.unlink(missing_ok=True)


def _random_states() -> dict[str, Tensor]:
    states = {"random/cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["random/cuda"] = torch.cuda.get_rng_state()
    return states
