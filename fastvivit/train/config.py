"""What a training run is: frozen dataclasses, checked when made, readable from TOML."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastvivit.models import ViViTConfig, plain
from fastvivit.modules.auxiliary import AuxiliaryConfig

STAGES = ("contrastive",)
_STRATEGIES = ("random", "tube", "frame")
_DEVICES = ("auto", "cpu", "cuda")
_PRECISIONS = ("auto", "float32")


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The text tower.

    Attributes:
        folder: a local folder with a transformers encoder and its tokenizer; None makes a small BERT from
            scratch, whose vocabulary is the words of the training captions.
        width: of the BERT from scratch.
        depth: its layers.
        heads: its attention heads.
        max_length: tokens a caption is cut to.
    """

    folder: str | None = None
    width: int = 128
    depth: int = 2
    heads: int = 4
    max_length: int = 77

    def __post_init__(self) -> None:
        _at_least("text", self, 1, "width", "depth", "heads", "max_length")
        if self.width % self.heads:
            raise ValueError(f"text.heads: wanted a divisor of width {self.width}, got {self.heads}")


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """How the weights of an encoder from scratch begin, beside what ``ViViT`` draws itself.

    Attributes:
        time_std: standard deviation of a random vector a time slot that is added to its positions. Positions
            drawn one by one say nothing about which places share an instant, so order is slow to learn; with
            this it is not. Encoders without positions in time are left as they are.
    """

    time_std: float = 0.0

    def __post_init__(self) -> None:
        _at_least("init", self, 0, "time_std")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The clips. Their frames and size are the model's.

    Attributes:
        train: a manifest.
        heldout: the manifest that scores are taken on, or None.
        fps: pictures per second of a clip; paper: 1.
        cache: keep decoded clips in memory: for data sets that fit.
        workers: loader processes; 0 decodes in the training process.
        pair_twins: put clips and the twins that the manifest names into the same batch.
    """

    train: str
    heldout: str | None = None
    fps: float = 1.0
    cache: bool = False
    workers: int = 0
    pair_twins: bool = True

    def __post_init__(self) -> None:
        _at_least("data", self, 0, "workers")
        _above("data", self, 0, "fps")


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """AdamW. Defaults: the paper's image-to-video stage (table 4); betas and eps are PyTorch's.

    Attributes:
        lr: the highest learning rate.
        weight_decay: not applied to parameters of one dimension, to positions and to the temperature.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        clip: the gradient is scaled down to this norm; inf leaves it.
    """

    lr: float = 5e-5
    weight_decay: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip: float = 2.0

    def __post_init__(self) -> None:
        _above("optimiser", self, 0, "lr", "eps", "clip")
        _at_least("optimiser", self, 0, "weight_decay")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimiser.betas: wanted two numbers, 0 <= beta < 1, got {self.betas}")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Linear warm-up, then half a cosine.

    Attributes:
        warmup: steps from 0 to the highest learning rate; paper: 1000.
        final: the last learning rate as a share of the highest.
    """

    warmup: int = 1000
    final: float = 0.0

    def __post_init__(self) -> None:
        _at_least("schedule", self, 0, "warmup", "final")
        if self.final > 1:
            raise ValueError(f"schedule.final: wanted a share of the learning rate, 0 to 1, got {self.final}")


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """Which tubelets a training clip loses before it is embedded (paper, section 4.3); scores see them all.

    Attributes:
        ratio: share to drop, 0 <= ratio < 1.
        strategy: "random", "tube" or "frame", as in ``F.random_keep``.
    """

    ratio: float = 0.75
    strategy: str = "random"

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise ValueError(f"mask.ratio: wanted 0 <= ratio < 1, got {self.ratio}")
        _one_of("mask.strategy", self.strategy, _STRATEGIES)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What a run writes and where it computes. A resumed run may differ in these fields, and in no other.

    Attributes:
        log_every: steps between lines on a console that is no terminal; ``metrics.jsonl`` has every step.
        eval_every: steps between scores on the held-out clips; 0 takes them at the end only.
        save_every: steps between checkpoints; there is one at the end, and one when interrupted, too.
        keep_last: how many checkpoints stay.
        tensorboard: write TensorBoard events.
        device: "auto" takes a GPU where there is one, "cpu" or "cuda".
        precision: "auto" is bfloat16 autocast on a GPU and float32 on a CPU; "float32" is that everywhere.
    """

    log_every: int = 50
    eval_every: int = 0
    save_every: int = 1000
    keep_last: int = 3
    tensorboard: bool = True
    device: str = "auto"
    precision: str = "auto"

    def __post_init__(self) -> None:
        _at_least("run", self, 1, "log_every", "save_every", "keep_last")
        _at_least("run", self, 0, "eval_every")
        _one_of("run.device", self.device, _DEVICES)
        _one_of("run.precision", self.precision, _PRECISIONS)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run.

    Attributes:
        stage: "contrastive": clips against captions, symmetric InfoNCE.
        steps: optimisation steps.
        data: see ``DataConfig``.
        seed: of weights, order, masks and dropout.
        batch_size: clips a step; paper: 512.
        dim: dimensions of the space that clips and captions share.
        grad_checkpointing: compute activations again in the backward instead of keeping them.
        model: the encoder. In TOML its table may name a preset: ``preset = "tiny"`` beside other fields.
        text: see ``TextConfig``.
        init: see ``InitConfig``.
        optimiser: see ``OptimiserConfig``.
        schedule: see ``ScheduleConfig``.
        mask: see ``MaskConfig``.
        auxiliary: see ``AuxiliaryConfig``; a loss beside the contrastive one, off by default.
        run: see ``RunConfig``.
    """

    steps: int
    data: DataConfig
    stage: str = "contrastive"
    seed: int = 0
    batch_size: int = 512
    dim: int = 512
    grad_checkpointing: bool = False
    model: ViViTConfig = field(default_factory=ViViTConfig)
    text: TextConfig = field(default_factory=TextConfig)
    init: InitConfig = field(default_factory=InitConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    auxiliary: AuxiliaryConfig = field(default_factory=AuxiliaryConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        _one_of("stage", self.stage, STAGES)
        _at_least("", self, 1, "steps", "dim")
        _at_least("", self, 2, "batch_size")  # a clip is learned by telling it from others
        _at_least("", self, 0, "seed")
        if self.schedule.warmup >= self.steps:
            raise ValueError(
                f"schedule.warmup: wanted fewer than the {self.steps} steps of the run, got {self.schedule.warmup}"
            )
        if self.model.pool is None:
            raise ValueError("model.pool: wanted an encoder that pools, got None")
        if self.model.attention == "tubes" and self.mask.strategy != "random":
            raise ValueError(f"mask.strategy: wanted 'random' with tubes, got {self.mask.strategy!r}")

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values; infinity becomes the string "inf", which JSON lacks."""
        return plain(asdict(self))

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> TrainConfig:
        """The inverse of ``to_dict``.

        Raises:
            ValueError: an unknown field (with the nearest that exists), a missing one, a wrong type or value.
        """
        from fastvivit.train.reading import config_from

        return config_from(cls, fields)

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


def _named(section: str, name: str) -> str:
    return f"{section}.{name}" if section else name


def _at_least(section: str, config: Any, least: float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not least <= value < math.inf:
            raise ValueError(f"{_named(section, name)}: wanted at least {least}, got {value!r}")


def _above(section: str, config: Any, bound: float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not value > bound:
            raise ValueError(f"{_named(section, name)}: wanted above {bound}, got {value!r}")


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{name}: wanted one of {', '.join(map(repr, known))}, got {value!r}")
