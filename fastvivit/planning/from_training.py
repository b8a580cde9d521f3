"""A training config as the step that is planned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastvivit.data.shards import is_pack
from fastvivit.models import ViViTConfig
from fastvivit.modules.dual import VideoTextModel
from fastvivit.modules.vivit import ViViT
from fastvivit.planning.kinds import kind_of
from fastvivit.planning.parts import Part
from fastvivit.planning.texts import TEXTS, TextSize
from fastvivit.train.config import TrainConfig

_METHODS = {"all": "all", "temporal": "temporal", "last_layers": "last", "adapters": "adapters", "lora": "lora"}
CAPTIONING = ("video_to_text", "finetune")


def settings_of(
    config: TrainConfig, model: ViViT | VideoTextModel | None = None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Fields of ``Step``, ``config`` among them, for a contrastive run, and what is to be said of them.

    Each of several sources is a part. An auxiliary head is not planned for.

    Args:
        config: the run.
        model: what it trains or starts from, where that is at hand; None reads ``config.start`` where there is one.

    Raises:
        ValueError: a captioning stage; a start that can't be read.
    """
    if config.stage in CAPTIONING:
        raise ValueError(f"stage: wanted a contrastive one to plan, got {config.stage!r}")
    if model is None:
        from fastvivit.train.start import load_dual_start

        model = load_dual_start(config)
    encoder, text = _encoder(config, model), None
    if isinstance(model, VideoTextModel):
        text = _of_transformers(model.text.model.config, config)
    elif config.text.folder is not None:
        from transformers import AutoConfig

        text = _of_transformers(AutoConfig.from_pretrained(Path(config.text.folder), local_files_only=True), config)
    else:
        text = _from_scratch(config)
    parts, notes = _parts(config)
    if config.auxiliary.kind != "none":
        notes.append(f"the auxiliary head ({config.auxiliary.kind}) is not in these figures")
    alone = {name: getattr(parts[0], name) for name in ("mask_ratio", "images", "pixels")}
    settings = {
        "config": encoder,
        "tuning": _tuning(config, encoder),
        "batch": config.batch_size,
        "chunk": config.memory.chunk,
        "prefix": config.memory.prefix,
        "checkpointing": config.memory.checkpointing,
        "offload": config.memory.offload,
        "states": config.optimiser.states,
        "precision": "float32" if config.run.precision == "float32" else "bfloat16",
        "text": text,
        "tune_text": config.tuning.text,
        # A run in chunks takes each from pinned memory when it is its turn.
        "batch_on": "host",
    }
    return settings | (alone if len(parts) == 1 else {"parts": tuple(parts)}), tuple(notes)


def _parts(config: TrainConfig) -> tuple[list[Part], list[str]]:
    """A part for each source, and which of them nobody could look at."""
    parts, notes = [], []
    for source, mask in zip(config.sources, config.masks, strict=True):
        kind = "image" if config.stage == "images" else kind_of(source.path)
        if kind is None:
            notes.append(f"nothing to read in {source.path} yet: planned for as clips")
        pixels = "tubelets" if is_pack(Path(source.path)) else "clips"
        parts.append(Part(batch=source.batch, mask_ratio=mask.ratio, images=kind == "image", pixels=pixels))
    return parts, notes


def _encoder(config: TrainConfig, model: ViViT | VideoTextModel | None) -> ViViTConfig:
    if model is None:
        return config.model
    return model.video.config if isinstance(model, VideoTextModel) else model.config


def _tuning(config: TrainConfig, encoder: ViViTConfig) -> str:
    tuning, method = config.tuning, _METHODS[config.tuning.method]
    number = {"last": min(tuning.layers, encoder.depth), "adapters": tuning.width, "lora": tuning.rank}.get(method)
    return method if number is None else f"{method}_{number}"


def _from_scratch(config: TrainConfig) -> TextSize:
    """The BERT that ``scratch_tower`` makes. Its words are those of the captions; BERT's own number is room enough."""
    sizes, tokens = config.text, config.text.max_length
    return TextSize(
        width=sizes.width,
        depth=sizes.depth,
        heads=sizes.heads,
        ff=4 * sizes.width,
        vocabulary=TEXTS["bert-base"].vocabulary,
        positions=tokens,
        tokens=tokens,
        dropout=0.0,
    )


def _of_transformers(found: Any, config: TrainConfig) -> TextSize:
    width, positions = found.hidden_size, getattr(found, "max_position_embeddings", 512)
    return TextSize(
        width=width,
        depth=found.num_hidden_layers,
        heads=found.num_attention_heads,
        ff=getattr(found, "intermediate_size", 4 * width),
        vocabulary=found.vocab_size,
        positions=positions,
        tokens=min(config.text.max_length, positions),
        dropout=float(getattr(found, "hidden_dropout_prob", 0.0)),
    )
