"""The training step that is planned: every setting that its memory or its time depends on."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fastvivit.models import ViViTConfig
from fastvivit.planning.texts import TEXTS, TextSize

_CHOICES = {
    "prefix": ("device", "host", "off"),
    "checkpointing": ("none", "selective", "full"),
    "states": ("float32", "8bit"),
    "precision": ("bfloat16", "float32"),
    "pixels": ("clips", "tubelets"),
    "batch_on": ("device", "host"),
}
_TUNING = re.compile(r"all|temporal|last_(\d+)|adapters(?:_(\d+))?|lora(?:_(\d+))?")


@dataclass(frozen=True, kw_only=True)
class Step:
    """A contrastive training step of one encoder beside a text tower; ``fastvivit.plan`` has the arguments' meaning.

    Attributes:
        config: of the encoder, its frames and size included.
        mask_ratio: share of the tokens that are dropped.
        tuning: "all", "last_<k>", "adapters", "adapters_<width>", "lora", "lora_<rank>" or "temporal".
        batch: clips.
        chunk: clips a pass; 0 the whole batch at once.
        prefix: where frozen blocks' outputs stay between the two passes of a step in chunks.
        checkpointing: what blocks keep.
        offload: whether what is kept goes to the host.
        states: of AdamW.
        precision: "bfloat16" is autocast over float32 weights.
        text: the text tower, or None.
        tune_text: whether it is trained.
        images: whether the batch is images, which go through the 2-D path.
        pixels: whole clips, or their kept tubelets alone (``fastvivit.Tubelets``).
        batch_on: where the batch's pixels are; from the host they come chunk by chunk.
    """

    config: ViViTConfig
    mask_ratio: float = 0.0
    tuning: str = "all"
    batch: int = 8
    chunk: int = 0
    prefix: str = "device"
    checkpointing: str = "none"
    offload: bool = False
    states: str = "float32"
    precision: str = "bfloat16"
    text: TextSize | None = None
    tune_text: bool = True
    images: bool = False
    pixels: str = "clips"
    batch_on: str = "device"

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: wanted one of {', '.join(map(repr, known))}, got {getattr(self, name)!r}")
        for name, least in (("batch", 1), ("chunk", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name}: wanted a whole number of at least {least}, got {value!r}")
        if self.offload and self.checkpointing != "full":
            raise ValueError(f"offload: wanted checkpointing='full' beside it, got {self.checkpointing!r}")
        if not 0 <= self.mask_ratio < 1:
            raise ValueError(f"mask_ratio: wanted 0 <= ratio < 1, got {self.mask_ratio}")
        found = _TUNING.fullmatch(self.tuning) if isinstance(self.tuning, str) else None
        if found is None:
            raise ValueError(
                "tuning: wanted 'all', 'last_<k>', 'adapters', 'adapters_<width>', 'lora', 'lora_<rank>' or "
                f"'temporal', got {self.tuning!r}"
            )
        if found[2] == "0" or found[3] == "0":
            raise ValueError(f"tuning: wanted a width or rank of at least 1, got {self.tuning!r}")
        if found[1] and not 1 <= int(found[1]) <= self.config.depth:
            raise ValueError(f"tuning: wanted last_1 to last_{self.config.depth} (the blocks), got {self.tuning!r}")
        if self.tuning == "temporal" and self.config.attention != "factorised":
            raise ValueError(f"tuning: wanted attention='factorised' with 'temporal', got {self.config.attention!r}")
        if self.images and not self.config.images:
            raise ValueError("images: wanted a config with images=True, got one without a path for them")
        if self.config.pool is None:
            raise ValueError("config: wanted an encoder that pools, got one with pool=None")

    @property
    def method(self) -> str:
        """The word of ``tuning`` before its number."""
        return self.tuning.partition("_")[0]

    @property
    def number(self) -> int | None:
        """The number in ``tuning``: blocks, width or rank."""
        return int(self.tuning.partition("_")[2] or 0) or None

    @property
    def frozen(self) -> int:
        """Leading blocks that keep no graph."""
        return self.config.depth - self.number if self.method == "last" else 0

    @property
    def first_trained(self) -> int:
        """Where the trained blocks begin in a simulated step, which runs some of the frozen ones alone."""
        return min(self.frozen, 3)

    @property
    def passes(self) -> int:
        """Clips that are in the encoder at once."""
        return min(self.chunk or self.batch, self.batch)

    @property
    def chunked(self) -> bool:
        """Whether the step is taken in more than one pass."""
        return self.passes < self.batch

    @property
    def stored(self) -> bool:
        """Whether a frozen prefix's outputs are kept between the two passes."""
        return self.chunked and self.frozen > 0 and self.prefix != "off"


def text_of(given: str | TextSize | None) -> TextSize | None:
    """A text tower by name, or as it is. Raises ``ValueError`` for an unknown name."""
    if given is None or isinstance(given, TextSize):
        return given
    if given not in TEXTS:
        raise ValueError(f"text: wanted one of {', '.join(map(repr, TEXTS))} or a TextSize, got {given!r}")
    return TEXTS[given]
