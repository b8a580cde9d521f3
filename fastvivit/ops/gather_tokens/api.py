"""The public function of gather_tokens."""

from __future__ import annotations

from torch import Tensor

from fastvivit._checks import require_ids, require_tensor
from fastvivit.ops.gather_tokens.op import GATHER, OP


def gather_tokens(x: Tensor, index: Tensor, *, distinct: bool = False, backend: str = "auto") -> Tensor:
    """Take rows of ``x`` by id: ``out[m] = x[index[m]]``.

    The gradient of ``x`` adds the gradients of every row that took it, in the order of ``index``: bitwise
    repeatable.

    Args:
        x: (N, D), or (B, N, D) for a batch; float32, float16, bfloat16 or float64.
        index: (M,), or (B, K) with ids of each clip's own rows; int64, in ``0..N-1``. Ids may repeat.
        distinct: promises that they don't (in a clip). The gradient then takes one pass and no sort.
        backend: "auto" or a name of this op's table (``fastvivit info`` prints it).

    Returns:
        (M, D), or (B, K, D), in the dtype of ``x``.

    Raises:
        ValueError: a wrong shape, dtype or device, or (on a CPU) an id out of range or, against a promise,
            repeated. On a GPU an id out of range makes its row NaN, and a broken promise the gradient.
        BackendError: the named backend can't run, or none can.
    """
    require_tensor("x", x, (2, 3))
    require_ids("index", index, (x.dim() - 1,), x)
    if x.dim() == 3 and x.shape[0] != index.shape[0]:
        raise ValueError(f"index: wanted {x.shape[0]} clips like x, got shape {tuple(index.shape)}")
    if backend != "auto":
        OP.check_name(backend)
    return GATHER(x, index, distinct, backend)
