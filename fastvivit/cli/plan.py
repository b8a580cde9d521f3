"""``fastvivit plan``: memory and time of a training step, before it runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fastvivit.models import ViViTConfig
from fastvivit.planning import plan
from fastvivit.planning.sizes import parse_bytes

_MODELS = {
    "tiny": ViViTConfig.tiny,
    "small": ViViTConfig.small,
    "base": ViViTConfig.base,
    "large": ViViTConfig.large,
}


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Predict memory and time of a contrastive training step, the largest batch that fits, and what to turn.

    Of a training config, or of a model with the options below; an option that is given goes before the config's
    field, for every part of a mixed batch. Nothing runs on a device; time is a roofline with assumed efficiencies.

    Attributes:
        config: a training config; docs: fastvivit.train.TrainConfig.
        model: the encoder, where there is no config; by default base.
        attention: which tokens see each other, where there is no config; by default joint.
        frames: of a clip.
        size: of a frame in pixels.
        mask: share of the tokens that are dropped, such as 0.75.
        tuning: all, last_4, adapters, lora, temporal; a number after _ is blocks, width or rank.
        batch: clips a step; parts of a mixed batch keep their shares.
        chunk: clips a pass; 0 is the whole batch.
        prefix: where frozen blocks' outputs wait.
        checkpointing: what blocks keep for the backward.
        offload: what checkpointing keeps waits on the host.
        states: of AdamW.
        precision: of products.
        text: the text tower.
        images: a batch of images instead of clips.
        pixels: whole clips on the device, or their kept tubelets alone.
        batch_on: where the batch's pixels are.
        gpu_mem: memory that may be used, such as 16GB or 16GiB; by default all of the device's.
        device: what to predict for.
        steps: of the run: also predict its days.
        override: a change to the config, such as optimiser.lr=1e-4; may be given several times.
        json: print one JSON object.
    """

    config: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[CONFIG.toml]")] = None
    model: Literal["tiny", "small", "base", "large"] | None = None
    attention: Literal["joint", "factorised", "frame", "tubes"] | None = None
    frames: int | None = None
    size: int | None = None
    mask: float | None = None
    tuning: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    batch: int | None = None
    chunk: int | None = None
    prefix: Literal["device", "host", "off"] | None = None
    checkpointing: Literal["none", "selective", "full"] | None = None
    offload: bool = False
    states: Literal["float32", "8bit"] | None = None
    precision: Literal["bfloat16", "float32"] | None = None
    text: Literal["none", "bert-medium", "bert-base"] | None = None
    images: bool = False
    pixels: Literal["clips", "tubelets"] | None = None
    batch_on: Literal["device", "host"] | None = None
    gpu_mem: Annotated[str | None, tyro.conf.arg(metavar="16GB")] = None
    device: Literal["a100", "a100-40gb", "h100", "h200", "b200", "rtx4090"] = "h100"
    steps: int | None = None
    override: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="A.B=C")] = ()
    json: bool = False


def run(arguments: list[str]) -> int:
    """Print the plan. 0: it fits; 1: it does not."""
    options = tyro.cli(PlanOptions, prog="fastvivit plan", args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
    if options.config is not None:
        for name in ("model", "attention"):
            if getattr(options, name) is not None:
                raise ValueError(f"{name}: wanted none beside {options.config}, which has its own (--override model.…)")
        from fastvivit.train import TrainConfig

        config = TrainConfig.from_toml(options.config, options.override)
    elif options.override:
        raise ValueError("override: wanted a CONFIG.toml to change, got none")
    else:
        config = _MODELS[options.model or "base"](attention=options.attention or "joint")
    found = plan(
        config,
        frames=options.frames,
        size=options.size,
        mask_ratio=options.mask,
        tuning=options.tuning,
        batch=options.batch,
        chunk=options.chunk,
        prefix=options.prefix,
        checkpointing=options.checkpointing,
        offload=options.offload or None,
        states=options.states,
        precision=options.precision,
        text=options.text,
        images=options.images or None,
        pixels=options.pixels,
        batch_on=options.batch_on,
        device=options.device,
        gpu_memory=None if options.gpu_mem is None else parse_bytes(options.gpu_mem, "gpu-mem"),
        steps=options.steps,
    )
    print(json.dumps(found.to_dict(), indent=2) if options.json else found)
    return 0 if found.fits else 1
