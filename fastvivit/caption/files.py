"""The trained part of a captioner in a folder of its own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from fastvivit._folders import written_whole

if TYPE_CHECKING:
    from fastvivit.caption.captioner import VideoCaptioner

CONFIG, WEIGHTS = "captioner.json", "captioner.safetensors"


def fingerprint(model: nn.Module) -> str:
    """A hash of a model's weights: their names, shapes, dtypes and every bit."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        flat = tensor.detach().cpu().contiguous().view(-1)
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


def settings_of(cap: VideoCaptioner) -> dict[str, Any]:
    """What is needed to build the trained part again, beside the frozen models."""
    resampler = None if cap.resampler is None else cap.resampler.settings
    return {**cap.settings, "resampler": resampler}


def frozen_hashes(cap: VideoCaptioner) -> dict[str, str]:
    """``fingerprint`` of the frozen models. It reads all their weights: of a large language model, for seconds."""
    return {name: fingerprint(model) for name, model in (("video", cap.video), ("lm", cap.lm))}


def write_layers(cap: VideoCaptioner, folder: Path, frozen: dict[str, str] | None = None) -> None:
    """Write the files of ``save_layers`` into an existing folder; ``frozen`` are ``frozen_hashes``, if known."""
    frozen = frozen_hashes(cap) if frozen is None else frozen
    config = {"settings": settings_of(cap), "frozen": frozen}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in cap.trained_state().items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


def save_layers(cap: VideoCaptioner, folder: Path) -> Path:
    """See ``VideoCaptioner.save``."""
    with written_whole(folder) as scratch:
        write_layers(cap, scratch)
    return folder


def read_settings(folder: Path) -> dict[str, Any]:
    """What ``settings_of`` gave for the layers in a folder; ``ValueError`` where there are none."""
    return _config(folder)["settings"]


def load_layers(cap: VideoCaptioner, folder: Path, *, check: bool = True) -> None:
    """See ``VideoCaptioner.load``."""
    config = _config(folder)
    try:
        state = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"folder: wanted {WEIGHTS} of VideoCaptioner.save in {folder}: {error}") from None
    own = settings_of(cap)
    if config["settings"] != own:
        raise ValueError(f"folder: wanted layers of settings {own}, got {config['settings']} in {folder}")
    if check:
        for name, model in (("video", cap.video), ("lm", cap.lm)):
            if fingerprint(model) != config["frozen"][name]:
                raise ValueError(
                    f"{name}: wanted the very weights that the layers in {folder} were trained with, got others; "
                    "check=False loads them all the same"
                )
    expected = cap.trained_state()
    wrong = sorted(expected.keys() ^ state.keys()) + sorted(
        name for name in expected.keys() & state.keys() if expected[name].shape != state[name].shape
    )
    if wrong:
        raise ValueError(f"folder: wanted the weights of its settings, got others for {wrong} in {folder}")
    cap.load_state_dict(state, strict=False)


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text())
        return {name: config[name] for name in ("settings", "frozen")}
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"folder: wanted {CONFIG} of VideoCaptioner.save in {folder}: {error}") from None
