"""What a training run is: frozen dataclasses, checked when made, readable from TOML."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from fastvivit.models import ViViTConfig, plain
from fastvivit.modules.auxiliary import AuxiliaryConfig
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
    TextConfig,
)

STAGES = ("contrastive", "video_to_text", "finetune")
_CAPTIONING = ("video_to_text", "finetune")
# Fields that mean something in some stages alone; anything but their default is a mistake in the others.
_ONLY_IN = {
    "dim": ("contrastive",),
    "model": ("contrastive",),
    "text": ("contrastive",),
    "init": ("contrastive",),
    "auxiliary": ("contrastive",),
    "start": _CAPTIONING,
    "language": ("video_to_text",),
    "vision": _CAPTIONING,
    "captions": _CAPTIONING,
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run.

    ``from_toml``, ``from_dict`` and ``for_stage`` give fields that are left out the paper's values for the stage
    (``fastvivit.train.presets``); made directly, a run has those of the contrastive stage.

    Attributes:
        stage: "contrastive": clips against captions, symmetric InfoNCE. "video_to_text": a resampler and
            cross-attention between a frozen encoder and a frozen language model, the captioning loss. "finetune":
            the same layers trained on, from a captioner.
        steps: optimisation steps.
        data: see ``DataConfig``.
        start: the folder of a run or of ``save_pretrained`` to begin with. For "video_to_text" a ViViT, or a
            VideoTextModel whose encoder is taken; for "finetune" a VideoCaptioner.
        seed: of weights, order, masks and dropout.
        batch_size: clips a step; paper: 512.
        dim: dimensions of the space that clips and captions share.
        model: the encoder; None is ViT-B, and with ``start`` the one that is there. In TOML its table may name a
            preset: ``preset = "tiny"`` beside other fields.
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
    seed: int = 0
    batch_size: int = 512
    dim: int = 512
    model: ViViTConfig | None = None
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
        at_least("", self, 2 if self.stage == "contrastive" else 1, "batch_size")
        at_least("", self, 0, "seed")
        for declared in fields(self):
            stages = _ONLY_IN.get(declared.name, STAGES)
            default = declared.default if declared.default is not MISSING else declared.default_factory
            if self.stage not in stages and getattr(self, declared.name) != (
                default() if callable(default) else default
            ):
                raise ValueError(
                    f"{declared.name}: wanted in stage {' or '.join(map(repr, stages))} only, got it in {self.stage!r}"
                )
        if self.schedule.warmup >= self.steps:
            raise ValueError(
                f"schedule.warmup: wanted fewer than the {self.steps} steps of the run, got {self.schedule.warmup}"
            )
        if self.stage in _CAPTIONING:
            self.memory.check_captioning(self.stage)
            if self.start is None:
                raise ValueError(f"start: wanted the folder of a model for stage {self.stage!r}, got None")
            return
        if self.model is None:
            object.__setattr__(self, "model", ViViTConfig())
        if self.model.pool is None:
            raise ValueError("model.pool: wanted an encoder that pools, got None")
        if self.model.attention == "tubes" and self.mask.strategy != "random":
            raise ValueError(f"mask.strategy: wanted 'random' with tubes, got {self.mask.strategy!r}")

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
