"""varlen_attention by Triton kernels, on a GPU or in Triton's interpreter."""

from __future__ import annotations

from functools import cache

import torch
import triton
from torch import Tensor

from fastvivit.ops.varlen_attention.schedule import GRANULE, blocks, table_size, varlen_schedule
from fastvivit.ops.varlen_attention.setting import Setting
from fastvivit.ops.varlen_attention.triton_atomic import (
    _varlen_attention_backward_finish_kernel,
    _varlen_attention_backward_prepare_kernel,
)
from fastvivit.ops.varlen_attention.triton_backward import (
    _varlen_attention_backward_dkdv_kernel,
    _varlen_attention_backward_dq_kernel,
)
from fastvivit.ops.varlen_attention.triton_configs import (
    FINISH_BLOCK,
    PREPARE,
    Tile,
    Tiles,
    arch_of,
    head_parts,
    kind_of,
    tiles_for,
)
from fastvivit.ops.varlen_attention.triton_forward import _varlen_attention_forward_kernel

LOG2_E = 1.4426950408889634
# Keys and values (or queries and their gradients) of the heads that run at a time stay within this much of the cache.
CACHE_BYTES = 32 << 20


def forward(q: Tensor, k: Tensor, v: Tensor, setting: Setting) -> tuple[Tensor, Tensor]:
    """Attention of packed sequences.

    Args:
        q: (Mq, H, d), float32, float16 or bfloat16.
        k: (Mk, Hk, d), H a multiple of Hk.
        v: (Mk, Hk, d).
        setting: lengths, mask and precision; the maxima are not needed.

    Returns:
        out (Mq, H, d) in the dtype of q, and lse (H, Mq) float32. NaN where ``cu_seqlens`` are not sound, or where
        the schedule was built for others.

    Raises:
        ValueError: the schedule has another size than these rows and sequences give.
    """
    q, k, v = _unit_stride(q), _unit_stride(k), _unit_stride(v)
    rows_q, heads, head_dim = q.shape
    out = torch.empty((rows_q, heads, head_dim), dtype=q.dtype, device=q.device)
    lse = torch.empty((heads, rows_q), dtype=torch.float32, device=q.device)
    if out.numel() == 0:
        return out, lse
    sequences = setting.cu_seqlens_q.shape[0] - 1
    table = _table(setting.schedule, setting.cu_seqlens_q, setting.cu_seqlens_k, rows_q, k.shape[0])
    tile = _tiles(q, setting.precision).forward
    entries = blocks(rows_q, sequences)
    _varlen_attention_forward_kernel[_grid(entries, tile.block_m, heads)](
        q, k, v, out, lse, table, setting.cu_seqlens_q.contiguous(), setting.cu_seqlens_k.contiguous(),
        *q.stride()[:2], *k.stride()[:2], *v.stride()[:2],
        rows_q, k.shape[0], sequences, entries, heads, heads // k.shape[1], _heads_at_once(k, heads),
        abs(setting.softmax_scale) * LOG2_E,
        CAUSAL=setting.causal, NEGATE=setting.softmax_scale < 0, **_constants(tile, setting.precision, q, k, v),
    )  # fmt: skip
    return out, lse


def backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    setting: Setting,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``forward``; those of k and v are bitwise repeatable, that of q where ``deterministic``.

    Args:
        grad_out: (Mq, H, d).
        grad_lse: (H, Mq), or None.
        q: and the other arguments as in ``forward``.
        k: (Mk, Hk, d).
        v: (Mk, Hk, d).
        out: (Mq, H, d), of ``forward``.
        lse: (H, Mq) float32, of ``forward``.
        setting: lengths, mask and precision; the maxima are not needed.

    Returns:
        Gradients of q, k and v, in their shapes and dtypes, contiguous.

    Raises:
        ValueError: the schedule has another size than these rows and sequences give.
    """
    q, k, v, grad_out = _unit_stride(q), _unit_stride(k), _unit_stride(v), _unit_stride(grad_out)
    rows_q, heads, head_dim = q.shape
    rows_k, kv_heads, _ = k.shape
    grad_q, grad_k, grad_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    sequences = setting.cu_seqlens_q.shape[0] - 1
    table = _table(setting.schedule, setting.cu_seqlens_q, setting.cu_seqlens_k, rows_q, rows_k)
    out, lse = out.contiguous(), lse.contiguous()
    lse_log2, delta = (torch.empty((heads, rows_q), dtype=torch.float32, device=q.device) for _ in range(2))
    tiles = _tiles(q, setting.precision).launches(setting.causal)
    entries_q, entries_k = blocks(rows_q, sequences), blocks(rows_k, sequences)
    strides = (*q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *grad_out.stride()[:2])
    lse_strides = (0, 0) if grad_lse is None else grad_lse.stride()
    scales = (setting.softmax_scale, setting.softmax_scale * LOG2_E)
    sum_q = None
    if not setting.deterministic and "atomic" in tiles and grad_q.numel() and grad_k.numel():
        sum_q = torch.empty(grad_q.shape, dtype=torch.float32, device=q.device)
    if grad_q.numel() and (sum_q is not None or kind_of(q.dtype, setting.precision) == "ieee"):
        _varlen_attention_backward_prepare_kernel[(triton.cdiv(rows_q, PREPARE.block_m), heads)](
            out, grad_out, lse, grad_lse, lse_log2, delta, sum_q, *grad_out.stride()[:2], *lse_strides, rows_q, heads,
            HEAD_DIM=head_dim, HEAD_PAD=triton.next_power_of_2(head_dim), BLOCK_M=PREPARE.block_m,
            HAS_GRAD_LSE=grad_lse is not None,
            num_warps=PREPARE.num_warps, num_stages=PREPARE.num_stages, enable_fp_fusion=True,
        )  # fmt: skip
    if grad_q.numel() and sum_q is None:
        tile = tiles["dq"]
        _varlen_attention_backward_dq_kernel[_grid(entries_q, tile.block_m, heads)](
            q, k, v, out, grad_out, lse, grad_lse, lse_log2, delta, grad_q, table, *strides, *lse_strides,
            rows_q, rows_k, sequences, entries_q, heads, heads // kv_heads, _heads_at_once(k, heads), *scales,
            CAUSAL=setting.causal, HAS_GRAD_LSE=grad_lse is not None,
            **_constants(tile, setting.precision, q, k, v, grad_out),
        )  # fmt: skip
    if grad_k.numel():
        tile = tiles["dkdv" if sum_q is None else "atomic"]
        _varlen_attention_backward_dkdv_kernel[_grid(entries_k, tile.block_n, kv_heads)](
            q, k, v, grad_out, lse_log2, delta, grad_k, grad_v, sum_q, table, *strides,
            rows_q, rows_k, sequences, entries_q, entries_k, kv_heads, _heads_at_once(q, kv_heads), *scales,
            GROUP=heads // kv_heads, CAUSAL=setting.causal, ADD_TO_QUERIES=sum_q is not None,
            **_constants(tile, setting.precision, q, k, v, grad_out),
        )  # fmt: skip
    if sum_q is not None:
        _varlen_attention_backward_finish_kernel[(triton.cdiv(grad_q.numel(), FINISH_BLOCK),)](
            sum_q, grad_q, table, rows_q, rows_k, sequences, grad_q.numel(), setting.softmax_scale, BLOCK=FINISH_BLOCK
        )
    return grad_q, grad_k, grad_v


def _unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _table(schedule: Tensor | None, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, rows_q: int, rows_k: int) -> Tensor:
    if schedule is None:
        return varlen_schedule(cu_seqlens_q, cu_seqlens_k, rows_q, rows_k)
    wanted = (table_size(rows_q, rows_k, cu_seqlens_q.shape[0] - 1),)
    if schedule.shape != wanted or schedule.dtype != torch.int32 or schedule.device != cu_seqlens_q.device:
        raise ValueError(
            f"schedule: wanted varlen_schedule of {rows_q} and {rows_k} rows in {cu_seqlens_q.shape[0] - 1} sequences "
            f"(shape {wanted}, int32, {cu_seqlens_q.device}), got shape {tuple(schedule.shape)}, "
            f"{str(schedule.dtype).removeprefix('torch.')}, {schedule.device}"
        )
    return schedule.contiguous()


@cache
def _arch(device: torch.device) -> int:
    return arch_of(torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0))


def _tiles(q: Tensor, precision: str) -> Tiles:
    return tiles_for(_arch(q.device), kind_of(q.dtype, precision), q.shape[2])


def _grid(entries: int, block: int, heads: int) -> tuple[int]:
    return (entries * (GRANULE // block) * heads,)


def _heads_at_once(other: Tensor, heads: int) -> int:
    """Heads to run side by side, by the cache that the two tensors they stream, of the size of ``other``, take."""
    of_one_head = 2 * other.shape[0] * other.shape[2] * other.element_size()
    return max(1, min(heads, CACHE_BYTES // max(of_one_head, 1)))


def _constants(tile: Tile, precision: str, *tensors: Tensor) -> dict:
    head_dim = tensors[0].shape[2]
    columns, rest = head_parts(head_dim)
    return {
        "HEAD_DIM": head_dim,
        "HEAD_PAD": columns,
        "REST": rest,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "WIDE": any(abs(x.stride(0)) * GRANULE >= 2**31 for x in tensors),
        # One name for everything that matrix instructions compute: "ieee" has its own schedule in the kernels.
        "PRECISION": "ieee" if kind_of(tensors[0].dtype, precision) == "ieee" else "tf32",
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
        # The default is announced to change; every exp2 argument here is one FMA.
        "enable_fp_fusion": True,
    }
