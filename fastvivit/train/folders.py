"""Where runs keep their models, and the model that a folder means."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastvivit.caption.files import WEIGHTS as LAYERS
from fastvivit.pretrained import CONFIG, WEIGHTS
from fastvivit.train.checkpoint import latest_checkpoint

MODEL = "model"


@dataclass(frozen=True, kw_only=True)
class Found:
    """A model on the disk.

    Attributes:
        place: the folder of its weights.
        run: the run that it belongs to, or None.
        settings: what that run's ``config.json`` says; empty without a run.
    """

    place: Path
    run: Path | None
    settings: dict[str, Any]


def find_model(folder: Path, name: str = "model") -> Found:
    """The model that a folder means: a run (its final model, or its latest checkpoint), a checkpoint, or a model.

    Args:
        folder: it.
        name: begins the message of an error.

    Raises:
        ValueError: no model there.
    """
    if not folder.is_dir():
        raise ValueError(f"{name}: wanted the folder of a run or a model, no such folder: {folder}")
    place: Path | None = folder
    if not _has_weights(folder):
        place = folder / MODEL if _has_weights(folder / MODEL) else latest_checkpoint(folder)
        if place is None:
            raise ValueError(f"{name}: wanted a run or a model, {folder} holds neither weights nor checkpoints")
    for run in (place.parent, place.parent.parent):
        # Others have a config.json, too; a run's says where its data is.
        settings = _settings(run)
        if isinstance(settings, dict) and isinstance(settings.get("data"), dict):
            return Found(place=place, run=run, settings=settings)
    return Found(place=place, run=None, settings={})


def _settings(folder: Path) -> Any:
    try:
        return json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _has_weights(folder: Path) -> bool:
    return (folder / WEIGHTS).is_file() or (folder / LAYERS).is_file()
