"""Models as folders: safetensors weights and a JSON config, never a pickle."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from fastvivit._folders import written_whole
from fastvivit.models import ViViTConfig
from fastvivit.modules.dual import VideoTextModel
from fastvivit.modules.text import TextTower
from fastvivit.modules.vivit import ViViT
from fastvivit.tune import apply

CONFIG, WEIGHTS, TEXT = "config.json", "model.safetensors", "text"


def save_pretrained(model: ViViT | VideoTextModel, folder: str | os.PathLike) -> Path:
    """Write ``model`` to ``folder``: config, weights, tuning, and a dual encoder's text config and tokenizer.

    The folder appears whole or not at all: it is written beside its place and renamed.

    Returns:
        The folder.

    Raises:
        ValueError: a model that is neither a ViViT nor a VideoTextModel.
    """
    folder = Path(folder)
    with written_whole(folder) as scratch:
        write_pretrained(model, scratch)
    return folder


def write_pretrained(model: ViViT | VideoTextModel, folder: Path) -> None:
    """Write the files of ``save_pretrained`` into an existing folder."""
    if isinstance(model, VideoTextModel):
        config = {"model": "VideoTextModel", "dim": model.dim, "video": model.video.config.to_dict()}
        pooler = getattr(model.text.model, "pooler", None) is not None
        config["text"] = {"max_length": model.text.max_length, "pooler": pooler}
        model.text.model.config.save_pretrained(folder / TEXT)
        model.text.tokenizer.save_pretrained(folder / TEXT)
    elif isinstance(model, ViViT):
        config = {"model": "ViViT", "video": model.config.to_dict()}
    else:
        raise ValueError(f"model: wanted a ViViT or a VideoTextModel, got {type(model).__name__}")
    encoder = model.video if isinstance(model, VideoTextModel) else model
    if encoder.tuning is not None:
        config["tuning"] = encoder.tuning
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


def load_pretrained(folder: str | os.PathLike) -> ViViT | VideoTextModel:
    """Read a model that ``save_pretrained`` wrote, in eval mode on the CPU.

    An encoder that ``fastvivit.tune`` had tuned is tuned again: the same parameters are frozen.

    Raises:
        ValueError: a folder without a model, an unknown config field or tuning, weights that do not fit.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise ValueError(f"folder: wanted {CONFIG} and {WEIGHTS} in it, got {str(folder)!r}")
    config = json.loads((folder / CONFIG).read_text())
    model: ViViT | VideoTextModel = ViViT(ViViTConfig.from_dict(config["video"]))
    if config.get("tuning") is not None:
        apply(model, config["tuning"])
    if config["model"] == "VideoTextModel":
        model = VideoTextModel(model, _text_tower(folder / TEXT, **config["text"]), config["dim"])
    state = load_file(folder / WEIGHTS)
    expected = model.state_dict()
    missing, unused = expected.keys() - state.keys(), state.keys() - expected.keys()
    shaped = [name for name in expected.keys() & state.keys() if expected[name].shape != state[name].shape]
    if missing or unused or shaped:
        raise ValueError(
            f"folder: wanted the weights of its config, got missing {sorted(missing)}, "
            f"unused {sorted(unused)}, of another shape {sorted(shaped)} in {str(folder)!r}"
        )
    model.load_state_dict(state)
    return model.eval()


def _text_tower(folder: Path, max_length: int, pooler: bool) -> TextTower:
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    with torch.random.fork_rng(devices=[]):
        model = AutoModel.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))
    if not pooler and hasattr(model, "pooler"):
        # Whether there is one is an argument of transformers' classes, not of their configs.
        model.pooler = None
    return TextTower(model, tokenizer, max_length=max_length)
