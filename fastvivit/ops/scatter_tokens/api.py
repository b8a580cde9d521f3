"""The public function of scatter_tokens."""

from __future__ import annotations

from torch import Tensor

from fastvivit._checks import require_ids, require_tensor
from fastvivit.ops.scatter_tokens.op import OP, SCATTER


def scatter_tokens(x: Tensor, index: Tensor, size: int, *, fill: Tensor | None = None, backend: str = "auto") -> Tensor:
    """Put rows at their places: ``out[index[m]] = x[m]``, and ``fill`` (else 0) wherever nobody points.

    The inverse of ``gather_tokens``; with ``fill`` a learned mask token it is a decoder's input. One pass:
    every output row is written once, from the row that addresses it or from ``fill``.

    Args:
        x: (M, D), or (B, K, D) for a batch; float32, float16, bfloat16 or float64.
        index: (M,), or (B, K) with places in each clip's own output; int64, in ``0..size-1``, distinct in a
            clip.
        size: rows of the output (of each clip).
        fill: (D,) in the dtype of ``x``; None is zeros.
        backend: "auto" or a name of this op's table (``fastvivit info`` prints it).

    Returns:
        (size, D), or (B, size, D), in the dtype of ``x``.

    Raises:
        ValueError: a wrong shape, dtype or device, or (on a CPU) an id out of range or repeated. On a GPU a
            bad id makes the whole output and its gradients NaN.
        BackendError: the named backend can't run, or none can.
    """
    require_tensor("x", x, (2, 3))
    require_ids("index", index, (x.dim() - 1,), x)
    if index.shape != x.shape[:-1]:
        raise ValueError(f"index: wanted shape {tuple(x.shape[:-1])} like the rows of x, got {tuple(index.shape)}")
    if size < 0:
        raise ValueError(f"size: wanted 0 or more rows, got {size}")
    if fill is not None:
        require_tensor("fill", fill, (1,), (x.dtype,), x)
        if fill.shape[0] != x.shape[-1]:
            raise ValueError(f"fill: wanted shape ({x.shape[-1]},) like a row of x, got {tuple(fill.shape)}")
    if backend != "auto":
        OP.check_name(backend)
    return SCATTER(x, index, size, fill, backend)
