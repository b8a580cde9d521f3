"""V-JEPA 2's rotary positions, read from the grid of the clip that is there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastvivit.ops.tubelet_embed.geometry import Size3

Coordinates = tuple[Tensor, Tensor, Tensor]


class Places:
    """Where the tokens of one call stand on their clips' grid.

    Made once a call, and handed to every layer as its ``position_mask``, so that any kind of checkpointing
    computes a layer again with the places of its own call. The first layer works the tables out for all; compiled,
    each does, since a layer in a checkpoint must not write to what lies outside, and the compiler merges them.

    Args:
        grid: (T', H', W').
        ids: (B, K) int64 grid ids; None for every token in order.
        device: of the tokens.
        attentions: whether attention probabilities are wanted.
    """

    def __init__(self, grid: Size3, ids: Tensor | None, device: torch.device, attentions: bool) -> None:
        self.grid, self.ids, self.attentions = grid, ids, attentions
        self._device = device
        self._tables: dict[tuple, tuple[Tensor, Tensor]] = {}

    @property
    def coordinates(self) -> Coordinates:
        """(t, h, w) of each token, int64: (B, K) each, or (N,) without ids."""
        slots, height, width = self.grid
        area = height * width
        ids = torch.arange(slots * area, device=self._device) if self.ids is None else self.ids
        return ids // area, ids % area // width, ids % width

    def for_heads(self, hidden_states: Tensor, masks: Tensor | None = None) -> Coordinates:
        """Stands in for ``get_position_ids`` of the original attention: coordinates with an axis of heads."""
        t, h, w = self.coordinates
        return (t, h, w) if self.ids is None else (t.unsqueeze(1), h.unsqueeze(1), w.unsqueeze(1))

    def table(self, dims: Sequence[int], head: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """``rotation`` of these places: cos and sin, (B, K, 1, head) or (N, 1, head)."""
        key = (*dims, head, dtype)
        if key in self._tables:
            return self._tables[key]
        found = rotation(self.coordinates, dims, head, dtype)
        if not torch.compiler.is_compiling():
            self._tables[key] = found
        return found


def rotation(coordinates: Coordinates, dims: Sequence[int], head: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines of V-JEPA 2's 3-D rotary embedding (Assran et al. 2025).

    ``dims`` columns of a head turn by time, height and width in that order; the rest stand still. As in the
    original, and in its dtype: angle ``place / 10000^(2i/dim)``, the ``dim / 2`` of them tiled over the
    columns although columns turn in neighbouring pairs. The weights were trained with it.

    Args:
        coordinates: (t, h, w) of each token, int64, any one shape.
        dims: even columns for t, h and w.
        head: d, columns of a head.
        dtype: of the queries.

    Returns:
        cos and sin, (..., 1, d); the sine of a pair's first column is negated, so that ``rotate`` need not.
    """
    cosines, sines = [], []
    for place, dim in zip(coordinates, dims, strict=True):
        power = torch.arange(dim // 2, dtype=dtype, device=place.device) / (dim / 2.0)
        angle = (place.unsqueeze(-1) * (1.0 / 10000**power)).repeat(*[1] * place.dim(), 2)
        cosines.append(angle.cos())
        sines.append(angle.sin())
    still = (*coordinates[0].shape, head - sum(dims))
    cos = torch.cat([*cosines, cosines[0].new_ones(still)], -1)
    sin = torch.cat([*sines, sines[0].new_zeros(still)], -1)
    sign = torch.ones(head, dtype=dtype, device=sin.device)
    sign[0::2] = -1
    return cos.unsqueeze(-2), (sin * sign).unsqueeze(-2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn neighbouring pairs of columns of (B, N, H, d) by the tables of ``rotation``."""
    paired = x.shape[-1] // 2 * 2  # an odd head's last column never turns
    part, cos, sin = x[..., :paired], cos[..., :paired], sin[..., :paired]
    swapped = part.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    turned = torch.addcmul(part * cos, swapped, sin)
    return turned if paired == x.shape[-1] else torch.cat([turned, x[..., paired:]], -1)
