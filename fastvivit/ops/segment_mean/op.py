"""segment_mean as a registered operator: backends, fake, gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvivit import _probe
from fastvivit._backends import Backend, Op
from fastvivit._checks import FLOATING, flat_ids
from fastvivit._operator import define, differentiable, only_once_differentiable

OP = Op(
    "segment_mean",
    (
        Backend(
            name="triton",
            module="fastvivit.ops.segment_mean.backend_triton",
            absent=_probe.no_triton,
            refuses=_probe.refuses_triton,
            auto=("cuda",),
        ),
        # Behind triton until both have been measured on a device: what they take there decides the order.
        Backend(
            name="cuda",
            module="fastvivit.ops.segment_mean.backend_cuda",
            absent=_probe.no_native_cuda,
            refuses=_probe.refuses_cuda,
            auto=("cuda",),
        ),
        Backend(
            name="cpp",
            module="fastvivit.ops.segment_mean.backend_cpp",
            absent=_probe.no_native,
            refuses=lambda x: _probe.refuses_native(x, FLOATING),
            auto=("cpu",),
        ),
        Backend(name="reference", module="fastvivit.ops.segment_mean.reference"),
    ),
)


def _forward(x: Tensor, segment: Tensor, num_segments: int, backend: str) -> tuple[Tensor, Tensor]:
    implementation = OP.choose(backend, x.device.type, x)
    ids = flat_ids("segment", segment, 1, num_segments, distinct=False)
    return implementation.forward(x, ids, num_segments)


def _backward(grad: Tensor, segment: Tensor, count: Tensor, backend: str) -> Tensor:
    implementation = OP.choose(backend, grad.device.type, grad)
    return implementation.backward(grad, flat_ids("segment", segment, 1, grad.shape[0], distinct=False), count)


SEGMENT_MEAN = define(
    "segment_mean(Tensor x, Tensor segment, SymInt num_segments, str backend) -> (Tensor, Tensor)",
    _forward,
    lambda x, segment, num_segments, backend: (
        x.new_empty(num_segments, x.shape[1]),
        segment.new_empty(num_segments),
    ),
)
BACKWARD = define(
    "segment_mean_backward(Tensor grad, Tensor segment, Tensor count, str backend) -> Tensor",
    _backward,
    lambda grad, segment, count, backend: grad.new_empty(segment.shape[0], grad.shape[1]),
)


class _SegmentMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, segment, num_segments, backend):
        mean, count = SEGMENT_MEAN.below_autograd(x, segment, num_segments, backend)
        ctx.save_for_backward(segment, count)
        ctx.mark_non_differentiable(count)
        ctx.backend = backend
        return mean, count

    @staticmethod
    def backward(ctx, grad, _grad_count):
        segment, count = ctx.saved_tensors
        return BACKWARD(grad, segment, count, ctx.backend), None, None, None


differentiable(SEGMENT_MEAN, _SegmentMean)
only_once_differentiable(BACKWARD)
