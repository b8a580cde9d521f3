"""Divided space-time attention on packed tokens: which rows attend to which, in time and in space.

TimeSformer (Bertasius et al. 2021, section 3, "divided"): a token attends to its own place in every frame,
then to its own frame and to a copy of its clip's CLS token. The copies' outputs are averaged over the frames.
With dropped tokens sequences have different lengths; nothing is padded and nothing masked.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as nnf

import fastvivit.functional as F
from fastvivit.ops.tubelet_embed.geometry import Size3


@dataclass(frozen=True, eq=False, kw_only=True)
class Sequences:
    """Rows cut into the sequences that attend within themselves.

    Attributes:
        cu_seqlens: (S + 1,) int32.
        segment: (R,) int64 sequence of each row.
        longest: an upper bound of the lengths.
        length: the length of every sequence, or None where they differ.
        schedule: blocks of attention for every layer and the backward; None on a CPU, and for equal lengths,
            which need none.
    """

    cu_seqlens: Tensor
    segment: Tensor
    longest: int
    length: int | None
    schedule: Tensor | None


@dataclass(frozen=True, eq=False, kw_only=True)
class Division:
    """The two groupings of a batch whose rows are (CLS, tokens by place, then by time), clip after clip.

    Attributes:
        clips: B.
        slots: T'. A frame that kept nothing still has its copy of the CLS token, which attends to itself
            and counts in the average over all T' frames: as if the dropped tokens were masked keys.
        in_time: over the B·K token rows as they lie.
        in_space: over the B·T' + B·K rows that ``spread`` makes, frame after frame, CLS first.
        spread: (B·T' + B·K,) int64 row of the flattened (B·(1 + K)) that each of those is.
        back: (B·T' + B·K,) int64 place among them of each CLS copy, then of each token row.
    """

    clips: int
    slots: int
    in_time: Sequences
    in_space: Sequences
    spread: Tensor
    back: Tensor


def by_place(keep: Tensor, grid: Size3) -> tuple[Tensor, Tensor]:
    """(B, K) ids by place, then by time, and the (B, K) position in that order of each id as it came."""
    slots, height, width = grid
    area = height * width
    order = (keep % area * slots + keep // area).argsort(1)
    return keep.gather(1, order), order.argsort(1)


def all_by_place(clips: int, grid: Size3, device: torch.device) -> Tensor:
    """(B, N) ids of every token by place, then by time: the order of TimeSformer's own rows."""
    slots, height, width = grid
    ids = torch.arange(slots * height * width, device=device)
    return ids.view(slots, -1).T.reshape(1, -1).expand(clips, -1)


def divide(ids: Tensor, grid: Size3, *, full: bool) -> Division:
    """Groupings of kept tokens.

    Args:
        ids: (B, K) int64 grid ids by place, then by time, as ``by_place`` gives them.
        grid: (T', H', W').
        full: whether every token is there, so that all sequences are equally long.

    Returns:
        ``Division``; no length is read back from the device.
    """
    slots, height, width = grid
    area = height * width
    clips, kept = ids.shape
    clip = torch.arange(clips, device=ids.device).unsqueeze(1)
    place = (clip * area + ids % area).flatten()
    # The copies come before the tokens and the sort is stable, so each frame begins with its CLS.
    frame = torch.cat([torch.arange(clips * slots, device=ids.device), (clip * slots + ids // area).flatten()])
    row = torch.arange(clips * (1 + kept), device=ids.device).view(clips, 1 + kept)
    row = torch.cat([row[:, :1].expand(-1, slots).flatten(), row[:, 1:].flatten()])
    order = frame.argsort(stable=True)
    return Division(
        clips=clips,
        slots=slots,
        in_time=_sequences(place, clips * area, slots, full),
        in_space=_sequences(frame[order], clips * slots, 1 + area, full),
        spread=row[order],
        back=order.argsort(),
    )


def _sequences(segment: Tensor, count: int, longest: int, full: bool) -> Sequences:
    starts = torch.arange(count + 1, device=segment.device)
    cu_seqlens = torch.searchsorted(segment, starts, out_int32=True)
    rows = segment.shape[0]
    packed = cu_seqlens.is_cuda and not full
    schedule = F.varlen_schedule(cu_seqlens, cu_seqlens, rows, rows) if packed else None
    return Sequences(
        cu_seqlens=cu_seqlens,
        segment=segment,
        longest=longest,
        length=longest if full else None,
        schedule=schedule,
    )


def space_positions(table: Tensor, grid_from: tuple[int, int], grid_to: tuple[int, int]) -> Tensor:
    """TimeSformer's positions in space for another grid: nearest, as the original, but on the true axes.

    The original takes its own grid for square, and compares numbers of tokens only, so that a 2×8 grid gets
    the positions of 4×4.

    Args:
        table: (H·W, D), row-major h, w.
        grid_from: (H, W).
        grid_to: (H', W').

    Returns:
        (H'·W', D); ``table`` itself where the grids are equal.
    """
    if grid_from == grid_to:
        return table
    planes = table.view(1, *grid_from, -1).permute(0, 3, 1, 2)
    return nnf.interpolate(planes, size=grid_to, mode="nearest").flatten(2)[0].T


def time_positions(table: Tensor, slots: int) -> Tensor:
    """TimeSformer's positions in time (T, D) for ``slots`` frames: nearest, as the original."""
    if table.shape[0] == slots:
        return table
    return nnf.interpolate(table.T.unsqueeze(0), size=slots, mode="nearest")[0].T
