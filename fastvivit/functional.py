"""Every op as a plain function. ``import fastvivit.functional as F``."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as nnf

from fastvivit._checks import require_ids, require_tensor
from fastvivit.losses import nce_loss, sigmoid_loss
from fastvivit.ops.gather_tokens.api import gather_tokens
from fastvivit.ops.linear_cross_entropy.api import linear_cross_entropy
from fastvivit.ops.scatter_tokens.api import scatter_tokens
from fastvivit.ops.segment_mean.api import segment_mean
from fastvivit.ops.tubelet_embed.api import tubelet_embed
from fastvivit.ops.varlen_attention.api import attention, varlen_attention
from fastvivit.ops.varlen_attention.schedule import varlen_schedule

__all__ = [
    "attention",
    "gather_tokens",
    "inflate",
    "linear_cross_entropy",
    "nce_loss",
    "pack",
    "random_keep",
    "resize_positions",
    "scatter_tokens",
    "segment_mean",
    "sigmoid_loss",
    "tubelet_embed",
    "unpack",
    "varlen_attention",
    "varlen_schedule",
]

_STRATEGIES = ("random", "tube", "frame")


def random_keep(
    batch: int,
    num_tokens: int,
    mask_ratio: float,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    strategy: str = "random",
    grid: Sequence[int] | None = None,
) -> Tensor:
    """Draw which tokens of each clip to keep, uniformly and independently by clip.

    The masking of the paper (section 4.3): what is dropped is never embedded.

    Args:
        batch: B clips.
        num_tokens: N tokens on a clip's grid.
        mask_ratio: share to drop, ``0 <= mask_ratio < 1``.
        generator: source of randomness; None is PyTorch's default. Ids are drawn on its device.
        device: where the result goes; None is the generator's device.
        strategy: "random": K = N - floor(N·r). "tube": the same places in every time slot, K = T'·(S -
            floor(S·r)) with S = H'·W'. "frame": whole time slots, K = S·(T' - floor(T'·r)).
        grid: (T', H', W'); needed for "tube" and "frame".

    Returns:
        (B, K) int64, ascending in each row.

    Raises:
        ValueError: a number out of its range, an unknown strategy, a grid that does not have N tokens.
    """
    if not 0 <= mask_ratio < 1:
        raise ValueError(f"mask_ratio: wanted 0 <= ratio < 1, got {mask_ratio}")
    if batch < 0 or num_tokens < 1:
        raise ValueError(f"batch, num_tokens: wanted at least 0 and 1, got {batch} and {num_tokens}")
    if strategy not in _STRATEGIES:
        raise ValueError(f"strategy: wanted one of {', '.join(map(repr, _STRATEGIES))}, got {strategy!r}")
    if strategy != "random" and grid is None:
        raise ValueError(f"grid: wanted (T', H', W') for strategy {strategy!r}, got None")
    if grid is not None and (len(grid) != 3 or math.prod(grid) != num_tokens):
        raise ValueError(f"grid: wanted (T', H', W') with {num_tokens} tokens, got {tuple(grid)}")
    where = generator.device if generator is not None else torch.device(device or "cpu")
    slots, places = (1, num_tokens) if grid is None else (grid[0], grid[1] * grid[2])
    pool = {"random": num_tokens, "tube": places, "frame": slots}[strategy]
    chosen = _choose(batch, pool, pool - _dropped(pool, mask_ratio), generator, where)
    if strategy == "tube":
        chosen = (torch.arange(slots, device=where).view(1, -1, 1) * places + chosen.unsqueeze(1)).flatten(1)
    elif strategy == "frame":
        chosen = (chosen.unsqueeze(2) * places + torch.arange(places, device=where)).flatten(1)
    return chosen if device is None else chosen.to(device, non_blocking=True)


def _dropped(count: int, ratio: float) -> int:
    # 10 · 0.3 is 2.999…96 in floating point, and means 3.
    return math.floor(count * ratio + 1e-9)


def _choose(batch: int, pool: int, kept: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    # torch.compile can't trace a size that varies beside a generator, even None.
    source = {} if generator is None else {"generator": generator}
    noise = torch.rand(batch, pool, device=device, **source)
    # Of 32,768 tokens five times as fast on a CPU as a sort of them all.
    return noise.topk(kept, 1, largest=False, sorted=False).indices.sort(1).values


def resize_positions(
    pos: Tensor, grid_from: Sequence[int], grid_to: Sequence[int], *, how: str = "interpolate"
) -> Tensor:
    """Position table of one grid as that of another.

    Height and width are interpolated (bicubic, as image ViTs do). Time is, by ``how``: "interpolate", linear,
    ends to ends; "repeat", each slot held for its share of the longer clip; "tile", the table over and over.
    Tiling makes a mean-pooled encoder with frozen early layers blind to the order of the tiles, so it is not
    the default.

    Args:
        pos: (T·H·W, D), row-major t, h, w.
        grid_from: (T, H, W) of ``pos``.
        grid_to: (T', H', W') wanted.
        how: what happens along time.

    Returns:
        (T'·H'·W', D) in the dtype of ``pos``; ``pos`` itself where the grids are equal.

    Raises:
        ValueError: a table that does not have the rows of ``grid_from``, an empty grid, an unknown ``how``.
    """
    require_tensor("pos", pos, (2,))
    grid_from, grid_to = tuple(grid_from), tuple(grid_to)
    if how not in ("interpolate", "repeat", "tile"):
        raise ValueError(f"how: wanted 'interpolate', 'repeat' or 'tile', got {how!r}")
    if len(grid_from) != 3 or math.prod(grid_from) != pos.shape[0]:
        raise ValueError(f"grid_from: wanted (T, H, W) with {pos.shape[0]} positions like pos, got {grid_from}")
    if len(grid_to) != 3 or min(grid_to) < 1:
        raise ValueError(f"grid_to: wanted (T, H, W) of at least 1 each, got {grid_to}")
    if grid_from == grid_to:
        return pos
    wide = torch.promote_types(pos.dtype, torch.float32)
    table = pos.to(wide).view(*grid_from, -1)
    if grid_from[1:] != grid_to[1:]:
        table = nnf.interpolate(table.permute(0, 3, 1, 2), size=grid_to[1:], mode="bicubic", align_corners=False)
        table = table.permute(0, 2, 3, 1)
    slots, wanted = grid_from[0], grid_to[0]
    if slots != wanted:
        if how == "interpolate":
            flat = table.reshape(slots, -1).T.unsqueeze(0)
            flat = nnf.interpolate(flat, size=wanted, mode="linear", align_corners=True)
            table = flat[0].T.reshape(wanted, *table.shape[1:])
        else:
            step = torch.arange(wanted, device=pos.device)
            table = table[step % slots if how == "tile" else step * slots // wanted]
    return table.reshape(math.prod(grid_to), -1).to(pos.dtype)


def inflate(weight_2d: Tensor, t: int, *, size: Sequence[int] | None = None, how: str = "average") -> Tensor:
    """A 2-D patch convolution's weight as a 3-D tubelet convolution's (paper, appendix A; ViViT section 3.4).

    Args:
        weight_2d: (D, C, h, w).
        t: frames of a tubelet.
        size: (h', w') of the new kernel; the old one is resized first (bilinear, antialiased), and scaled by
            ``h·w / (h'·w')`` so that a flat patch keeps its value. None keeps it.
        how: "average": the weight repeated over time and divided by t, so that a still clip gives the image's
            tokens; "central": all of it at frame ``t // 2``, zeros elsewhere.

    Returns:
        (D, C, t, h', w') in the dtype of ``weight_2d``.

    Raises:
        ValueError: a weight that is not 4-D, ``t`` or ``size`` below 1, an unknown ``how``.
    """
    require_tensor("weight_2d", weight_2d, (4,))
    if t < 1:
        raise ValueError(f"t: wanted at least 1 frame, got {t}")
    if how not in ("average", "central"):
        raise ValueError(f"how: wanted 'average' or 'central', got {how!r}")
    if size is not None and tuple(size) != tuple(weight_2d.shape[2:]):
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"size: wanted (h, w) of at least 1 each, got {tuple(size)}")
        wide = torch.promote_types(weight_2d.dtype, torch.float32)
        ratio = math.prod(weight_2d.shape[2:]) / math.prod(size)
        resized = nnf.interpolate(weight_2d.to(wide), size=tuple(size), mode="bilinear", antialias=True)
        weight_2d = (resized * ratio).to(weight_2d.dtype)
    if how == "average":
        return (weight_2d / t).unsqueeze(2).expand(-1, -1, t, -1, -1).contiguous()
    out = weight_2d.new_zeros(*weight_2d.shape[:2], t, *weight_2d.shape[2:])
    out[:, :, t // 2] = weight_2d
    return out


def pack(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """Padded rows as packed ones: flash-attn's ``unpad_input``.

    Args:
        x: (B, N, ...).
        mask: (B, N) bool, True = real.

    Returns:
        packed (M, ...), index (M,) int64 of each row in the flattened (B·N), cu_seqlens (B + 1,) int32, the
        longest length. Reads the mask, so on a GPU it waits for it.

    Raises:
        ValueError: a mask that is not bool or does not match.
    """
    require_tensor("mask", mask, (2,), (torch.bool,), x)
    if x.shape[:2] != mask.shape:
        raise ValueError(f"mask: wanted shape {tuple(x.shape[:2])} like x, got {tuple(mask.shape)}")
    index = mask.flatten().nonzero().squeeze(1)
    lengths = mask.sum(1, dtype=torch.int32)
    cu_seqlens = nnf.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    rows = x.flatten(0, 1)
    packed = gather_tokens(rows.flatten(1), index, distinct=True).view(-1, *x.shape[2:])
    return packed, index, cu_seqlens, int(lengths.max()) if len(lengths) else 0


def unpack(packed: Tensor, index: Tensor, shape: Sequence[int]) -> Tensor:
    """Packed rows back in their padded places, zeros elsewhere: flash-attn's ``pad_input``.

    Args:
        packed: (M, ...).
        index: (M,) int64 of ``pack``.
        shape: (B, N).

    Returns:
        (B, N, ...).

    Raises:
        ValueError: an index that does not match or lies outside.
    """
    require_ids("index", index, (1,), packed)
    batch, length = shape
    return scatter_tokens(packed.flatten(1), index, batch * length).view(batch, length, *packed.shape[1:])
