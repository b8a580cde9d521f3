"""The training step that is planned: every setting that its memory or its time depends on."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from fastvivit.models import ViViTConfig
from fastvivit.modules.vivit import GROUPS
from fastvivit.planning.parts import Part, kept_tokens, shared
from fastvivit.planning.texts import TEXTS, TextSize
from fastvivit.tokens import Views

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
        batch: clips; of a mixed batch, the samples of all parts.
        chunk: clips a pass; 0 the whole batch at once. Of images beside clips a pass has as many as come to the
            clips' kept tokens, as ``memory.chunk`` does.
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
        parts: of a mixed batch; they share ``batch``, and stand in place of ``mask_ratio``, ``images`` and
            ``pixels``.
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
    parts: tuple[Part, ...] = ()

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
        if any(part.batch < 1 for part in self.parts) or self.batch < len(self.parts):
            raise ValueError(f"batch: wanted at least one sample for each of {len(self.parts)} parts, got {self.batch}")
        # Made at once, since what is wrong with a part is found as it is made.
        object.__setattr__(self, "_apart", self._parts_alone() if self.parts else ())

    def _parts_alone(self) -> tuple[Step, ...]:
        found = []
        for part, batch in zip(self.parts, shared(self.batch, self.parts), strict=True):
            settings = {"mask_ratio": part.mask_ratio, "images": part.images, "pixels": part.pixels}
            found.append(replace(self, parts=(), batch=batch, **settings))
        longest = max((one.tokens for one in found if not one.images), default=0)
        # The rule of ``memory.chunk``: fastvivit.train.stages.contrastive.
        return tuple(
            replace(one, chunk=one.chunk * max(longest // one.tokens, 1)) if one.images else one for one in found
        )

    @property
    def each(self) -> tuple[Step, ...]:
        """The parts as steps of their own, with their samples and their chunk; of a batch that is not mixed, itself."""
        return self._apart or (self,)

    @property
    def trains_images(self) -> bool:
        """Whether any samples are images; the path for them is trained then."""
        return any(one.images for one in self.each)

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
        """Leading blocks that are not trained."""
        return self.config.depth - self.number if self.method == "last" else 0

    @property
    def ahead(self) -> int:
        """Leading blocks that keep no graph. Images have one through all, since their embedding is trained."""
        return 0 if self.images else self.frozen

    @property
    def run(self) -> int:
        """Blocks that are simulated of a stack of more: its first may differ from the next two, which tell the rest."""
        # A block's input is packed for the host before the block begins, as the last op of the one before it.
        return 3 + self.offload

    @property
    def first_trained(self) -> int:
        """Where the trained blocks begin in a simulated step, which runs some of the frozen ones alone."""
        return min(self.frozen, self.run)

    @property
    def views(self) -> Views:
        """Grids of a sample's tokens; not of a mixed batch."""
        _, height, width = self.config.tubelet
        return ((1, self.config.size[0] // height, self.config.size[1] // width),) if self.images else self.config.views

    @property
    def tokens(self) -> int:
        """Kept of a sample; not of a mixed batch."""
        return kept_tokens(self.views, self.mask_ratio)

    @property
    def rows(self) -> int:
        """Of a sample, its CLS tokens too; not of a mixed batch."""
        heads = {"clip": 1, "frame": self.views[0][0], "view": len(self.views)}[GROUPS[self.config.attention]]
        return self.tokens + heads * self.config.class_token

    @property
    def passes(self) -> int:
        """Clips that are in the encoder at once; not of a mixed batch."""
        return min(self.chunk or self.batch, self.batch)

    @property
    def chunked(self) -> bool:
        """Whether the step is taken in more than one pass; each part of a mixed batch is at least one."""
        return self.chunk > 0 if self.parts else self.passes < self.batch

    @property
    def narrower(self) -> int:
        """The largest chunk with which there is less in a pass than now; 0 where there is none."""
        widest = max(one.batch for one in self.each)
        return widest if self.parts and not self.chunk else min(self.chunk or widest, widest) - 1

    @property
    def stored(self) -> bool:
        """Whether a frozen prefix's outputs are kept between the two passes."""
        return self.chunked and self.prefix != "off" and any(one.ahead for one in self.each)


def text_of(given: str | TextSize | None) -> TextSize | None:
    """A text tower by name, or as it is. Raises ``ValueError`` for an unknown name."""
    if given is None or isinstance(given, TextSize):
        return given
    if given not in TEXTS:
        raise ValueError(f"text: wanted one of {', '.join(map(repr, TEXTS))} or a TextSize, got {given!r}")
    return TEXTS[given]


def set_each(step: Step, **changes: Any) -> dict[str, Any]:
    """What is to change of a step, so that fields of it change in every part of a mixed batch."""
    if not step.parts:
        return changes
    return {"parts": tuple(replace(part, **changes) for part in step.parts)}
