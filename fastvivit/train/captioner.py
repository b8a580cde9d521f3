"""The captioner of a run: its frozen parts as the config says, its new layers drawn from the run's seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from fastvivit.caption import VideoCaptioner
from fastvivit.caption.files import WEIGHTS as LAYERS
from fastvivit.caption.language import width_of
from fastvivit.modules.dual import VideoTextModel
from fastvivit.modules.perceiver import PerceiverResampler
from fastvivit.modules.vivit import ViViT
from fastvivit.pretrained import CONFIG, Model, load_pretrained
from fastvivit.train.caption_tables import LanguageConfig
from fastvivit.train.config import TrainConfig
from fastvivit.train.folders import Found, find_model
from fastvivit.train.language import local_language, scratch_language
from fastvivit.train.memory import apply_memory

LANGUAGE = "language"  # where a run keeps a language model that it made itself
_TUBES_LATENTS = 256


def load_start(config: TrainConfig) -> ViViT | VideoCaptioner:
    """What a run starts from: for "video_to_text" an encoder, for "finetune" a captioner.

    Raises:
        ValueError: no such model, or one of another kind.
    """
    found = find_model(Path(config.start), "start")
    model = load_found(found)
    if config.stage == "finetune":
        if not isinstance(model, VideoCaptioner):
            raise ValueError(
                f"start: wanted a VideoCaptioner for stage 'finetune', got a {type(model).__name__} in {found.place}"
            )
        return model
    if isinstance(model, VideoCaptioner):
        raise ValueError(
            f"start: wanted a ViViT or VideoTextModel for stage 'video_to_text', got a VideoCaptioner in "
            f"{found.place}; stage 'finetune' trains it on"
        )
    if found.settings.get("stage") == "images":
        raise ValueError(
            f"start: wanted an encoder of clips, got that of stage 'images' in {found.place}, which has seen none; "
            "stage 'image_to_video' trains it on"
        )
    return model.video if isinstance(model, VideoTextModel) else model


def with_prompt(config: TrainConfig) -> TrainConfig:
    """A run whose prompt is said: one that is left out is that of the captioner which "finetune" starts from."""
    prompt = config.captions.prompt
    if prompt is None and config.stage == "finetune":
        # Another prompt than the captioner knows would have to be unlearned first, and nobody would see why.
        prompt = find_model(Path(config.start), "start").settings.get("captions", {}).get("prompt")
    return replace(config, captions=replace(config.captions, prompt=prompt or ""))


def load_found(found: Found) -> Model:
    """The model that ``find_model`` found, in eval mode on the CPU.

    A checkpoint of a captioner holds the new layers alone; its run says what they belong to.

    Raises:
        ValueError: files that do not fit, frozen parts that are gone or have changed.
    """
    if not (found.place / LAYERS).is_file() or (found.place / CONFIG).is_file():
        return load_pretrained(found.place)
    if found.run is None:
        raise ValueError(f"model: wanted a whole model, or a run: {found.place} holds new layers without either")
    config = TrainConfig.from_dict(found.settings)
    with torch.random.fork_rng(devices=[]):
        model = build_captioner(config, load_start(config), found.run, ())
    return model.load(found.place).eval()


def build_captioner(
    config: TrainConfig, start: ViViT | VideoCaptioner, run: Path, captions: Sequence[str]
) -> VideoCaptioner:
    """The captioner of a run on the CPU, in train mode.

    Args:
        config: the run.
        start: of ``load_start``.
        run: the run's folder; where it holds a language model already, made by this run, that one is taken.
        captions: of the training clips; a language model from scratch takes its vocabulary from them.

    Raises:
        ValueError: a folder without a language model; numbers that do not fit each other.
        ImportError: transformers is not installed.
    """
    if isinstance(start, VideoCaptioner):
        model = start
    else:
        language = config.language
        with torch.random.fork_rng(devices=[]):
            if language.folder is not None:
                lm, tokenizer = local_language(Path(language.folder))
            elif (run / LANGUAGE).is_dir():
                lm, tokenizer = local_language(run / LANGUAGE, "out")
            else:
                lm, tokenizer = scratch_language(language, captions, config.seed)
        model = VideoCaptioner(
            start, lm, tokenizer, _resampler(language, start, width_of(lm)), **asdict(language.cross)
        )
    apply_memory(model, config.memory)
    return model.train()


def _resampler(config: LanguageConfig, video: ViViT, width: int) -> PerceiverResampler | bool:
    own = config.resampler
    if not own.use:
        return False
    # As many latents as places, the paper's choice; tubes share no places.
    tubes = video.config.attention == "tubes"
    places = _TUBES_LATENTS if tubes else video.config.grid[1] * video.config.grid[2]
    return PerceiverResampler(
        own.dim, video.num_features, own.depth, own.heads, own.latents or places, own.ff, out_dim=width
    )
