"""What a backend of attention is told beside its rows."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Setting(NamedTuple):
    """Lengths, mask and precision of one call.

    Attributes:
        cu_seqlens_q: (S + 1,) int32.
        cu_seqlens_k: (S + 1,) int32.
        max_seqlen_q: an upper bound of the lengths, or None.
        max_seqlen_k: the same of the keys.
        softmax_scale: factor of the scores.
        causal: bottom-right aligned.
        deterministic: whether gradients must be bitwise repeatable. Where they need not be, two kernels (7 products)
            may be replaced by one (5) that adds atomically.
        schedule: of ``varlen_schedule`` for these lengths, or None.
        precision: "ieee" or "tf32" products of float32 on a GPU.
    """

    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    max_seqlen_q: int | None
    max_seqlen_k: int | None
    softmax_scale: float
    causal: bool
    deterministic: bool
    schedule: Tensor | None
    precision: str
