"""Attention of packed sequences in float64, forward and gradients, by blocks: the definition at lengths of 32 thousand.

A whole score matrix of 32,768 tokens and 12 heads would take 100 GB in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Of scores, at a time.
BLOCK_BYTES = 1 << 30


def _blocks(length: int, heads: int) -> range:
    return range(0, length, max(1, BLOCK_BYTES // (8 * heads * max(length, 1))))


@torch.no_grad()
def attention(
    q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], grad: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Self-attention within each of ``lengths``; q, k, v (M, H, d) → (out, [grad_q, grad_k, grad_v] for ``grad``)."""
    q, k, v = (t.detach().double() for t in (q, k, v))
    out = torch.empty_like(q)
    grads = [torch.zeros_like(t) for t in (q, k, v)] if grad is not None else []
    start = 0
    for length in lengths:
        rows = slice(start, start + length)
        head_first = [t[rows].transpose(0, 1) for t in (q, k, v)]
        qs, ks, vs = head_first
        scale = q.shape[2] ** -0.5
        for begin in (blocks := _blocks(length, q.shape[1])):
            some = slice(begin, min(begin + blocks.step, length))
            place = slice(start + some.start, start + some.stop)
            p = (qs[:, some] @ ks.transpose(1, 2)).mul_(scale).softmax(2)
            found = p @ vs
            out[place] = found.transpose(0, 1)
            if grad is None:
                continue
            arriving = grad[place].detach().double().transpose(0, 1)
            grads[2][rows] += (p.transpose(1, 2) @ arriving).transpose(0, 1)
            delta = (found * arriving).sum(2, keepdim=True)
            ds = p.mul_((arriving @ vs.transpose(1, 2)).sub_(delta)).mul_(scale)
            grads[0][place] = (ds @ ks).transpose(0, 1)
            grads[1][rows] += (ds.transpose(1, 2) @ qs[:, some]).transpose(0, 1)
        start += length
    return out, grads
