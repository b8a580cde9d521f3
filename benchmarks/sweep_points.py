"""The points of the sweep: which encoder, how large, how long a clip, how much of it masked."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from fastvivit.models import ViViTConfig

# Sections 4 and 6.1 of the paper, with the kernels of its appendix A. A frame-level encoder sees as many tokens as the
# joint one where it shares the tubelet; an image ViT takes every frame by itself.
ENCODERS = {
    "joint": {},
    "factorised": {"attention": "factorised"},
    "frame": {"attention": "frame"},
    "frame 1x16x16": {"attention": "frame", "tubelet": (1, 16, 16)},
    "tubes": {"attention": "tubes"},
    "coarse 4x16x16": {"tubelet": (4, 16, 16)},
    "coarse 2x32x32": {"tubelet": (2, 32, 32)},
    "coarse 4x32x32": {"tubelet": (4, 32, 32)},
}
FAMILIES = tuple(dict.fromkeys(name.split()[0] for name in ENCODERS))
MODELS = {"B": ViViTConfig.base, "L": ViViTConfig.large}
FRAMES, MASKS = (16, 128, 256), (0, 25, 50, 75)
TINY = {"size": 64, "width": 64, "depth": 2, "heads": 2, "ff": 128}
# Of tubes alone, in place of 16: the second of TubeViT's four has no position in fewer than 20 frames.
TUBE_FRAMES = 32


@dataclass(frozen=True, kw_only=True)
class Point:
    """One training step of one encoder.

    Attributes:
        encoder: a name in ``ENCODERS``.
        model: "B" or "L".
        frames: of a clip.
        mask: percent of its tokens that are dropped.
        clips: in the batch.
        dtype: "float32", or 16 bits by autocast over float32 weights.
        checkpointing: whether blocks keep their inputs alone.
        quick: a tiny model and small frames.
    """

    encoder: str
    model: str
    frames: int
    mask: int
    clips: int = 1
    dtype: str = "float32"
    checkpointing: bool = False
    quick: bool = False

    def config(self) -> ViViTConfig:
        """The encoder. Raises ``ValueError`` where there is none, as for tubes in too few frames."""
        changes = ENCODERS[self.encoder] | (TINY if self.quick else {})
        return MODELS[self.model](images=False, frames=self.frames, **changes)

    @property
    def mask_ratio(self) -> float:
        """Share of the tokens that are dropped."""
        return self.mask / 100

    @property
    def torch_dtype(self) -> torch.dtype:
        """What products run in."""
        return getattr(torch, self.dtype)

    def facts(self) -> dict[str, object]:
        """The fields as JSON values, without ``dtype`` and ``quick``, which every line of a file has."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in ("dtype", "quick")}

    def to_json(self) -> str:
        """For another process."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Point:
        """The inverse of ``to_json``."""
        return cls(**json.loads(text))


def points(
    families: Sequence[str], models: Sequence[str], frames: Sequence[int], masks: Sequence[int], **settings: object
) -> Iterable[Point]:
    """Every combination, small models and short clips first."""
    names = [name for name in ENCODERS if name.split()[0] in families]
    lengths = sorted({*frames, *([TUBE_FRAMES] if "tubes" in families and min(frames) < TUBE_FRAMES else [])})
    for model, length, name, mask in itertools.product(models, lengths, names, masks):
        if length in frames or name == "tubes":
            yield Point(encoder=name, model=model, frames=length, mask=mask, **settings)
