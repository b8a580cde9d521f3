"""The public functions of attention: packed sequences of any lengths, and batches of equal ones."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from fastvivit._autocast import autocast_dtype
from fastvivit._checks import FLOATING, require_tensor
from fastvivit.ops.varlen_attention.op import ATTENTION, OP


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    *,
    softmax_scale: float | None = None,
    causal: bool = False,
    deterministic: bool = True,
    return_lse: bool = False,
    schedule: Tensor | None = None,
    precision: str = "ieee",
    dropout_p: float = 0.0,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention over packed sequences: ``softmax(softmax_scale · q kᵀ) v`` within each, no padding anywhere.

    Names and meaning are those of ``flash_attn_varlen_func`` (Dao 2023), deterministic by default.

    Args:
        q: (Mq, H, d), float32, float16 or bfloat16 (float64: ``sdpa`` and ``reference`` on a CPU). Any
            strides.
        k: (Mk, Hk, d) in the dtype of ``q``; H is a multiple of Hk (grouped-query heads).
        v: (Mk, Hk, d).
        cu_seqlens_q: (S + 1,) int32, from 0, never falling: sequence s has rows ``cu[s] .. cu[s + 1] - 1``.
            Lengths may be 0. Rows past the last value come out 0 and get gradient 0 whatever their memory
            holds.
        cu_seqlens_k: (S + 1,) int32; None means ``cu_seqlens_q``.
        max_seqlen_q: an upper bound of the lengths; None never stalls a device, but some GPU backends need
            it.
        max_seqlen_k: the same of the keys.
        softmax_scale: None is ``1 / sqrt(d)``.
        causal: bottom-right aligned: query i of Lq sees keys ``j <= i + Lk - Lq``.
        deterministic: whether gradients must be bitwise repeatable.
        return_lse: whether to return the log-sum-exp of the scores too. It has a gradient.
        schedule: of ``varlen_schedule`` for these ``cu_seqlens``, built once a batch; None builds it inside.
        precision: "ieee" or "tf32": how float32 is multiplied on a GPU.
        dropout_p: 0.0; anything else is refused.
        window_size: (-1, -1); anything else is refused.
        softcap: 0.0; anything else is refused.
        backend: "auto" or a name of this op's table (``fastvivit info`` prints it).

    Returns:
        out (Mq, H, d), 0 for rows with nothing to attend to; with ``return_lse`` also lse (H, Mq) float32,
        natural log, -inf for such rows. Under autocast inputs are cast to its dtype first.

    Raises:
        ValueError: a wrong shape, dtype, device or number, or (on a CPU) bad ``cu_seqlens`` or too small a
            maximum. On a GPU bad ``cu_seqlens`` make the whole output and its gradients NaN.
        BackendError: the named backend can't run, or none can.
    """
    require_tensor("q", q, (3,), FLOATING)
    require_tensor("k", k, (3,), (q.dtype,), q)
    require_tensor("v", v, (3,), (q.dtype,), q)
    if k.shape != v.shape:
        raise ValueError(f"v: wanted shape {tuple(k.shape)} like k, got {tuple(v.shape)}")
    if k.shape[2] != q.shape[2] or q.shape[2] == 0:
        raise ValueError(f"k: wanted head dim {q.shape[2]} like q (above 0), got shape {tuple(k.shape)}")
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"k: wanted a number of heads that divides q's {q.shape[1]}, got {k.shape[1]}")
    require_tensor("cu_seqlens_q", cu_seqlens_q, (1,), (torch.int32,), q)
    if cu_seqlens_k is None:
        if k.shape[0] != q.shape[0]:
            raise ValueError(f"k: wanted {q.shape[0]} rows like q without cu_seqlens_k, got {k.shape[0]}")
        cu_seqlens_k = cu_seqlens_q
        max_seqlen_k = max_seqlen_q if max_seqlen_k is None else max_seqlen_k
    else:
        require_tensor("cu_seqlens_k", cu_seqlens_k, (1,), (torch.int32,), q)
        if cu_seqlens_k.shape != cu_seqlens_q.shape:
            wanted = tuple(cu_seqlens_q.shape)
            raise ValueError(f"cu_seqlens_k: wanted shape {wanted} like cu_seqlens_q, got {tuple(cu_seqlens_k.shape)}")
    if cu_seqlens_q.shape[0] == 0:
        raise ValueError("cu_seqlens_q: wanted at least one value (0), got shape (0,)")
    if schedule is not None:
        require_tensor("schedule", schedule, (1, 2), (torch.int32,), q)
    for name, value, off in (
        ("dropout_p", dropout_p, 0.0),
        ("softcap", softcap, 0.0),
        ("window_size", tuple(window_size), (-1, -1)),
    ):
        if value != off:
            raise ValueError(f"{name}: wanted {off} (not supported otherwise), got {value}")
    if precision not in ("ieee", "tf32"):
        raise ValueError(f"precision: wanted 'ieee' or 'tf32', got {precision!r}")
    if backend != "auto":
        OP.check_name(backend)
    scale = q.shape[2] ** -0.5 if softmax_scale is None else float(softmax_scale)
    dtype = autocast_dtype(q)
    if dtype is not None:
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    out, lse = ATTENTION(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, scale, causal, return_lse, schedule,
        precision, deterministic, backend,
    )  # fmt: skip
    return (out, lse) if return_lse else out


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    softmax_scale: float | None = None,
    causal: bool = False,
    deterministic: bool = True,
    return_lse: bool = False,
    precision: str = "ieee",
    dropout_p: float = 0.0,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention over a batch of equal lengths: ``varlen_attention`` where every sequence has the same length.

    Args:
        q: (B, N, H, d).
        k: (B, Nk, Hk, d).
        v: (B, Nk, Hk, d).
        softmax_scale: as in ``varlen_attention``, and so are the rest.
        causal: bottom-right aligned.
        deterministic: whether gradients must be bitwise repeatable.
        return_lse: whether to return lse too.
        precision: "ieee" or "tf32".
        dropout_p: 0.0.
        window_size: (-1, -1).
        softcap: 0.0.
        backend: "auto" or a name of the table of ``varlen_attention``.

    Returns:
        out (B, N, H, d); with ``return_lse`` also lse (B, H, N) float32.

    Raises:
        ValueError: as in ``varlen_attention``.
        BackendError: as in ``varlen_attention``.
    """
    require_tensor("q", q, (4,), FLOATING)
    require_tensor("k", k, (4,), (q.dtype,), q)
    require_tensor("v", v, (4,), (q.dtype,), q)
    if k.shape[0] != q.shape[0]:
        raise ValueError(f"k: wanted a batch of {q.shape[0]} like q, got shape {tuple(k.shape)}")
    if k.shape != v.shape:
        raise ValueError(f"v: wanted shape {tuple(k.shape)} like k, got {tuple(v.shape)}")
    batch, rows_q, heads, width = q.shape
    rows_k = k.shape[1]
    cu_seqlens_q = _equal_lengths(batch, rows_q, q.device)
    cu_seqlens_k = cu_seqlens_q if rows_k == rows_q else _equal_lengths(batch, rows_k, q.device)
    found = varlen_attention(
        q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), cu_seqlens_q, cu_seqlens_k, rows_q, rows_k,
        softmax_scale=softmax_scale, causal=causal, deterministic=deterministic, return_lse=return_lse,
        precision=precision, dropout_p=dropout_p, window_size=window_size, softcap=softcap, backend=backend,
    )  # fmt: skip
    if not return_lse:
        return found.view(batch, rows_q, heads, width)
    out, lse = found
    return out.view(batch, rows_q, heads, width), lse.view(heads, batch, rows_q).transpose(0, 1)


def _equal_lengths(batch: int, rows: int, device: torch.device) -> Tensor:
    """``cu_seqlens`` of ``batch`` sequences of ``rows``."""
    if device.type == "cpu" and not torch.compiler.is_compiling() and not torch._C._len_torch_dispatch_stack():
        return _equal_lengths_cpu(batch, rows)
    return torch.arange(batch + 1, dtype=torch.int32, device=device) * rows


@lru_cache(maxsize=64)
def _equal_lengths_cpu(batch: int, rows: int) -> Tensor:
    # Kept, because a call of 512 tokens is microseconds. Nobody writes to it.
    with torch.inference_mode(False):
        return torch.arange(batch + 1, dtype=torch.int32, device="cpu") * rows
