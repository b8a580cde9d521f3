"""A tuning in a small file of its own."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fastvivit._folders import file_written_whole
from fastvivit.modules.vivit import ViViT
from fastvivit.tune.freeze import require_vivit, trained
from fastvivit.tune.methods import apply

_METADATA = "fastvivit.tuning"


def save(enc: ViViT, file: str | os.PathLike[str]) -> Path:
    """Write what the tuning of ``enc`` trains, and its settings, to one safetensors file: whole or not at all.

    Returns:
        The file.

    Raises:
        ValueError: not a ViViT, one that has not been tuned, one in which more is trainable than its tuning trains.
    """
    require_vivit(enc)
    if enc.tuning is None:
        raise ValueError("enc: wanted an encoder that fastvivit.tune has tuned, got one with tuning None")
    mine = trained(enc, enc.tuning)
    tensors = {name: p.detach().cpu().contiguous() for name, p in enc.named_parameters() if mine(name)}
    more = [name for name, p in enc.named_parameters() if p.requires_grad and name not in tensors]
    if more:
        raise ValueError(f"enc: wanted nothing trainable beside what its tuning trains, got {more}; save_pretrained")
    file = Path(file)
    with file_written_whole(file) as scratch:
        save_file(tensors, scratch, metadata={"format": "pt", _METADATA: json.dumps(enc.tuning)})
    return file


def load(enc: ViViT, file: str | os.PathLike[str]) -> list[nn.Parameter]:
    """Put what ``save`` wrote onto the encoder that was tuned, plain as it was before, or tuned in the same way.

    Nothing changes unless everything fits. That the frozen weights are the same is for the caller to see to.

    Returns:
        The trainable parameters.

    Raises:
        ValueError: not a ViViT, another kind of file, a tuning that does not fit the encoder or is not the one it
            has, names or shapes that do not fit.
    """
    require_vivit(enc)
    tuning, tensors = _read(Path(file))
    if enc.tuning is not None and enc.tuning != tuning:
        raise ValueError(f"enc: wanted one that is not tuned, or tuned by {tuning} as {file}, got {enc.tuning}")
    with torch.device("meta"):
        probe = ViViT(enc.config)
    try:
        apply(probe, tuning)
    except ValueError as error:
        raise ValueError(f"file: its tuning does not fit this encoder: {error}; got {file}") from None
    expected = {name: p.shape for name, p in probe.named_parameters() if p.requires_grad}
    missing, unused = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    shaped = {name for name in expected.keys() & tensors.keys() if expected[name] != tensors[name].shape}
    if missing or unused or shaped:
        raise ValueError(
            f"file: wanted the weights of its tuning for this encoder, got missing {sorted(missing)}, unused "
            f"{sorted(unused)}, of another shape {sorted(shaped)} in {file}"
        )
    if enc.tuning is None:
        apply(enc, tuning)
    with torch.no_grad():
        for name, tensor in tensors.items():
            enc.get_parameter(name).copy_(tensor)
    return [p for p in enc.parameters() if p.requires_grad]


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The settings and the tensors of a file."""
    wanted = "file: wanted one that fastvivit.tune.save wrote"
    if not file.is_file():
        raise ValueError(f"{wanted}, no such file: {file}")
    try:
        with safe_open(file, "pt") as opened:
            tuning = (opened.metadata() or {}).get(_METADATA)
        tensors = load_file(file)
        if tuning is None:
            raise ValueError(f"no {_METADATA!r} in its metadata")
        return json.loads(tuning), tensors
    except (SafetensorError, ValueError, OSError) as error:
        raise ValueError(f"{wanted}, got {file}: {error}") from None
