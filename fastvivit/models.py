"""Configurations of the encoders, and their presets."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from fastvivit.ops.tubelet_embed.geometry import Size3
from fastvivit.tubes import TUBEVIT, Tube, grids_of

CHOICES = {
    "attention": ("joint", "factorised", "frame", "tubes"),
    "pool": ("mean", "attention", "cls", None),
    "cls": (None, True, False),
    "act": ("gelu", "gelu_tanh", "quick_gelu"),
    "order": ("space_time", "time_space"),
    "gate": ("scalar", "vector"),
    "positions": ("full", "factorised"),
}


@dataclass(frozen=True, kw_only=True)
class ViViTConfig:
    """A ViViT encoder. Widths of the presets are those of ViT (Dosovitskiy et al. 2021, table 1; tiny: DeiT).

    Attributes:
        frames: frames of a clip that have positions; ``ViViT.extend_frames`` makes room for more.
        size: height and width of a clip in pixels, an int or (H, W).
        tubelet: pixels of a tubelet, (t, h, w).
        channels: C.
        width: D.
        depth: blocks.
        heads: attention heads; they divide ``width``.
        ff: inner width of the feed-forward layers.
        attention: which tokens see each other. "joint": all of a clip. "frame": those of a time slot, and
            positions have no time: the paper's frame-level encoder (IMAGEViT). "factorised": those of a slot,
            then, behind a gate that starts closed, those of a place over time. "tubes": those of a tube, with
            tubelets as ``tubes`` says (TubeViT).
        pool: "mean" over a clip's grid tokens; "attention", a learned query over all of its tokens; "cls", its
            CLS token, or the mean of those of the slots or tubes of which something was kept; or None.
        cls: whether a CLS token leads every attention sequence: one a clip, with "frame" and "factorised" one
            a time slot, with "tubes" one a tube. None: where ``pool`` is "cls".
        pre_norm: a LayerNorm before the first block, as CLIP has.
        final_norm: a LayerNorm after the last block.
        order: of factorised attention, "space_time" or "time_space".
        gate: of factorised and cross-view attention, one number a layer ("scalar") or a channel ("vector").
        positions: "full", one a (t, h, w), or "factorised", the sum of one a place and one a time slot.
        pool_heads: heads of ``pool="attention"``; they divide ``width``.
        tubes: the tubes of ``attention="tubes"``; ``tubelet`` is then of images alone.
        cross_view: with "tubes", gated attention between the tubes of a clip in every block.
        drop_path: rate at which the last block's branches are dropped, rising linearly from 0; by clip.
        act: "gelu" (exact), "gelu_tanh" or "quick_gelu".
        eps: of the LayerNorms.
        qkv_bias: whether queries, keys and values have a bias.
        pos_std: standard deviation of the initial positions.
        mean: of uint8 pixels in units of 0..1, a number or one a channel.
        std: see ``mean``.
        images: whether there is a separate path for images (B, C, H, W): its own 2-D patch embedding and
            positions.
    """

    frames: int = 16
    size: int | tuple[int, int] = 256
    tubelet: tuple[int, int, int] = (2, 16, 16)
    channels: int = 3
    width: int = 768
    depth: int = 12
    heads: int = 12
    ff: int = 3072
    attention: str = "joint"
    pool: str | None = "mean"
    cls: bool | None = None
    pre_norm: bool = False
    final_norm: bool = True
    order: str = "space_time"
    gate: str = "scalar"
    positions: str = "full"
    pool_heads: int = 8
    tubes: tuple[Tube, ...] = TUBEVIT
    cross_view: bool = False
    drop_path: float = 0.0
    act: str = "gelu"
    eps: float = 1e-6
    qkv_bias: bool = True
    pos_std: float = 0.02
    mean: float | tuple[float, ...] = 0.5
    std: float | tuple[float, ...] = 0.5
    images: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", _pair(self.size))
        object.__setattr__(self, "tubelet", _whole("tubelet", self.tubelet, 3))
        object.__setattr__(self, "mean", _channel_values("mean", self.mean, self.channels))
        object.__setattr__(self, "std", _channel_values("std", self.std, self.channels))
        object.__setattr__(self, "tubes", _tubes(self.tubes))
        for name in ("frames", "channels", "width", "depth", "heads", "ff", "pool_heads"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: wanted a whole number of at least 1, got {value!r}")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: wanted one of {', '.join(map(repr, known))}, got {getattr(self, name)!r}")
        for name in ("heads", "pool_heads")[: 2 if self.pool == "attention" else 1]:
            if self.width % getattr(self, name):
                raise ValueError(f"{name}: wanted a divisor of width {self.width}, got {getattr(self, name)}")
        if self.pool == "cls" and self.cls is False:
            raise ValueError("cls: wanted True or None with pool='cls', got False")
        if self.cross_view and self.attention != "tubes":
            raise ValueError(f"cross_view: wanted attention='tubes' with it, got {self.attention!r}")
        if self.positions == "factorised" and self.attention in ("frame", "tubes"):
            raise ValueError(f"positions: wanted 'full' with attention={self.attention!r}, got 'factorised'")
        if self.attention == "tubes":
            grids_of(self.tubes, (self.frames, *self.size), "frames, size")
        for what, length, part in zip("thw", (self.frames, *self.size), self.tubelet, strict=True):
            if length % part and (self.attention != "tubes" or (self.images and what != "t")):
                name = "frames" if what == "t" else "size"
                raise ValueError(f"{name}: wanted a multiple of the tubelet's {what} = {part}, got {length}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path: wanted 0 <= rate < 1, got {self.drop_path}")
        if min(self.std) <= 0:
            raise ValueError(f"std: wanted values above 0, got {self.std}")

    @property
    def views(self) -> tuple[Size3, ...]:
        """Grids (T', H', W') of a whole clip: one, or one a tube."""
        if self.attention == "tubes":
            return tuple(tube.grid((self.frames, *self.size)) for tube in self.tubes)
        t, h, w = self.tubelet
        return ((self.frames // t, self.size[0] // h, self.size[1] // w),)

    @property
    def grid(self) -> Size3 | tuple[Size3, ...]:
        """Tubelets of a whole clip, (T', H', W'); with ``attention="tubes"`` a tuple of grids, one a tube."""
        return self.views if self.attention == "tubes" else self.views[0]

    @property
    def tokens(self) -> int:
        """Grid tokens of a whole clip, N; CLS tokens are not among them."""
        return sum(math.prod(grid) for grid in self.views)

    @property
    def class_token(self) -> bool:
        """Whether there are CLS tokens: what ``cls`` comes to."""
        return self.pool == "cls" if self.cls is None else self.cls

    @property
    def drop_rates(self) -> tuple[float, ...]:
        """The rate at which each block's branches are dropped: what ``drop_path`` comes to."""
        return tuple(self.drop_path * i / max(self.depth - 1, 1) for i in range(self.depth))

    def replace(self, **changes: Any) -> ViViTConfig:
        """Return a copy with some fields changed. Raises ``ValueError`` for a field that does not exist."""
        check_fields(type(self), changes)
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return plain(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> ViViTConfig:
        """The inverse of ``to_dict``. Raises ``ValueError`` for a field that does not exist."""
        check_fields(cls, fields)
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})

    @classmethod
    def tiny(cls, **changes: Any) -> ViViTConfig:
        """192 wide, 12 blocks, 3 heads: 5 M parameters."""
        return cls(width=192, heads=3, ff=768).replace(**changes)

    @classmethod
    def small(cls, **changes: Any) -> ViViTConfig:
        """384 wide, 12 blocks, 6 heads: 22 M parameters."""
        return cls(width=384, heads=6, ff=1536).replace(**changes)

    @classmethod
    def base(cls, **changes: Any) -> ViViTConfig:
        """768 wide, 12 blocks, 12 heads: the paper's ViT-B."""
        return cls().replace(**changes)

    @classmethod
    def large(cls, **changes: Any) -> ViViTConfig:
        """1024 wide, 24 blocks, 16 heads: the paper's ViT-L."""
        return cls(width=1024, depth=24, heads=16, ff=4096).replace(**changes)


def plain(value: Any) -> Any:
    """A value of a config as JSON has it: tuples become lists, infinity, which JSON lacks, the string "inf"."""
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return "inf" if value == math.inf else value


def check_fields(config: type, fields: dict[str, Any]) -> None:
    """Raise ``ValueError`` for a name that is no field of a dataclass, with the nearest that is one."""
    known = [f.name for f in dataclasses.fields(config)]
    for name in fields:
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"{name}: no such field of {config.__name__}{hint}; it has {', '.join(known)}")


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return _whole("size", (size, size) if isinstance(size, int) else size, 2)


def _whole(name: str, values: Sequence[int], count: int) -> tuple[int, ...]:
    values = tuple(values)
    if len(values) != count or not all(isinstance(v, int) and v >= 1 for v in values):
        raise ValueError(f"{name}: wanted {count} whole numbers of at least 1, got {values}")
    return values


def _tubes(tubes: Sequence[Tube | dict[str, Sequence[int]]]) -> tuple[Tube, ...]:
    tubes = tuple(tubes)
    for tube in tubes:
        if isinstance(tube, dict):
            check_fields(Tube, tube)
        elif not isinstance(tube, Tube):
            raise ValueError(f"tubes: wanted Tube(kernel=, stride=, offset=) each, got {tube!r}")
    if not tubes:
        raise ValueError("tubes: wanted at least one, got none")
    return tuple(Tube(**tube) if isinstance(tube, dict) else tube for tube in tubes)


def _channel_values(name: str, value: float | Sequence[float], channels: int) -> tuple[float, ...]:
    values = (value,) * channels if isinstance(value, int | float) else tuple(value)
    if len(values) != channels:
        raise ValueError(f"{name}: wanted a number or {channels} (one a channel), got {values}")
    return tuple(float(v) for v in values)
