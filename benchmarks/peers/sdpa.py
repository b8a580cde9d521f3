"""PyTorch's scaled_dot_product_attention on batches of equal length, on padded ones, and clip by clip."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def equal(q: Tensor, k: Tensor, v: Tensor, clips: int) -> Tensor:
    """Packed rows (B·N, H, d) of equal clips, by views: no copy in, no copy out."""
    views = (t.unflatten(0, (clips, -1)).transpose(1, 2) for t in (q, k, v))
    return scaled_dot_product_attention(*views).transpose(1, 2).flatten(0, 1)


def heads_first(q: Tensor, clips: int) -> Tensor:
    """The same rows as contiguous (B, H, N, d), made ready before the clock starts."""
    return q.detach().unflatten(0, (clips, -1)).transpose(1, 2).contiguous().requires_grad_(q.requires_grad)


def clip_by_clip(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """A Python loop over unequal clips."""
    parts = [
        scaled_dot_product_attention(*(t.transpose(0, 1).unsqueeze(0) for t in clip))[0].transpose(0, 1)
        for clip in zip(*(t.split(lengths) for t in (q, k, v)), strict=True)
    ]
    return torch.cat(parts)


def padded(x: Tensor, lengths: Sequence[int]) -> Tensor:
    """Packed rows (M, H, d) as (B, H, longest, d), zeros past each clip's end."""
    rows = torch.nn.utils.rnn.pad_sequence(x.detach().split(lengths), batch_first=True)
    return rows.transpose(1, 2).contiguous().requires_grad_(x.requires_grad)


def padding_mask(lengths: Sequence[int], device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """(B, 1, 1, longest), 0 for real keys, -inf for padding. Additive: a bool one is converted every time."""
    place = torch.arange(max(lengths), device=device)
    real = place < torch.tensor(lengths, device=device).unsqueeze(1)
    mask = torch.zeros(real.shape, dtype=dtype, device=device).masked_fill_(~real, float("-inf"))
    return mask[:, None, None]
