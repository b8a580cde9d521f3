"""The time of a step by a roofline: op by op, the longer of its FLOPs and its bytes at what a device can do."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastvivit.planning.devices import Device
from fastvivit.planning.memory import ITEM, pixel_bytes
from fastvivit.planning.simulate import simulate
from fastvivit.planning.step import Step
from fastvivit.planning.trace import (
    ATTENTION,
    ATTENTION_BACKWARD,
    EMBEDDING,
    FLOPS,
    KIND,
    MOVED,
    OFFLOADED,
    PRODUCTS,
    REST,
    Trace,
)

# Shares of the published ceilings. Assumptions, not measurements: what well-tuned kernels of this kind tend to reach.
EFFICIENCY = {"products": 0.70, "attention": 0.70, "memory": 0.80, "link": 0.80}
# Seconds that the host takes to queue an op in eager PyTorch, autograd included. An assumption too.
LAUNCH = 6e-6


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Predicted seconds of a step by part. The device's own add up; transfers and the host go on beside them.

    Attributes:
        products: linear layers.
        attention: softmax(QKᵀ)V and its backward, with recomputation.
        embedding: pixels to tokens.
        rest: norms, activations, sums, copies: what memory bounds.
        optimiser: clipping and AdamW.
        transfers: between host and device: pixels, prefix and offloaded activations.
        host: queueing the ops.
    """

    products: float
    attention: float
    embedding: float
    rest: float
    optimiser: float
    transfers: float
    host: float

    @property
    def device(self) -> float:
        """What the device is busy for."""
        return self.products + self.attention + self.embedding + self.rest + self.optimiser

    @property
    def total(self) -> float:
        """The longest of the three that go on at once."""
        return max(self.device, self.transfers, self.host)

    @property
    def bound(self) -> str:
        """Which it is: "device", "transfers" or "host"."""
        return max(("device", "transfers", "host"), key=lambda name: getattr(self, name))


def seconds_of(step: Step, device: Device) -> Seconds:
    """The predicted time of ``step``."""
    found, parts = simulate(step, 0 if step.chunked else None), step.each
    runs, moved, passes = [], 0.0, 1.0
    if not step.chunked:
        trace = found.trace.at(*(one.batch for one in parts))
        runs.append((trace, 1.0))
        moved += 2 * _offloaded(trace)
    else:
        passes = sum(one.batch / one.passes for one in parts)
        for index, one in enumerate(parts):
            trace, times = simulate(step, index).trace.at(one.passes), one.batch / one.passes
            moved += 2 * times * _offloaded(trace)
            # All but the last chunk go through the forward twice, but for a prefix that is stored.
            if index == len(parts) - 1:
                runs.append((trace, 1.0))
                times -= 1
            stored = step.stored and one.ahead
            second = trace.after(f"video {step.first_trained}") if stored else trace
            runs += [(trace.part(backward=False), times), (second, times)]
            if stored and step.prefix == "host":
                moved += 2 * one.batch * one.rows * one.config.width * ITEM[one.precision]
    kinds = dict.fromkeys((REST, PRODUCTS, EMBEDDING, ATTENTION, ATTENTION_BACKWARD), 0.0)
    launches = 0.0
    for run, times in runs:
        ops = run.ops()
        each = op_seconds(ops, step, device)
        for kind in kinds:
            kinds[kind] += times * float(each[ops[:, KIND] == kind].sum())
        launches += times * int((each > 0).sum())
    # A pass adds its gradients to those that are there.
    kinds[REST] += (passes - 1) * 12 * found.trainable / (device.copy * EFFICIENCY["memory"])
    moved += sum(one.batch * pixel_bytes(one) for one in parts)
    # Read the gradient for its norm, scale it; read weight, gradient and moments, write weight and moments.
    states = {"float32": 28, "8bit": 16}[step.states]
    return Seconds(
        products=kinds[PRODUCTS],
        attention=kinds[ATTENTION] + kinds[ATTENTION_BACKWARD],
        embedding=kinds[EMBEDDING],
        rest=kinds[REST],
        optimiser=(12 + states) * found.trainable / (device.copy * EFFICIENCY["memory"]),
        transfers=moved / (device.link * EFFICIENCY["link"]),
        host=LAUNCH * launches,
    )


def _offloaded(trace: Trace) -> int:
    """Bytes that a pass sends to the host."""
    return int(trace.ops()[-1, OFFLOADED])


def op_seconds(ops: Tensor, step: Step, device: Device) -> Tensor:
    """(n,) seconds of the ops of a trace."""
    rate = device.half if step.precision == "bfloat16" else device.ieee
    flops, kind = ops[:, FLOPS].double(), ops[:, KIND]
    head = step.config.width // step.config.heads
    attending = (kind == ATTENTION) | (kind == ATTENTION_BACKWARD)
    # The deterministic backward has seven products where its FLOPs are counted as five, and both of its kernels take
    # the exponential of every score.
    work = flops * torch.where(kind == ATTENTION_BACKWARD, 7 / 5, 1.0)
    exponentials = torch.where(kind == ATTENTION_BACKWARD, flops / (5 * head), flops / (4 * head)) * attending
    share = torch.where(attending, EFFICIENCY["attention"], EFFICIENCY["products"])
    products = (work / rate + exponentials / device.exponential_rate) / share
    return products.maximum(ops[:, MOVED].double() / (device.copy * EFFICIENCY["memory"]))


def model_flops(step: Step) -> int:
    """FLOPs that a step's mathematics needs, forward and backward: nothing computed twice."""
    plain = replace(step, checkpointing="none", offload=False, chunk=0)
    return int(_flops(simulate(plain).trace.at(*(one.batch for one in step.each))))


def _flops(trace: Trace) -> int:
    return int(trace.ops()[:, FLOPS].sum())
