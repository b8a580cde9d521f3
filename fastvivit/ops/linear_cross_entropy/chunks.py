"""Loss and gradients of a chunk of rows at a time: one buffer of logits becomes their gradient in place.

That the gradient can be had in the forward, since only a factor is missing from it, is the idea of Liger Kernel (Hsu
et al. 2024, section 3.2).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as nnf

from fastvivit.ops._product import product, product_plus

# float32 logits of a chunk, and rows at least. On a CPU the buffer should stay near the caches, and a product of fewer
# rows spends its time reading the weight; on a GPU it must be long enough to fill the device and hide the launches.
_CPU_BYTES, _CPU_ROWS = 24 << 20, 64
_GPU_BYTES, _GPU_ROWS = 256 << 20, 256
# Columns of a 16-bit product that is added to a float32 gradient of the weight: only so much of it exists at a time.
_COLUMNS = 8192


class Head(NamedTuple):
    """What makes logits of rows: ``cap(scale · (x @ weight.T + bias))``, ``cap(l) = softcap · tanh(l / softcap)``."""

    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float


class Rows(NamedTuple):
    """Which rows are counted, and their targets.

    Attributes:
        kept: (m,) int64, the counted rows where the others are left out; None where all rows are worked on.
        ids: (m,) int64, within the classes.
        ignored: (m,) bool, rows to be left out of every sum; None where there are none.
        bad: (m,) bool, rows whose target was out of range; None where there are none.
        count: 0-d int64, rows that are counted.
    """

    kept: Tensor | None
    ids: Tensor
    ignored: Tensor | None
    bad: Tensor | None
    count: Tensor


def checked_rows(target: Tensor, classes: int, ignore_index: int) -> Rows:
    """The rows of ``target`` (M,): on a CPU compacted, and a bad target is an error; elsewhere masked, unseen.

    Raises:
        ValueError: on a CPU, a target out of range.
    """
    ignored = target == ignore_index
    bad = ((target < 0) | (target >= classes)) & ~ignored
    if target.device.type != "cpu":
        return _masked_rows(target, ignored, bad)
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ValueError(
            f"target: wanted ids in 0..{classes - 1} or {ignore_index}, got {int(target[row])} at row {row}"
        )
    if not ignored.any():
        return Rows(None, target, None, None, torch.tensor(target.shape[0]))
    kept = (~ignored).nonzero().squeeze(1)
    return Rows(kept, target[kept], None, None, torch.tensor(kept.shape[0]))


def _masked_rows(target: Tensor, ignored: Tensor, bad: Tensor) -> Rows:
    # How many rows are ignored would have to be waited for.
    ids = target.masked_fill(ignored | bad, 0)
    return Rows(None, ids, ignored, bad, (~ignored).sum())


def chunk_rows(rows: int, classes: int, device: str, chunk: int) -> int:
    """Rows of a chunk: ``chunk``, or with 0 by the size of their logits; chunks are then equally long."""
    if chunk:
        return chunk
    size, least = (_CPU_BYTES, _CPU_ROWS) if device == "cpu" else (_GPU_BYTES, _GPU_ROWS)
    most = max(least, size // (4 * classes))
    return -(-rows // max(1, -(-rows // most))) or 1


class Sums(NamedTuple):
    """Losses (m,) of rows, and gradients of their sum: dx (m, D) in the dtype of x, dw and db in float32 at least."""

    losses: Tensor
    dx: Tensor | None
    dw: Tensor | None
    db: Tensor | None


def run(x: Tensor, head: Head, rows: Rows, needs: tuple[bool, ...], chunk: int, factor: Tensor | None = None) -> Sums:
    """Losses of the rows of ``x`` and the gradients that are asked for.

    Args:
        x: (m, D), the rows of ``rows`` only.
        head: its weight is (V, D).
        rows: of ``checked_rows``.
        needs: whether the gradients of x, weight and bias are wanted.
        chunk: rows of a chunk, or 0.
        factor: (m,), the gradient of each row's loss; None is 1.

    Returns:
        ``Sums``; None for what was not asked for.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    needs_x, needs_weight, needs_bias = needs
    losses = x.new_empty(x.shape[0], dtype=wide)
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if needs_x else None
    dw = torch.zeros(head.weight.shape, dtype=wide, device=x.device) if needs_weight else None
    db = x.new_zeros(head.weight.shape[0], dtype=wide) if needs_bias else None
    step = chunk_rows(x.shape[0], head.weight.shape[0], x.device.type, chunk)
    for first in range(0, x.shape[0], step):
        part = slice(first, first + step)
        slope = _chunk(x[part], head, _part(rows, part), losses[part], any(needs))
        if slope is None:
            continue
        if factor is not None:
            slope.mul_(factor[part].unsqueeze(1))
        if db is not None:
            db += slope.sum(0)
        slope = slope.to(x.dtype)
        if dx is not None:
            dx[part] = _times(slope, head.weight.t())
        if dw is not None:
            dw = _add_weight_gradient(dw, slope, x[part])
    if rows.bad is not None:
        # Any entry of them may lack what a bad row should have given.
        spoiled = rows.bad.any()
        dw, db = (None if sums is None else sums.masked_fill_(spoiled, float("nan")) for sums in (dw, db))
    return Sums(losses, dx, dw, db)


def _part(rows: Rows, part: slice) -> Rows:
    ids, ignored, bad = (None if t is None else t[part] for t in (rows.ids, rows.ignored, rows.bad))
    return rows._replace(ids=ids, ignored=ignored, bad=bad)


def _chunk(x: Tensor, head: Head, rows: Rows, losses: Tensor, slope_wanted: bool) -> Tensor | None:
    """Write the losses of a chunk; the gradient (c, V) of their sum by ``x @ weight.T + bias``, or None."""
    logits = _times(x, head.weight, head.bias).to(losses.dtype)
    if head.scale != 1.0:
        logits.mul_(head.scale)
    tanh = None
    if head.softcap:
        tanh = logits.div_(head.softcap).tanh_()
        logits = tanh * head.softcap
    ids = rows.ids.unsqueeze(1)
    logits.sub_(logits.amax(1, keepdim=True))
    hit = logits.gather(1, ids)
    total = logits.exp_().sum(1, keepdim=True)
    losses.copy_((total.log() - hit).squeeze(1))
    if rows.bad is not None:
        losses.masked_fill_(rows.ignored, 0.0).masked_fill_(rows.bad, float("nan"))
    if not slope_wanted:
        return None
    slope = logits.mul_(total.reciprocal())
    one = torch.ones_like(hit)
    if rows.bad is not None:
        one.masked_fill_(rows.bad.unsqueeze(1), float("nan"))
    slope.scatter_(1, ids, slope.gather(1, ids) - one)
    if tanh is not None:
        slope.mul_(tanh.square_().neg_().add_(1.0))
    if head.scale != 1.0:
        slope.mul_(head.scale)
    return slope if rows.ignored is None else slope.masked_fill_(rows.ignored.unsqueeze(1), 0.0)


def _times(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """``a @ b.T + bias``."""
    if a.dtype == torch.float32 and a.device.type == "cpu":
        return product(a, b, bias)
    return nnf.linear(a, b, bias)


def _add_weight_gradient(dw: Tensor, slope: Tensor, x: Tensor) -> Tensor:
    """``dw + slope.T @ x``, maybe in place: dw (V, D), slope (c, V), x (c, D)."""
    if dw.dtype != x.dtype:
        for columns, some in zip(slope.split(_COLUMNS, 1), dw.split(_COLUMNS), strict=True):
            some.add_(columns.t() @ x)
        return dw
    if dw.dtype == torch.float32 and dw.device.type == "cpu":
        return product_plus(slope.t(), x.t(), dw)
    return dw.addmm_(slope.t(), x)
