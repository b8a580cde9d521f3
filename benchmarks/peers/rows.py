"""Moving rows with PyTorch's own indexing."""

from __future__ import annotations

import torch
from torch import Tensor


def scatter_filled(x: Tensor, index: Tensor, size: int, fill: Tensor) -> Tensor:
    """Fill every row, then ``index_copy_`` over some: two passes, as indexing has no other way."""
    return fill.expand(size, -1).contiguous().index_copy_(0, index, x)


def segment_mean(x: Tensor, segment: Tensor, segments: int) -> Tensor:
    """``index_add_`` into zeros, over the counts; 16-bit rows added up in float32, as sums of thousands must be."""
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    total = wide.new_zeros(segments, x.shape[1]).index_add_(0, segment, wide)
    return (total / torch.bincount(segment, minlength=segments).clamp_(min=1).unsqueeze(1)).to(x.dtype)


def mean_of_equal(x: Tensor, clips: int) -> Tensor:
    """Pooling where clips are equally long and in order, which a plain mean can do."""
    return x.view(clips, -1, x.shape[1]).mean(1)
