"""Which parameters a tuning trains, and making it so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from fastvivit.modules.dual import VideoTextModel
from fastvivit.modules.vivit import ViViT

_ADDS = {"add_adapters": "adapters", "add_lora": "LoRA"}


def settle(enc: ViViT, tuning: dict[str, Any]) -> list[nn.Parameter]:
    """Freeze and thaw as ``tuning`` says, and note it on the encoder; the trainable parameters."""
    mine, found = trained(enc, tuning), []
    for name, parameter in enc.named_parameters():
        parameter.requires_grad_(mine(name))
        if parameter.requires_grad:
            found.append(parameter)
        else:
            # A gradient that no optimiser clears would be part of every norm that gradients are clipped by.
            parameter.grad = None
    for block, rate in zip(enc.blocks, enc.config.drop_rates, strict=True):
        block.drop_path.rate = rate if block.trains else 0.0
    enc.tuning = tuning
    return found


def trained(enc: ViViT, tuning: dict[str, Any]) -> Callable[[str], bool]:
    """Whether the parameter of a name is trained."""
    method, depth = tuning["method"], len(enc.blocks)
    starts = ["norm.", "pool."] + ["image."] * tuning["images"]
    if method == "last_layers":
        starts += [f"blocks.{i}." for i in range(depth - tuning["k"], depth)]
        inside = ()
    else:
        starts += ["embed."]
        new = {"add_adapters": ".adapter.", "add_lora": ".lora_", "temporal_only": ".extra."}[method]
        inside = (new, ".extra.gate")
    return lambda name: name.startswith(tuple(starts)) or any(part in name for part in inside)


def require_flag(name: str, value: bool) -> None:
    """Raise ``ValueError`` for anything but True and False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}: wanted True or False, got {value!r}")


def added(enc: ViViT) -> str | None:
    """What tuning has put into an encoder, if anything."""
    return None if enc.tuning is None else _ADDS.get(enc.tuning["method"])


def require_vivit(enc: ViViT) -> None:
    """Raise ``ValueError`` for anything but a ViViT."""
    if isinstance(enc, VideoTextModel):
        raise ValueError("enc: wanted a ViViT, got a VideoTextModel; its encoder is model.video")
    if not isinstance(enc, ViViT):
        raise ValueError(f"enc: wanted a ViViT, got {type(enc).__name__}")


def require_plain(enc: ViViT, images: bool) -> None:
    """Raise ``ValueError`` for anything but a ViViT without new modules, and with a path for images if they train."""
    require_vivit(enc)
    if added(enc) is not None:
        hint = "; merge_lora folds it in" if added(enc) == "LoRA" else ""
        raise ValueError(f"enc: wanted an encoder without adapters or LoRA, got one with {added(enc)}{hint}")
    require_flag("images", images)
    if images and enc.image is None:
        raise ValueError("images: wanted an encoder with a path for images, got one with images=False")
