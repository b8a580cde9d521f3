"""What a training run is: frozen dataclasses, checked when made, readable from TOML."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from fastvivit.models import ViViTConfig, plain
from fastvivit.modules.auxiliary import AuxiliaryConfig
from fastvivit.modules.dual import LOSSES
from fastvivit.train.caption_tables import CaptionConfig, LanguageConfig, VisionConfig
from fastvivit.train.checks import at_least, one_of
from fastvivit.train.memory import MemoryConfig
from fastvivit.train.presets import with_preset
from fastvivit.train.tables import (
    DataConfig,
    InitConfig,
    MaskConfig,
    OptimiserConfig,
    RunConfig,
    ScheduleConfig,
    SourceConfig,
    TextConfig,
    TuningConfig,
)

DUAL = ("contrastive", "images", "image_to_video", "short_to_long")
_CAPTIONING = ("video_to_text", "finetune")
STAGES = (*DUAL, *_CAPTIONING)
# Fields that mean something in some stages alone; anything but their default is a mistake in the others.
_ONLY_IN = {
    "dim": DUAL,
    "loss": DUAL,
    "model": DUAL,
    "text": DUAL,
    "init": DUAL,
    "auxiliary": DUAL,
    "tuning": DUAL,
    "frames": DUAL,
    "language": ("video_to_text",),
    "vision": _CAPTIONING,
    "captions": _CAPTIONING,
}


def check_encoder(encoder: ViViTConfig, config: TrainConfig) -> None:
    """Raise ``ValueError`` for an encoder that a contrastive run can't train."""
    if encoder.pool is None:
        raise ValueError("model.pool: wanted an encoder that pools, got None")
    if encoder.attention == "tubes" and config.mask.strategy != "random":
        raise ValueError(f"mask.strategy: wanted 'random' with tubes, got {config.mask.strategy!r}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run.

    ``from_toml``, ``from_dict`` and ``for_stage`` give fields that are left out the paper's values for the stage
    (``fastvivit.train.presets``); made directly, a run has those of the contrastive stage.

    Attributes:
        stage: four train a dual encoder, clips or images against captions. "contrastive": from scratch or from any
            start. "images": on images alone, the first of two steps. "image_to_video": an encoder of images, that
            stage's or another library's, learns clips, beside images or alone. "short_to_long": an encoder of clips
            learns longer ones, its last layers or adapters alone. Two train a captioner. "video_to_text": a
            resampler and cross-attention between a frozen encoder and a frozen language model, the captioning loss.
            "finetune": the same layers trained on, from a captioner.
        steps: optimisation steps.
        data: see ``DataConfig``.
        start: the folder of a run or of ``save_pretrained`` to begin with. For the dual encoder's stages a
            VideoTextModel, or a ViViT, or the folder of an image ViT (transformers ViT, DINOv2, CLIP), both of which
            get a text tower as ``text`` says. For "video_to_text" a ViViT, or a VideoTextModel whose encoder is
            taken; for "finetune" a VideoCaptioner.
        frames: of a clip, where an encoder from ``start`` has positions for another number.
        seed: of weights, order, masks and dropout.
        batch_size: clips a step; paper: 512.
        dim: dimensions of the space that clips and captions share; those of a VideoTextModel that ``start`` has.
        loss: "infonce", symmetric, the paper's, or "siglip"; None is the one that ``start`` was trained with, from
            which there is no way to the other, else "infonce".
        model: the encoder; None is ViT-B, and with ``start`` the one that is there. From an image ViT it says what
            that leaves open: frames, size, tubelet, attention. In TOML its table may name a preset:
            ``preset = "tiny"`` beside other fields.
        tuning: see ``TuningConfig``.
        text: see ``TextConfig``.
        init: see ``InitConfig``.
        language: see ``LanguageConfig``.
        vision: see ``VisionConfig``.
        captions: see ``CaptionConfig``.
        optimiser: see ``OptimiserConfig``.
        schedule: see ``ScheduleConfig``.
        mask: see ``MaskConfig``.
        auxiliary: see ``AuxiliaryConfig``; a loss beside the contrastive one, off by default.
        memory: see ``MemoryConfig``; a resumed run may differ in it.
        run: see ``RunConfig``.
    """

    steps: int
    data: DataConfig
    stage: str = "contrastive"
    start: str | None = None
    frames: int | None = None
    seed: int = 0
    batch_size: int = 512
    dim: int = 512
    loss: str | None = None
    model: ViViTConfig | None = None
    tuning: TuningConfig = field(default_factory=TuningConfig)
    text: TextConfig = field(default_factory=TextConfig)
    init: InitConfig = field(default_factory=InitConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    captions: CaptionConfig = field(default_factory=CaptionConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    auxiliary: AuxiliaryConfig = field(default_factory=AuxiliaryConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        one_of("stage", self.stage, STAGES)
        at_least("", self, 1, "steps", "dim")
        # Contrastively, a clip is learned by telling it from others.
        at_least("", self, 2 if self.stage in DUAL else 1, "batch_size")
        at_least("", self, 0, "seed")
        for declared in fields(self):
            stages = _ONLY_IN.get(declared.name, STAGES)
            default = declared.default if declared.default is not MISSING else declared.default_factory
            if self.stage not in stages and getattr(self, declared.name) != (
                default() if callable(default) else default
            ):
                *others, last = map(repr, stages)
                wanted = f"{', '.join(others)} or {last}" if others else last
                raise ValueError(f"{declared.name}: wanted in stage {wanted} only, got it in {self.stage!r}")
        if self.schedule.warmup >= self.steps:
            raise ValueError(
                f"schedule.warmup: wanted fewer than the {self.steps} steps of the run, got {self.schedule.warmup}"
            )
        if self.stage not in ("contrastive", "images", "image_to_video") and self.start is None:
            raise ValueError(f"start: wanted the folder of a model for stage {self.stage!r}, got None")
        shares = [source.batch for source in self.data.sources]
        if shares and sum(shares) != self.batch_size:
            raise ValueError(
                f"batch_size: wanted what the sources add up to, {' + '.join(map(str, shares))}, got {self.batch_size}"
            )
        if self.stage in _CAPTIONING:
            self.memory.check_captioning(self.stage)
            if self.run.parallel != "ddp":
                raise ValueError(
                    f"run.parallel: wanted 'ddp' in stage {self.stage!r}, whose frozen models are whole in every "
                    f"process and whose trained layers are few, got {self.run.parallel!r}"
                )
            if len(shares) > 1:
                raise ValueError(f"data.sources: wanted one in stage {self.stage!r}, got {len(shares)}")
            return
        if self.loss is not None:
            one_of("loss", self.loss, LOSSES)
        if any(share < 2 for share in shares):
            raise ValueError(f"data.sources: wanted a batch of at least 2, to tell samples apart, got {min(shares)}")
        if self.start is None:
            if self.frames is not None:
                raise ValueError(f"frames: wanted None without a start; model.frames says them, got {self.frames}")
            if self.model is None:
                object.__setattr__(self, "model", ViViTConfig())
        if self.frames is not None:
            at_least("", self, 1, "frames")
        if self.model is not None:
            check_encoder(self.model, self)

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        """What is trained on: ``data.sources``, or ``data.train`` as the only one."""
        return self.data.sources or (SourceConfig(path=self.data.train, batch=self.batch_size),)

    @property
    def masks(self) -> tuple[MaskConfig, ...]:
        """The mask of each source."""
        return tuple(
            self.mask if source.mask_ratio is None else replace(self.mask, ratio=source.mask_ratio)
            for source in self.sources
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values; infinity becomes the string "inf", which JSON lacks."""
        return plain(asdict(self))

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> TrainConfig:
        """The inverse of ``to_dict``; fields that are left out have the stage's values of the paper.

        Raises:
            ValueError: an unknown field (with the nearest that exists), a missing one, a wrong type or value.
        """
        from fastvivit.train.reading import config_from

        return config_from(cls, with_preset(fields))

    @classmethod
    def for_stage(cls, stage: str, **fields: Any) -> TrainConfig:
        """A run of ``stage`` with the paper's values, but for ``fields``.

        ``TrainConfig.for_stage("finetune", start="runs/a", data={"train": "clips.jsonl"}, optimiser={"lr": 1e-6})``:
        a table is a dict of the fields that differ, or a config that takes its place whole.

        Raises:
            ValueError: as ``from_dict``.
        """
        given = {name: plain(asdict(value)) if is_dataclass(value) else value for name, value in fields.items()}
        return cls.from_dict(given | {"stage": stage})

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> TrainConfig:
        """Read a run from a TOML file; paths in it are relative to its folder.

        Args:
            path: the file.
            overrides: changes such as ``"optimiser.lr=1e-4"``; paths in them are relative to the working
                directory.

        Raises:
            ValueError: an unreadable file, and what ``from_dict`` raises.
        """
        from fastvivit.train.reading import read_toml

        return cls.from_dict(read_toml(Path(path), overrides))
