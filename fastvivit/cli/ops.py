"""The ops, each with a small case: what ``info`` asks their backends about, and ``selftest`` runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import fastvivit.functional as F
from fastvivit._backends import Op
from fastvivit.ops.gather_tokens.op import OP as GATHER
from fastvivit.ops.scatter_tokens.op import OP as SCATTER
from fastvivit.ops.segment_mean.op import OP as SEGMENT
from fastvivit.ops.tubelet_embed.op import OP as EMBED
from fastvivit.ops.varlen_attention.op import OP as ATTENTION


@dataclass(frozen=True, kw_only=True)
class Case:
    """One op on one small input.

    Attributes:
        op: its table of backends.
        floats: makes the floating inputs, float64 on a CPU, from a generator; all get gradients.
        call: runs the op on (floats, backend) and returns its floating outputs.
        asked: the arguments that the op's backends look at, out of the floats.
    """

    op: Op
    floats: Callable[[torch.Generator], list[Tensor]]
    call: Callable[[list[Tensor], str], list[Tensor]]
    asked: Callable[[list[Tensor]], tuple[Any, ...]]


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _on(like: Tensor, values: list[int], dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=like.device)


def _video(like: Tensor) -> Tensor:
    pixels = torch.arange(2 * 3 * 4 * 32 * 32) * 31 % 256
    return pixels.to(torch.uint8).view(2, 3, 4, 32, 32).to(like.device)


def _embed(floats: list[Tensor], backend: str) -> list[Tensor]:
    weight, bias, pos = floats
    keep = _on(weight, [0, 3, 6, 1, 2, 7]).view(2, 3)
    norm = {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.6, 0.7]}
    return [F.tubelet_embed(_video(weight), weight, bias, pos=pos, keep=keep, backend=backend, **norm)]


def _attend(floats: list[Tensor], backend: str) -> list[Tensor]:
    bounds = _on(floats[0], [0, 5, 5, 38, 40], torch.int32)
    return [F.varlen_attention(*floats, bounds, None, 33, backend=backend)]


CASES = (
    Case(
        op=EMBED,
        floats=lambda g: [_normal(g, 24, 3, 2, 16, 16) / 39, _normal(g, 24), _normal(g, 8, 24)],
        call=_embed,
        asked=lambda floats: (_video(floats[0]), floats[0]),
    ),
    Case(
        op=GATHER,
        floats=lambda g: [_normal(g, 11, 24)],
        call=lambda f, backend: [F.gather_tokens(f[0], _on(f[0], [3, 0, 3, 10, 7]), backend=backend)],
        asked=lambda floats: (floats[0],),
    ),
    Case(
        op=SCATTER,
        floats=lambda g: [_normal(g, 4, 24), _normal(g, 24)],
        call=lambda f, backend: [F.scatter_tokens(f[0], _on(f[0], [5, 0, 8, 3]), 10, fill=f[1], backend=backend)],
        asked=lambda floats: (floats[0],),
    ),
    Case(
        op=SEGMENT,
        floats=lambda g: [_normal(g, 7, 24)],
        call=lambda f, backend: [F.segment_mean(f[0], _on(f[0], [0, 0, 3, 1, 3, 3, 0]), 5, backend=backend)[0]],
        asked=lambda floats: (floats[0],),
    ),
    Case(
        op=ATTENTION,
        floats=lambda g: [_normal(g, 40, 2, 16) for _ in range(3)],
        call=_attend,
        asked=lambda floats: (floats[0], 33, 33, False),
    ),
)
