"""Where weights come from: a model, a state dict, a local folder. Nothing is downloaded, nothing unpickled."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

_CONFIGS = ("config.json", "open_clip_config.json")
_PROCESSORS = ("video_preprocessor_config.json", "preprocessor_config.json")
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)


@dataclass(frozen=True, eq=False, kw_only=True)
class Source:
    """Weights to import, however they came.

    Attributes:
        state: the tensors by name.
        config: the source's configuration as a dict; None where nobody gave one.
        model: the model itself, where one was given: its structure says what no tensor does.
        folder: the folder it was read from.
    """

    state: dict[str, Tensor]
    config: dict[str, Any] | None
    model: nn.Module | None = None
    folder: Path | None = None

    def preprocessing(self) -> tuple[list[float], list[float]] | None:
        """Mean and std, in units of 0..1, that the folder's own image processor amounts to; None if unsaid.

        Processors may rescale by another factor than 1/255 and shift by -1 before they normalise; ViViT's
        published ones do all three, so their pixels lie in -3..1.
        """
        files = [] if self.folder is None else [self.folder / name for name in _PROCESSORS]
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            return None
        options = json.loads(file.read_text())
        scale = 255 * options.get("rescale_factor", 1 / 255) if options.get("do_rescale", True) else 255.0
        shift = 1.0 if options.get("offset") else 0.0
        mean, std = options.get("image_mean"), options.get("image_std")
        if not options.get("do_normalize", True) or mean is None or std is None:
            mean, std = [0.0], [1.0]
        mean, std = (list(v) if isinstance(v, list) else [v] for v in (mean, std))
        return [(m + shift) / scale for m in mean], [s / scale for s in std]


def read_source(model_or_folder: Any, config: Any = None) -> Source:
    """Tensors and configuration of a model, a state dict or a local folder.

    Args:
        model_or_folder: an ``nn.Module``, a mapping of names to tensors, or the path of a folder with
            ``config.json`` and safetensors or ``pytorch_model.bin`` (whole or in shards).
        config: a transformers config or a dict; wins over what the model or the folder says.

    Raises:
        ValueError: anything else, a folder without weights, a state dict with more than tensors in it.
    """
    settings = _as_dict(config)
    if isinstance(model_or_folder, nn.Module):
        model = _unwrapped(model_or_folder)
        if settings is None and hasattr(getattr(model, "config", None), "to_dict"):
            settings = model.config.to_dict()
        return Source(state=model.state_dict(), config=settings, model=model)
    if isinstance(model_or_folder, Mapping):
        return Source(state=_tensors(model_or_folder), config=settings)
    if isinstance(model_or_folder, str | os.PathLike):
        folder = Path(model_or_folder)
        file = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
        if file is None:
            raise ValueError(
                f"model_or_folder: wanted a local folder with model.safetensors or pytorch_model.bin "
                f"(nothing is downloaded), got {str(folder)!r}"
            )
        saved = next((folder / name for name in _CONFIGS if (folder / name).is_file()), None)
        if settings is None and saved is not None:
            settings = json.loads(saved.read_text())
        return Source(state=_tensors(_read(file)), config=settings, folder=folder)
    raise ValueError(
        f"model_or_folder: wanted a model, a state dict or the path of a folder, got {type(model_or_folder).__name__}"
    )


def _as_dict(config: Any) -> dict[str, Any] | None:
    if config is None:
        return None
    if isinstance(config, Mapping):
        return dict(config)
    if hasattr(config, "to_dict"):
        return config.to_dict()
    raise ValueError(f"config: wanted a transformers config or a dict, got {type(config).__name__}")


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model that ``torch.compile`` or a data-parallel wrapper holds: their names carry a prefix."""
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    return getattr(model, "_orig_mod", model)


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"model_or_folder: wanted tensors in the state dict, got {type(value).__name__} at {name!r}"
            )
    return dict(state)


def _read(file: Path) -> dict[str, Any]:
    if file.name.endswith(".index.json"):
        shards = sorted(set(json.loads(file.read_text())["weight_map"].values()))
        return {name: value for shard in shards for name, value in _read(file.parent / shard).items()}
    if file.suffix == ".safetensors":
        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True)
