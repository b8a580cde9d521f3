"""Contrastive losses of paired rows, a block of logits at a time.

No kernel: at a width of 512 a block's products are 100 times its exponentials, and PyTorch's products are as fast as
any; beside an encoder's step both are nothing. What a block saves is memory, and that it does in plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as nnf
from torch.utils.checkpoint import checkpoint

from fastvivit._checks import FLOATING, require_tensor

# Logits that are held at once unless ``chunk`` says otherwise: 8192 x 8192, 256 MiB in float32.
_WHOLE = 1 << 26


def nce_loss(
    video: Tensor, text: Tensor, scale: Tensor | float, *, gather: bool = False, chunk: int | None = None
) -> Tensor:
    """Symmetric InfoNCE: ``½ [CE(s · V Tᵀ) + CE(s · T Vᵀ)]`` over L2-normalised rows, row i matching row i.

    The contrastive loss of the paper (section 3.1), as in CLIP (Radford et al. 2021, figure 3). Computed in
    float32, or float64 where that comes in. Logits are computed a block of rows at a time and again in the backward;
    a block gives both directions their part.

    Args:
        video: (B, D).
        text: (B, D).
        scale: multiplies the cosines: the exponential of CLIP's learned temperature. A number or a 0-d
            tensor.
        gather: take negatives from every rank of the default process group, with gradient; every rank has as many
            rows. Each returns the mean over its own rows; averaging gradients over ranks, as DDP does, gives those
            of one process.
        chunk: rows of logits at a time; None takes all of them up to 8192 x 8192, and blocks of that size beyond.

    Returns:
        0-d loss.

    Raises:
        ValueError: shapes that differ or are not (B, D), an empty batch, a chunk below 1.
    """
    _require_pairs(video, text, chunk)
    # Autocast would take the product of two float32 matrices down to 16 bits.
    with torch.autocast(video.device.type, enabled=False):
        video, text = _unit_rows(video, text)
        scale = scale.to(video.dtype) if isinstance(scale, Tensor) else scale
        if _gathers(gather):
            own = torch.distributed.get_rank() * video.shape[0]
            by_video = _excesses(video, _gather_rows(text), scale, own, chunk)[0]
            by_text = _excesses(text, _gather_rows(video), scale, own, chunk)[0]
        else:
            by_video, by_text = _excesses(video, text, scale, 0, chunk)
        return (by_video.mean() + by_text.mean()) / 2


def sigmoid_loss(
    video: Tensor,
    text: Tensor,
    scale: Tensor | float,
    bias: Tensor | float,
    *,
    gather: bool = False,
    chunk: int | None = None,
) -> Tensor:
    """SigLIP's loss (Zhai et al. 2023, equation 1): every pair by itself is a match or is none.

    ``-1/B Σ_i Σ_j log σ(z_ij (s · v_i·t_j + b))`` over L2-normalised rows, ``z_ii = 1`` and otherwise -1. Computed in
    float32, or float64 where that comes in, a block of rows at a time as ``nce_loss`` is.

    Args:
        video: (B, D).
        text: (B, D).
        scale: multiplies the cosines, a number or a 0-d tensor; SigLIP's starts at 10.
        bias: added to them, a number or a 0-d tensor; SigLIP's starts at -10, as most pairs are no match.
        gather: as in ``nce_loss``; each rank returns its own rows' part of the sum, over its own B.
        chunk: as in ``nce_loss``.

    Returns:
        0-d loss.

    Raises:
        ValueError: shapes that differ or are not (B, D), an empty batch, a chunk below 1.
    """
    _require_pairs(video, text, chunk)
    with torch.autocast(video.device.type, enabled=False):
        video, text = _unit_rows(video, text)
        scale, bias = (t.to(video.dtype) if isinstance(t, Tensor) else t for t in (scale, bias))
        own, rows = 0, video.shape[0]
        if _gathers(gather):
            own, text = torch.distributed.get_rank() * rows, _gather_rows(text)

        def block(some: Tensor, first: int) -> Tensor:
            logits = scale * some @ text.T + bias
            # -log σ(x) is softplus(x) - x: no matrix of signs.
            return nnf.softplus(logits).sum(1) - logits.diagonal(first)

        return torch.cat(_by_blocks(block, video, own, text.shape[0], chunk)).mean()


def mean_count(count: int, device: torch.device, *, gather: bool) -> int | Tensor:
    """How many tokens a rank has on average: what each divides its sum by, so that their mean is that of all tokens.

    Args:
        count: of this rank.
        device: where the sum is.
        gather: whether there are other ranks to ask.

    Returns:
        ``count``; or with ``gather``, where there is a process group, 0-d float64 on ``device``, above 0.
    """
    if not _gathers(gather):
        return count
    total = torch.tensor(float(count), dtype=torch.float64).to(device, non_blocking=True)
    torch.distributed.all_reduce(total)
    return total.clamp(min=1.0) / _ranks()


def _excesses(
    rows: Tensor, columns: Tensor, scale: Tensor | float, own: int, chunk: int | None
) -> tuple[Tensor, Tensor]:
    """By how much the logsumexp of each row's logits, and of each column's, exceeds the logit of its match.

    Args:
        rows: (n, D).
        columns: (N, D); the match of row i is column ``own + i``.
        scale: of the products.
        own: see ``columns``.
        chunk: rows at a time.

    Returns:
        (n,) of the rows, and (n,) of the columns that match them, over these rows alone.
    """

    def block(some: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
        logits = scale * some @ columns.T
        # Copied: a view would keep the block.
        return logits.logsumexp(1), logits.logsumexp(0), logits.diagonal(first).clone()

    by_row, by_column, match = zip(*_by_blocks(block, rows, own, columns.shape[0], chunk), strict=True)
    match = torch.cat(match)
    columns_of_rows = by_column[0] if len(by_column) == 1 else torch.stack(by_column).logsumexp(0)
    return torch.cat(by_row) - match, columns_of_rows[own : own + rows.shape[0]] - match


def _by_blocks(
    block: Callable[[Tensor, int], object], rows: Tensor, own: int, columns: int, chunk: int | None
) -> list[object]:
    """``block`` of some rows at a time, and the column that matches the first of them; a single one is kept whole."""
    chunk = chunk or max(1, _WHOLE // columns)
    if chunk >= rows.shape[0]:
        return [block(rows, own)]
    return [
        checkpoint(block, some, own + place * chunk, use_reentrant=False, preserve_rng_state=False)
        for place, some in enumerate(rows.split(chunk))
    ]


def _require_pairs(video: Tensor, text: Tensor, chunk: int | None) -> None:
    require_tensor("video", video, (2,))
    require_tensor("text", text, (2,), FLOATING, video)
    if video.shape != text.shape or video.shape[0] == 0:
        raise ValueError(f"text: wanted shape {tuple(video.shape)} like video, and a row, got {tuple(text.shape)}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk: wanted at least 1 row, or None, got {chunk}")


def _unit_rows(*rows: Tensor) -> list[Tensor]:
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in rows) else torch.float32
    return [nnf.normalize(t.to(dtype), dim=-1) for t in rows]


def _gathers(gather: bool) -> bool:
    return gather and torch.distributed.is_available() and torch.distributed.is_initialized()


def _gather_rows(rows: Tensor) -> Tensor:
    """Rows of every rank, in rank order, with gradient."""
    return _GatherRows.apply(rows)


class _GatherRows(torch.autograd.Function):
    """Its gradient is the sum of what every rank made of this rank's rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.rows = rows.shape[0]
        found = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(_ranks())]
        torch.distributed.all_gather(found, rows.contiguous())
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        own = torch.distributed.get_rank() * ctx.rows
        return total[own : own + ctx.rows]


def _ranks() -> int:
    return torch.distributed.get_world_size()
