"""Rows brought together by segment, with PyTorch's sort: what the ``triton`` and ``cuda`` sums start from."""

from __future__ import annotations

import torch
from torch import Tensor


def sort_ids(ids: Tensor, segments: int) -> tuple[Tensor, Tensor]:
    """Rows by segment, each one's in order: offsets (segments + 1,), order (M,). An id outside is in none."""
    values, order = ids.sort(stable=True)
    return torch.searchsorted(values, torch.arange(segments + 1, device=ids.device)), order
