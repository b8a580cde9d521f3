"""The dual encoder that a run begins with: from scratch, from an earlier run, from an image model."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import fastvivit.functional as F
from fastvivit import tune
from fastvivit.convert import from_image_vit
from fastvivit.models import ViViTConfig
from fastvivit.modules.auxiliary import AuxiliaryConfig, make_head
from fastvivit.modules.dual import VideoTextModel
from fastvivit.modules.embed import PatchEmbed, TubesEmbed
from fastvivit.modules.vivit import ViViT
from fastvivit.pretrained import CONFIG, load_pretrained
from fastvivit.train.build import build_encoder, build_text
from fastvivit.train.config import TrainConfig, check_encoder
from fastvivit.train.folders import find_model
from fastvivit.train.memory import apply_memory
from fastvivit.train.tables import TuningConfig
from fastvivit.train.words import learn_words
from fastvivit.tune.freeze import settle


def load_dual_start(config: TrainConfig) -> ViViT | VideoTextModel | None:
    """What a contrastive run starts from, for clips of the run's frames, in eval mode; None from scratch.

    An encoder that the stage "images" has trained has its tubelets and positions made from those of images.

    Raises:
        ValueError: no such model, one of another kind, ``model`` or ``text.folder`` beside one that has its own,
            another loss or width of the shared space than it has, fewer frames than there are.
    """
    if config.start is None:
        return None
    folder = Path(config.start)
    if _is_image_model(folder):
        return _from_images(folder, config)
    found = find_model(folder, "start")
    model = load_pretrained(found.place)
    if not isinstance(model, ViViT | VideoTextModel):
        raise ValueError(
            f"start: wanted a ViViT, a VideoTextModel or an image ViT for stage {config.stage!r}, got a "
            f"{type(model).__name__} in {found.place}"
        )
    encoder = model.video if isinstance(model, VideoTextModel) else model
    if config.model is not None:
        raise ValueError(f"model: wanted None with a start that has its own encoder ({found.place}), got one")
    check_encoder(encoder.config, config)
    if isinstance(model, VideoTextModel):
        _require_no_other(model, config, found.place)
    if found.settings.get("stage") == "images" and config.stage != "images":
        begin_from_images(encoder, config.init.inflate, config.init.time_std)
    if config.frames is not None and config.frames != encoder.config.frames:
        if config.frames < encoder.config.frames:
            raise ValueError(
                f"frames: wanted at least the {encoder.config.frames} of the encoder in {found.place}, got "
                f"{config.frames}"
            )
        encoder.extend_frames(config.frames, config.init.extend)
    return model


def build_dual(
    config: TrainConfig, start: ViViT | VideoTextModel | None, captions: Iterable[str], *, images: bool, clips: bool
) -> VideoTextModel:
    """The dual encoder of a run on the CPU, in train mode, what is not trained frozen.

    Args:
        config: the run.
        start: of ``load_dual_start``.
        captions: of the training samples; a text tower from scratch takes its vocabulary from them, and one that a
            run began from scratch learns their new words.
        images: whether there are images to train on. Without, the path for them is left out of an encoder from
            scratch, and frozen in another.
        clips: whether there are clips; without, the path for them is frozen.

    Raises:
        ValueError: images for an encoder without a path for them; a text folder without a model or tokenizer; an
            auxiliary head that does not fit the text tower; a tuning that does not fit the encoder.
        ImportError: transformers is not installed.
    """
    if isinstance(start, VideoTextModel):
        model = start
        # An auxiliary head predicts words, and those that it knows are as many as it has rows.
        if config.tuning.text and model.auxiliary is None:
            learn_words(model.text, captions)
        _set_auxiliary(model, config.auxiliary)
    else:
        if config.text.folder is None and not config.tuning.text:
            raise ValueError("tuning.text: wanted true for a text tower from scratch, got false")
        # Text first: an encoder is drawn with the same random numbers whichever tower stands beside it.
        text = build_text(config, captions)
        encoder = build_encoder(config.model, config.init, images=images) if start is None else start
        model = VideoTextModel(encoder, text, config.dim, config.auxiliary, loss=config.loss or "infonce")
    video = model.video
    if images and video.image is None:
        raise ValueError("model.images: wanted a path for the images of data.sources, got an encoder without")
    tune_encoder(video, config.tuning, images=images)
    if config.tuning.method == "all":
        _freeze(video.image, not images)
        _freeze(video.embed, not clips)
    if not config.tuning.text:
        _freeze(model.text, True)
    apply_memory(model, config.memory)
    return model.train()


def tune_encoder(encoder: ViViT, config: TuningConfig, *, images: bool) -> None:
    """Freeze an encoder but for what is trained; LoRA of an earlier stage is folded in, adapters go on.

    Raises:
        ValueError: adapters of an earlier stage and another method or width now; what ``fastvivit.tune`` refuses.
    """
    before = None if encoder.tuning is None else encoder.tuning["method"]
    if before == "add_lora":
        tune.merge_lora(encoder)
    if before == "add_adapters":
        if config.method != "adapters":
            raise ValueError(f"tuning.method: wanted 'adapters' for an encoder that has them, got {config.method!r}")
        width = encoder.tuning["width"]
        if config.width not in (None, width):
            raise ValueError(f"tuning.width: wanted None or the {width} of the adapters of start, got {config.width}")
        settle(encoder, encoder.tuning | {"images": images})
        return
    if config.method == "all":
        encoder.requires_grad_(True)
        encoder.tuning = None
        for block, rate in zip(encoder.blocks, encoder.config.drop_rates, strict=True):
            block.drop_path.rate = rate  # those of blocks that were frozen are 0
    elif config.method == "last_layers":
        if config.layers > len(encoder.blocks):
            raise ValueError(f"tuning.layers: wanted at most the encoder's {len(encoder.blocks)}, got {config.layers}")
        tune.last_layers(encoder, config.layers, images=images)
    elif config.method == "adapters":
        tune.add_adapters(encoder, config.width, images=images)
    elif config.method == "lora":
        tune.add_lora(encoder, config.rank, images=images)
    else:
        tune.temporal_only(encoder, images=images)


@torch.no_grad()
def begin_from_images(encoder: ViViT, inflate: str, time_std: float) -> None:
    """Make an encoder's path for clips from its path for images (paper, section 3.1 and appendix A).

    Kernels are inflated, positions repeated over time, with a random offset a slot.

    Args:
        encoder: changed in place.
        inflate: as ``F.inflate``'s ``how``.
        time_std: of the offsets, drawn from PyTorch's default generator.

    Raises:
        ValueError: an encoder without a path for images.
    """
    image = encoder.image
    if image is None:
        raise ValueError("start: wanted an encoder with a path for images, got images=False")
    tubes = isinstance(encoder.embed, TubesEmbed)
    for tube in encoder.embed.tubes if tubes else [encoder.embed]:
        _inflate(tube, image, inflate)
    encoder.embed.offset_times_(time_std)


def _inflate(embed: PatchEmbed, image: PatchEmbed, how: str) -> None:
    t, *size = embed.weight.shape[2:]
    embed.weight.copy_(F.inflate(image.weight, t, size=tuple(size), how=how))
    embed.bias.copy_(image.bias)
    slots, height, width = embed.grid
    table = F.resize_positions(image.pos, image.grid, (1, height, width))
    if embed.pos_time is not None:
        embed.pos.copy_(table)
        embed.pos_time.zero_()
    else:
        embed.pos.copy_(table.repeat(slots, 1))


def _require_no_other(model: VideoTextModel, config: TrainConfig, place: Path) -> None:
    """Refuse another text tower, loss or width than a model has: it would be left as it is, and nobody told."""
    if config.text.folder is not None:
        raise ValueError(
            f"text.folder: wanted None with a start that has its own text tower ({place}), got {config.text.folder!r}"
        )
    if config.loss not in (None, model.loss):
        raise ValueError(f"loss: wanted None or {model.loss!r}, which {place} was trained with, got {config.loss!r}")
    if config.dim not in (TrainConfig.dim, model.dim):
        raise ValueError(f"dim: wanted the {model.dim} of {place}, or none said, got {config.dim}")


def _set_auxiliary(model: VideoTextModel, config: AuxiliaryConfig) -> None:
    """The auxiliary loss that a run asks for: with the head that is there if it is of the same kind, or a new one."""
    head = model.auxiliary
    if head is not None and replace(head.config, weight=config.weight, mlm_ratio=config.mlm_ratio) == config:
        head.config = config
    else:
        model.auxiliary = make_head(config, model.video, model.text)


def _is_image_model(folder: Path) -> bool:
    """Whether a folder holds a model of transformers, which names its type; ours and runs do not."""
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(settings, dict) and "model_type" in settings


def _from_images(folder: Path, config: TrainConfig) -> ViViT:
    wanted = ViViTConfig() if config.model is None else config.model
    frame = wanted.attention == "frame"
    if config.frames is not None:
        wanted = wanted.replace(frames=config.frames)
    check_encoder(wanted, config)
    return from_image_vit(folder, wanted, config.init.inflate, time_std=0.0 if frame else config.init.time_std)


def _freeze(module: nn.Module | None, frozen: bool) -> None:
    if module is not None:
        module.requires_grad_(not frozen)
