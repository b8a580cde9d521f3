"""FLOPs that the mathematics of a training step needs, counted on one sample of each source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fastvivit.caption import Vision
from fastvivit.train.stages.base import Stage

_SDPA = (
    "_scaled_dot_product_flash_attention_backward",
    "_scaled_dot_product_efficient_attention_backward",
    "_scaled_dot_product_cudnn_attention_backward",
    "_flash_attention_backward",
    "_efficient_attention_backward",
)


class ModelFlops(TorchDispatchMode):
    """Counts the FLOPs of the forwards and backwards that run under it, each product once.

    What checkpointing computes again for the backward is not counted, nor are the scores that an attention kernel
    computes again in its backward: they are the price of memory, not work of the model. Ops count by the formulas of
    ``torch.utils.flop_counter``, in which a multiplication and an addition are two and only matrix products,
    convolutions and attention count; attention over sequences of different lengths is ``4 d H Σ Lq Lk``, exactly.

    Attributes:
        total: FLOPs so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        ops = torch.ops.fastvivit
        self._varlen = {ops.varlen_attention: 1, ops.varlen_attention_backward: 2}
        # Five products in the backward, of which the first is that of the forward.
        self._again = {getattr(torch.ops.aten, name) for name in _SDPA if hasattr(torch.ops.aten, name)}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run an op and count it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not _again(func):
            self.total += self._count(func, args, kwargs, out)
        return out

    def _count(self, func: Any, args: tuple, kwargs: dict[str, Any], out: Any) -> int:
        packet = func._overloadpacket
        if packet in self._varlen:
            return self._varlen[packet] * _attention({**_named(func, args), **kwargs})
        formula = flop_registry.get(packet)
        if formula is None:
            return 0
        count = formula(*args, **kwargs, out_val=out)
        return count * 4 // 5 if packet in self._again else count


def step_flops(stage: Stage, model: nn.Module, batches: Sequence[dict[str, Any]], device: torch.device) -> int:
    """The model FLOPs of a step on ``batches``: one forward, and the backward of what is trained.

    The first sample of each batch goes through ``stage.backward`` alone, and its FLOPs are those of every sample of its
    source: shapes are the run's. It gets the longest caption of the batch, since the others are padded to it. The
    products between samples, in a contrastive loss, are left out. What is trained, masked or frozen shows in what runs.

    The model's gradients are dropped, random numbers are left as they were.

    Args:
        stage: the run.
        model: it.
        batches: of a step.
        device: the model's.
    """
    total = 0
    devices = [device] if device.type == "cuda" else []
    for batch in batches:
        with torch.random.fork_rng(devices=devices), ModelFlops() as counter:
            stage.backward(model, [_first(batch)], device)
        total += counter.total * len(batch["caption"])
    model.zero_grad(set_to_none=True)
    return total


def _again(func: Any) -> bool:
    """Whether an op computes something for a backward that a forward has computed already."""
    if torch._C._current_graph_task_id() == -1:
        return False
    # An engine's backward runs without gradients, but for what is computed again for it. Our ops' own forwards switch
    # them off, too, but no backward calls those.
    ours = func.namespace == "fastvivit" and not func._opname.endswith("_backward")
    return ours or torch.is_grad_enabled()


def _first(batch: dict[str, Any]) -> dict[str, Any]:
    video = batch["video"]
    video = Vision(video.tokens[:1], video.mask[:1]) if isinstance(video, Vision) else video[:1]
    rows = {name: value[:1] for name, value in batch.items() if isinstance(value, torch.Tensor) and name != "video"}
    return batch | rows | {"video": video, "caption": [max(batch["caption"], key=len)]}


def _named(func: Any, args: tuple) -> dict[str, Any]:
    return {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)}


def _attention(given: dict[str, Any]) -> int:
    q, lengths = given["q"], [given[name].diff().double() for name in ("cu_seqlens_q", "cu_seqlens_k")]
    return 4 * q.shape[1] * q.shape[2] * int((lengths[0] * lengths[1]).sum())
