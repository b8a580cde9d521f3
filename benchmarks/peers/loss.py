"""Cross-entropy after a projection, with PyTorch's own functions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as nnf


def whole(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """All logits at once; the softmax of 16-bit ones in float32, as transformers takes it."""
    logits = nnf.linear(x, weight)
    return nnf.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), target)


def no_torch_own() -> str | None:
    """Why torch's own chunked loss can't take part, or None."""
    present = hasattr(nnf, "linear_cross_entropy") and hasattr(torch.nn, "LinearCrossEntropyOptions")
    return None if present else f"torch {torch.__version__} has none"


def torch_own(chunk: int | None) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """torch's own (2.13), with ``chunk`` rows at a time; None is its default."""
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk)
    return lambda x, weight, target: nnf.linear_cross_entropy(x, weight, target, options=options)
