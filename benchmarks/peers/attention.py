"""Every other attention of packed rows that may be on the machine, each behind one signature: (q, k, v) → out.

A peer is made here from what it wants ready before the clock starts (masks, lengths), or is absent with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..case import Options
from . import sdpa

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
# What PyTorch itself ships: the claims are against the fastest of these.
TORCH = ("sdpa", *(f"sdpa {name}" for name in KERNELS), "torch varlen_attn", "FlexAttention compiled")
# Above it the math kernel's scores, kept for the backward, are gigabytes of no interest.
MATH_TOKENS = 4096


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Packed self-attention: lengths on the host, and the same as the packed kernels want them."""

    lengths: tuple[int, ...]
    cu_seqlens: Tensor
    options: Options
    deterministic: bool = True

    @property
    def longest(self) -> int:
        return max(self.lengths)

    @property
    def equal(self) -> bool:
        return len(set(self.lengths)) == 1


def _sdpa(batch: Batch, kernel: str) -> Attend | str:
    if not batch.equal:
        return "takes no packed rows of unequal clips"
    if kernel == "math" and batch.longest > MATH_TOKENS:
        return f"not run over {MATH_TOKENS} tokens: it stores every score"
    if kernel in ("efficient", "cuDNN") and not batch.options.gpu:
        return "no such kernel on a CPU"

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(KERNELS[kernel]):
            return sdpa.equal(q, k, v, len(batch.lengths))

    return call


def _torch_varlen(batch: Batch) -> Attend | str:
    if not batch.options.gpu:
        return "has no CPU kernel"
    found = import_module("torch.nn.attention.varlen").varlen_attn
    cu, longest = batch.cu_seqlens, batch.longest
    return lambda q, k, v: found(q, k, v, cu, cu, longest, longest)


def _flex(batch: Batch) -> Attend | str:
    if not batch.options.compile:
        return "not asked for (--compile)"
    from torch.nn.attention import flex_attention as flex

    # A backward that is called again and again, on one graph, may not reuse its saved tensors.
    import_module("torch._functorch.config").donated_buffer = False
    torch.compiler.reset()
    attend = torch.compile(flex.flex_attention, dynamic=False)
    if batch.equal:

        def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            views = (t.unflatten(0, (len(batch.lengths), -1)).transpose(1, 2) for t in (q, k, v))
            return attend(*views).transpose(1, 2).flatten(0, 1)

        return call
    device, rows = batch.cu_seqlens.device, sum(batch.lengths)
    clip = torch.repeat_interleave(torch.arange(len(batch.lengths)), torch.tensor(batch.lengths)).to(device)
    mask = flex.create_block_mask(lambda b, h, q, k: clip[q] == clip[k], None, None, rows, rows, device=str(device))

    def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(*(t.transpose(0, 1).unsqueeze(0) for t in (q, k, v)), block_mask=mask)[0].transpose(0, 1)

    return masked


def _flash_attn(batch: Batch, module: str) -> Attend | str:
    if not batch.options.gpu:
        return "has no CPU kernel"
    found = import_module(module).flash_attn_varlen_func
    cu, longest, more = batch.cu_seqlens, batch.longest, {"deterministic": batch.deterministic}

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = found(q, k, v, cu_seqlens_q=cu, cu_seqlens_k=cu, max_seqlen_q=longest, max_seqlen_k=longest, **more)
        return out[0] if isinstance(out, tuple) else out

    return call


def _xformers(batch: Batch) -> Attend | str:
    ops = import_module("xformers.ops")
    mask = ops.fmha.attn_bias.BlockDiagonalMask.from_seqlens(list(batch.lengths))
    return lambda q, k, v: ops.memory_efficient_attention(q[None], k[None], v[None], attn_bias=mask)[0]


def others(batch: Batch) -> tuple[dict[str, Attend], dict[str, str]]:
    """Those that take part, and why the others do not; sizes decide, so a call may still be refused."""
    makers = {
        **{f"sdpa {name}": lambda name=name: _sdpa(batch, name) for name in KERNELS},
        "torch varlen_attn": lambda: _torch_varlen(batch),
        "FlexAttention compiled": lambda: _flex(batch),
        "flash-attn 2": lambda: _flash_attn(batch, "flash_attn"),
        "flash-attn 3": lambda: _flash_attn(batch, "flash_attn_interface"),
        "flash-attn 4": lambda: _flash_attn(batch, "flash_attn.cute"),
        "xformers": lambda: _xformers(batch),
    }
    made, absent = {}, {}
    for name, make in makers.items():
        try:
            found = make()
        except ModuleNotFoundError as error:
            found = f"{error.name} is not installed"
        except Exception as error:
            found = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        if isinstance(found, str):
            absent[name] = found
        else:
            made[name] = found
    return made, absent
