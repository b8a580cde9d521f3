"""float32 matrix products on a CPU by oneDNN, which PyTorch carries but asks for convolutions only.

``torch.mm`` goes to MKL, which keeps its wide instructions from CPUs of other makers: on an AMD core with AVX-512
oneDNN is twice as fast (docs/performance-notes.md). The operator is PyTorch's own, used by its compiler, and private:
where it is missing or answers differently, ``torch.mm`` takes over.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


@cache
def no_onednn() -> str | None:
    """Why products can't go to oneDNN here, or None."""
    if not torch.backends.mkldnn.is_available():
        return "this torch is built without oneDNN"
    a, b, c = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]]), torch.tensor([[1.0, 1.0]])
    try:
        right = torch.equal(_product(a, b, c[0]), a @ b.t() + c) and torch.equal(_product_plus(a, b, c), a @ b.t() + c)
    except (AttributeError, RuntimeError, TypeError) as error:
        return f"this torch's oneDNN product can't be called: {error}"
    return None if right else "this torch's oneDNN product gives another result"


def _product(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(x, w, bias, "none", [], "")


def _product_plus(x: Tensor, w: Tensor, base: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.binary(x, base, w, None, "add")


def product(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ w.T + bias``. x (M, K), w (D, K), bias (D,), float32 on a CPU, any strides → (M, D)."""
    if _is_small(x, w) or no_onednn() is not None:
        return torch.nn.functional.linear(x, w, bias)
    (first, *rest) = _parts(x, w)
    total = _product(*first, bias)
    for part in rest:
        total = _product_plus(*part, total)
    return total


def product_plus(x: Tensor, w: Tensor, base: Tensor) -> Tensor:
    """``x @ w.T + base``. x (M, K), w (D, K), base (M, D), float32 on a CPU → (M, D), maybe in place of ``base``."""
    if _is_small(x, w) or no_onednn() is not None:
        return base.addmm_(x, w.t())
    for part in _parts(x, w):
        base = _product_plus(*part, base)
    return base


def _is_small(x: Tensor, w: Tensor) -> bool:
    # oneDNN takes 12 µs to begin, in which MKL has done these.
    return x.numel() * w.shape[0] < 1 << 20


# oneDNN adds one product after the other over all of K, so its error grows with K; torch.mm adds up by blocks, and so
# do these sums, for one more pass over the result a block. Blocks of a transposed operand (the gradient of a weight, K
# the tokens; of an input, K the width or the vocabulary) are views; those of a weight as it lies are copied, since
# oneDNN is very slow on a slice of its columns.
_DEPTH, _DEPTH_TRANSPOSED = 768, 384


def _parts(x: Tensor, w: Tensor) -> list[tuple[Tensor, Tensor]]:
    """``x`` and ``w`` in the fewest even parts along K that are short enough."""
    depth = x.shape[1]
    lies_whole = w.stride(1) != 1
    count = -(-depth // (_DEPTH_TRANSPOSED if lies_whole and x.stride(1) != 1 else _DEPTH))
    if count == 1:
        return [(x, w)]
    step = -(-depth // count)
    cuts = [slice(first, first + step) for first in range(0, depth, step)]
    return [(x[:, cut], w[:, cut] if lies_whole else w[:, cut].contiguous()) for cut in cuts]
