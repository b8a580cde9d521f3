"""The model that ``--model`` names."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from fastvivit.caption import VideoCaptioner
from fastvivit.modules.dual import VideoTextModel
from fastvivit.pretrained import LANGUAGE, WEIGHTS, Model, load_pretrained
from fastvivit.train.checkpoint import latest_checkpoint
from fastvivit.train.loop import CONFIG, MODEL


def load_model(folder: Path) -> tuple[VideoTextModel, float | None]:
    """A dual encoder, and the pictures per second that it was trained with, where that is known.

    It is in eval mode, on a GPU where there is one.

    Args:
        folder: a run (its final model, or its latest checkpoint), a checkpoint, or a folder of
            ``save_pretrained``.

    Raises:
        ValueError: no model there, or one without a text tower.
    """
    model, fps = _load(folder)
    if not isinstance(model, VideoTextModel):
        raise ValueError(f"model: wanted one with a text tower, got a {type(model).__name__} in {folder}")
    return model, fps


def load_captioner(folder: Path) -> tuple[VideoCaptioner, float | None]:
    """A captioner, as ``load_model`` finds a dual encoder.

    Raises:
        ValueError: no model there, or one without a language model.
    """
    model, fps = _load(folder)
    if not isinstance(model, VideoCaptioner):
        raise ValueError(f"model: wanted a VideoCaptioner, got a {type(model).__name__} in {folder}")
    return model, fps


def _load(folder: Path) -> tuple[Model, float | None]:
    if not folder.is_dir():
        raise ValueError(f"model: wanted the folder of a run or a model, no such folder: {folder}")
    place, fps = folder, None
    if not _holds_model(folder):
        place = folder / MODEL if _holds_model(folder / MODEL) else latest_checkpoint(folder)
        if place is None:
            raise ValueError(f"model: wanted a run or a model, {folder} holds neither weights nor checkpoints")
    for run in (place.parent, place.parent.parent):
        if (run / CONFIG).is_file():
            fps = json.loads((run / CONFIG).read_text(encoding="utf-8")).get("data", {}).get("fps")
            break
    return load_pretrained(place).to("cuda" if torch.cuda.is_available() else "cpu"), fps


def _holds_model(folder: Path) -> bool:
    return (folder / WEIGHTS).is_file() or (folder / LANGUAGE).is_dir()


def clip_fps(given: float | None, known: float | None) -> float:
    """The rate to cut windows at. Raises ``ValueError`` where neither the user nor the run says it."""
    if given is None and known is None:
        raise ValueError("fps: wanted --fps, because this model's folder does not say what it was trained with")
    return given if given is not None else known
