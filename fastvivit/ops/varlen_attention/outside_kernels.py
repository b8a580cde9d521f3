"""What varlen_attention promises, around packed kernels that promise less: those of PyTorch and of flash-attn.

They take 16-bit CUDA tensors and maxima of the lengths, and leave open what lies outside the sequences, bad lengths,
rows with nothing to attend to and the gradient of lse. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastvivit.ops.varlen_attention.setting import Setting

HALF = (torch.float16, torch.bfloat16)


def refuses(q: Tensor, max_seqlen_q: int | None, max_seqlen_k: int | None) -> str | None:
    """Why kernels of the flash-attn family can't take these inputs, or None."""
    if q.device.type != "cuda":
        return f"tensors are on {q.device}, wanted cuda"
    if q.dtype not in HALF:
        return f"dtype {str(q.dtype).removeprefix('torch.')}, wanted float16 | bfloat16"
    if q.shape[2] % 8 or q.shape[2] > 256:
        return f"head dim {q.shape[2]}, wanted a multiple of 8 up to 256"
    if max_seqlen_q is None or max_seqlen_k is None:
        return f"max_seqlen_q or max_seqlen_k is None; reading lengths would stall {q.device}"
    if torch.cuda.get_device_capability(q.device) < (8, 0):
        return "compute capability below 8.0"
    return None


class Packed:
    """Lengths that a kernel may be given, and which rows of its results count.

    Attributes:
        cu_q: (S+1,) int32, all 0 where the given ones are not sound, so that no kernel reads out of bounds.
        cu_k: likewise.
        empty: whether there is nothing to launch a kernel for, from shapes and maxima alone.
    """

    def __init__(self, q: Tensor, k: Tensor, setting: Setting) -> None:
        cu_q, cu_k, max_q, max_k, *_ = setting
        rows_q, rows_k = q.shape[0], k.shape[0]
        self.max_q, self.max_k = min(max_q, rows_q), min(max_k, rows_k)
        self.sound = _sound(cu_q, rows_q) & _sound(cu_k, rows_k)
        self.cu_q, self.cu_k = ((cu * self.sound).contiguous() for cu in (cu_q, cu_k))
        self.empty = cu_q.shape[0] == 1 or 0 in (self.max_q, self.max_k, q.shape[1])
        too_long = (self.cu_q.diff() > max_q) | (self.cu_k.diff() > max_k)
        self._inside_q, self._wrong_q = self._rows(self.cu_q, too_long, rows_q)
        self._inside_k, self._wrong_k = self._rows(self.cu_k, too_long, rows_k)

    def _rows(self, cu: Tensor, too_long: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """Whether a row is in a sequence, and whether it must be NaN."""
        row = torch.arange(rows, device=cu.device, dtype=cu.dtype)
        inside = row < cu[-1]
        wrong = (~self.sound).expand(rows)
        if cu.shape[0] > 1:
            owner = (torch.searchsorted(cu, row, right=True) - 1).clamp(0, cu.shape[0] - 2)
            wrong = wrong | (inside & too_long[owner])
        return inside, wrong

    def rows_q(self, x: Tensor | None, like: Tensor) -> Tensor:
        """``x`` (Mq, H, d) of a kernel, None if none ran: 0 past the end, NaN where lengths are wrong."""
        return _only(x, like, self._inside_q, self._wrong_q)

    def rows_k(self, x: Tensor | None, like: Tensor) -> Tensor:
        """The same of (Mk, Hk, d)."""
        return _only(x, like, self._inside_k, self._wrong_k)

    def lse(self, lse: Tensor | None, q: Tensor) -> Tensor:
        """(H, Mq) float32: -inf where nothing is attended to, whichever infinity the kernel writes there."""
        if lse is None:
            lse = q.new_full((q.shape[1], q.shape[0]), float("-inf"), dtype=torch.float32)
        lse = torch.where(self._inside_q & ~lse.isinf(), lse, float("-inf"))
        return lse.masked_fill(self._wrong_q, float("nan"))


def _sound(cu: Tensor, rows: int) -> Tensor:
    return (cu[0] == 0) & (cu.long().diff() >= 0).all() & (cu[-1] <= rows)


def _only(x: Tensor | None, like: Tensor, inside: Tensor, wrong: Tensor) -> Tensor:
    if x is None:
        x = like.new_zeros(like.shape)
    return torch.where(inside[:, None, None], x, 0.0).masked_fill(wrong[:, None, None], float("nan"))


def positive_scale(q: Tensor, scale: float) -> tuple[Tensor, float, float]:
    """q, a scale above 0 and the factor that q took: these kernels take the maximum before they scale."""
    if scale > 0:
        return q, scale, 1.0
    sign = -1.0 if scale < 0 else 0.0
    return q * sign, abs(scale) or 1.0, sign


def add_gradient_of_lse(
    grads: tuple[Tensor, Tensor, Tensor],
    attend: Callable[[Tensor], Tensor],
    grad_of_values: Callable[[Tensor], Tensor],
    q: Tensor,
    k: Tensor,
    grad_lse: Tensor,
    lse: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Add what a gradient ``g`` of lse gives: ``scale · g · P k`` to that of q, ``scale · Pᵀ (g · q)`` to that of k.

    The first is attention with the keys as values, the second the gradient of its values; so kernels that know no
    gradient of lse still give it.

    Args:
        grads: of q (Mq, H, d), k and v (Mk, Hk, d), without it.
        attend: values → attention (Mq, H, d) of these queries and keys.
        grad_of_values: gradient of that output → gradient of the values (Mk, Hk, d).
        q: (Mq, H, d).
        k: (Mk, Hk, d).
        grad_lse: (H, Mq); what arrives where lse is -inf belongs to nobody.
        lse: (H, Mq).
        scale: softmax scale.

    Returns:
        The three gradients.
    """
    grad_q, grad_k, grad_v = grads
    weight = torch.where(lse.isfinite(), grad_lse, 0.0).t().unsqueeze(-1) * scale
    grad_q = torch.addcmul(grad_q.float(), weight, attend(k).float()).to(q.dtype)
    weighted = torch.where(weight != 0, weight * q, 0.0).to(q.dtype)
    grad_k = (grad_k.float() + grad_of_values(weighted).float()).to(k.dtype)
    return grad_q, grad_k, grad_v
