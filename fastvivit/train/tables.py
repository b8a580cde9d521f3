"""Tables of every run: what data, optimiser, schedule, masks and the run itself are set to."""

from __future__ import annotations

from dataclasses import dataclass

from fastvivit.train.checks import above, at_least, one_of

_STRATEGIES = ("random", "tube", "frame", "grouped")
_METHODS = ("all", "last_layers", "adapters", "lora", "temporal")
_EXTEND = ("interpolate", "repeat", "tile")
_INFLATE = ("average", "central")
_DEVICES = ("auto", "cpu", "cuda")
_PRECISIONS = ("auto", "float32", "bfloat16")
_STATES = ("float32", "8bit")
_PARALLEL = ("ddp", "fsdp")


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
        at_least("text", self, 1, "width", "depth", "heads", "max_length")
        if self.width % self.heads:
            raise ValueError(f"text.heads: wanted a divisor of width {self.width}, got {self.heads}")


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """How weights begin: those of an encoder from scratch, and those that ``start`` leaves open.

    Attributes:
        time_std: standard deviation of a random vector a time slot that is added to its positions, where an encoder
            begins from scratch or from images. Positions drawn one by one say nothing about which places share an
            instant, and those of an image, repeated, nothing about order, so order is slow to learn; with this it is
            not. Encoders without positions in time are left as they are.
        inflate: how kernels of image patches become those of tubelets, where an encoder begins from images:
            "average" or "central", as ``F.inflate``'s ``how``.
        extend: how positions are resized in time for ``frames``: "interpolate", "repeat" or "tile", as in
            ``ViViT.extend_frames``.
    """

    time_std: float = 0.0
    inflate: str = "average"
    extend: str = "interpolate"

    def __post_init__(self) -> None:
        at_least("init", self, 0, "time_std")
        one_of("init.inflate", self.inflate, _INFLATE)
        one_of("init.extend", self.extend, _EXTEND)


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """What of a dual encoder is trained. The projections and the temperature always are.

    Attributes:
        method: of the video encoder: "all"; "last_layers", "adapters", "lora" or "temporal", as the functions of
            ``fastvivit.tune``.
        layers: of "last_layers"; paper: 4.
        width: of "adapters"; None is half of the encoder's.
        rank: of "lora".
        text: train the text tower, too.
    """

    method: str = "all"
    layers: int = 4
    width: int | None = None
    rank: int = 64
    text: bool = True

    def __post_init__(self) -> None:
        one_of("tuning.method", self.method, _METHODS)
        at_least("tuning", self, 1, "layers", "rank")
        if self.width is not None:
            at_least("tuning", self, 1, "width")


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One of several data sets that are trained on together (paper, appendix C.1: images beside clips).

    Attributes:
        path: a manifest of clips or of images, or packed shards.
        batch: its samples of every step. They are told from each other alone, not from those of other sources.
        weight: of its loss: a step's is the weighted mean.
        mask_ratio: share of the tokens that its samples lose; None is the run's ``mask.ratio``.
    """

    path: str
    batch: int
    weight: float = 1.0
    mask_ratio: float | None = None

    def __post_init__(self) -> None:
        at_least("data.sources", self, 1, "batch")
        above("data.sources", self, 0, "weight")
        if self.mask_ratio is not None and not 0 <= self.mask_ratio < 1:
            raise ValueError(f"data.sources.mask_ratio: wanted 0 <= ratio < 1, got {self.mask_ratio}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The clips. Their frames and size are the model's.

    Attributes:
        train: a manifest of clips or of images, tar shards as WebDataset has them (``shards/train-{0000..0009}.tar``),
            or packed shards (``fastvivit data pack``); None with ``sources``.
        sources: several of them, each with its share of a batch and its weight, in place of ``train``.
        heldout: the manifest that scores are taken on, or None.
        fps: pictures per second of a clip; paper: 1.
        cache: keep decoded clips in memory: for data sets that fit.
        workers: loader processes; 0 decodes in the training process.
        deadline: seconds that a file may take in a loader process. A decoder that hangs or crashes is ended, and its
            file counts as broken; 0 is no deadline.
        pair_twins: put clips and the twins that the manifest names into the same batch.
    """

    train: str | None = None
    sources: tuple[SourceConfig, ...] = ()
    heldout: str | None = None
    fps: float = 1.0
    cache: bool = False
    workers: int = 0
    deadline: float = 120.0
    pair_twins: bool = True

    def __post_init__(self) -> None:
        at_least("data", self, 0, "workers", "deadline")
        above("data", self, 0, "fps")
        if (self.train is None) == (not self.sources):
            got = "both" if self.sources else "neither"
            raise ValueError(f"data.train: wanted either train or sources, got {got}")


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """AdamW. Defaults: the paper's image-to-video stage (table 4); betas and eps are PyTorch's.

    Attributes:
        lr: the highest learning rate.
        weight_decay: not applied to parameters of one dimension, to positions and to the temperature.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        clip: the gradient is scaled down to this norm; inf leaves it.
        states: "float32" moments, or "8bit" ones, a quarter of the memory, in blocks of 256 with a scale each
            (Dettmers et al. 2022) by the library bitsandbytes. Those of parameters below 4096 numbers stay float32.
    """

    lr: float = 5e-5
    weight_decay: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip: float = 2.0
    states: str = "float32"

    def __post_init__(self) -> None:
        one_of("optimiser.states", self.states, _STATES)
        above("optimiser", self, 0, "lr", "eps", "clip")
        at_least("optimiser", self, 0, "weight_decay")
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
        at_least("schedule", self, 0, "warmup", "final")
        if self.final > 1:
            raise ValueError(f"schedule.final: wanted a share of the learning rate, 0 to 1, got {self.final}")


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """Which tubelets a clip loses before it is embedded (paper, sections 4.3 and 6.1).

    Held-out clips lose none in contrastive training. A captioner is scored as it is trained, as in the paper, with
    one mask a clip that stays the same.

    Attributes:
        ratio: share to drop, 0 <= ratio < 1.
        strategy: "random", "tube" or "frame", as in ``F.random_keep``; of packed shards also "grouped", random groups
            of places of which exactly the kept share is read from the disk (``fastvivit.data.shards``).
    """

    ratio: float = 0.75
    strategy: str = "random"

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise ValueError(f"mask.ratio: wanted 0 <= ratio < 1, got {self.ratio}")
        one_of("mask.strategy", self.strategy, _STRATEGIES)


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
        precision: of products. "auto" is bfloat16 on a GPU and float32 on a CPU, "float32" and "bfloat16" are that
            everywhere. Parameters, gradients and the optimiser's states are float32 in any case.
        parallel: with several processes (``torchrun``): "ddp", each has the whole model; "fsdp", each has its part of
            the weights, gradients and optimiser states of every layer.
    """

    log_every: int = 50
    eval_every: int = 0
    save_every: int = 1000
    keep_last: int = 3
    tensorboard: bool = True
    device: str = "auto"
    precision: str = "auto"
    parallel: str = "ddp"

    def __post_init__(self) -> None:
        at_least("run", self, 1, "log_every", "save_every", "keep_last")
        at_least("run", self, 0, "eval_every")
        one_of("run.device", self.device, _DEVICES)
        one_of("run.parallel", self.parallel, _PARALLEL)
        one_of("run.precision", self.precision, _PRECISIONS)
