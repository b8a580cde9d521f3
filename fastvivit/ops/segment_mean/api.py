"""The public function of segment_mean."""

from __future__ import annotations

from torch import Tensor

from fastvivit._checks import require_ids, require_tensor
from fastvivit.ops.segment_mean.op import OP, SEGMENT_MEAN


def segment_mean(x: Tensor, segment: Tensor, num_segments: int, *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """Average the rows of each segment: ``mean[s] = (1 / count[s]) · sum of x[m] over segment[m] == s``.

    Sums run in float32 (float64 for float64) in the order of the rows, with no atomics: bitwise repeatable.
    With one segment a clip it is the spatiotemporal mean pooling of the paper (section 3.1), with one a
    (clip, place) its temporal mean pooling under masking (section 3.2).

    Args:
        x: (M, D), float32, float16, bfloat16 or float64.
        segment: (M,) int64, in ``0..num_segments-1``, in any order.
        num_segments: S.
        backend: "auto" or a name of this op's table (``fastvivit info`` prints it).

    Returns:
        mean (S, D) in the dtype of ``x``, 0 for an empty segment; count (S,) int64.

    Raises:
        ValueError: a wrong shape, dtype or device, or (on a CPU) an id out of range. On a GPU a bad id makes
            the whole mean and its gradients NaN.
        BackendError: the named backend can't run, or none can.
    """
    require_tensor("x", x, (2,))
    require_ids("segment", segment, (1,), x)
    if segment.shape[0] != x.shape[0]:
        raise ValueError(f"segment: wanted {x.shape[0]} ids like the rows of x, got shape {tuple(segment.shape)}")
    if num_segments < 0:
        raise ValueError(f"num_segments: wanted 0 or more, got {num_segments}")
    if backend != "auto":
        OP.check_name(backend)
    return SEGMENT_MEAN(x, segment, num_segments, backend)
