"""tubelet_embed as a registered operator: backends, fake, FLOPs, gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvivit import _probe
from fastvivit._backends import Backend, Op
from fastvivit._checks import flat_ids
from fastvivit._operator import define, differentiable, only_once_differentiable
from fastvivit.ops.tubelet_embed.geometry import geometry, grid_of

WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _refuses_triton(video: Tensor, weight: Tensor) -> str | None:
    if weight.dtype not in WEIGHT_DTYPES:
        return f"weight is {weight.dtype}, wanted float32 | float16 | bfloat16"
    return _probe.refuses_triton(weight) or _probe.refuses_triton(video)


def _refuses_cpp(video: Tensor, weight: Tensor) -> str | None:
    if video.dtype == torch.float64:
        return "video is float64, wanted uint8 | float32 | float16 | bfloat16"
    return _probe.refuses_native(weight, WEIGHT_DTYPES)


OP = Op(
    "tubelet_embed",
    (
        Backend(
            name="triton",
            module="fastvivit.ops.tubelet_embed.backend_triton",
            absent=_probe.no_triton,
            refuses=_refuses_triton,
            auto=("cuda",),
        ),
        Backend(
            name="cpp",
            module="fastvivit.ops.tubelet_embed.backend_cpp",
            absent=_probe.no_native,
            refuses=_refuses_cpp,
            auto=("cpu",),
        ),
        Backend(name="reference", module="fastvivit.ops.tubelet_embed.reference"),
    ),
)


def _rows_of(keep: Tensor | None, clips: int, tokens: int) -> Tensor | None:
    """Kept tokens as rows of the batch, or None for all; ``keep`` is (B, K), or (M,) over all clips."""
    if keep is None:
        return None
    if keep.dim() == 1:
        return flat_ids("keep", keep, 1, clips * tokens, distinct=True)
    return flat_ids("keep", keep, clips, tokens, distinct=True)


def _shape(video: Tensor, weight: Tensor, keep: Tensor | None, stride, offset) -> tuple:
    if keep is not None:
        return (*keep.shape, weight.shape[0])
    t, h, w = grid_of(video.shape[2:], weight.shape[2:], stride, offset)
    return (video.shape[0], t * h * w, weight.shape[0])


def _forward(video, weight, bias, pos, keep, mean, std, stride, offset, precision, backend) -> Tensor:
    implementation = OP.choose(backend, video.device.type, video, weight)
    where = geometry(video, weight, mean, std, stride, offset)
    ids = _rows_of(keep, where.clips, where.tokens)
    rows = implementation.forward(video, weight, bias, pos, ids, where, precision)
    return rows.view(_shape(video, weight, keep, stride, offset))


def _backward(grad, video, weight, keep, mean, std, stride, offset, precision, needs, backend):
    implementation = OP.choose(backend, video.device.type, video, weight)
    where = geometry(video, weight, mean, std, stride, offset)
    ids = _rows_of(keep, where.clips, where.tokens)
    grads = implementation.backward(
        grad.reshape(-1, grad.shape[-1]), video, weight, ids, where, precision, tuple(needs)
    )
    return tuple(grad.new_empty(0) if g is None else g for g in grads)


def _fake_backward(grad, video, weight, keep, mean, std, stride, offset, precision, needs, backend):
    t, h, w = grid_of(video.shape[2:], weight.shape[2:], stride, offset)
    shapes = (video.shape, weight.shape, weight.shape[:1], (t * h * w, weight.shape[0]))
    like = (video, weight, weight, weight)
    return tuple(
        base.new_empty(shape) if need else grad.new_empty(0)
        for base, shape, need in zip(like, shapes, needs, strict=True)
    )


def _flops(video, weight, bias, pos, keep, mean, std, stride, offset, *_args, out_shape=None, **_kwargs) -> int:
    clips, channels, *size = video
    t, h, w = grid_of(size, weight[2:], stride, offset)
    rows = clips * t * h * w
    if keep is not None:
        rows = keep[0] if len(keep) == 1 else keep[0] * keep[1]
    return 2 * rows * weight[0] * channels * weight[2] * weight[3] * weight[4]


def _flops_backward(grad, video, weight, keep, mean, std, stride, offset, precision, needs, *_args, **_kwargs) -> int:
    one = 2 * torch.Size(grad).numel() * torch.Size(weight[1:]).numel()
    return one * (bool(needs[0]) + bool(needs[1]))


EMBED = define(
    "tubelet_embed(Tensor video, Tensor weight, Tensor? bias, Tensor? pos, Tensor? keep, float[]? mean, "
    "float[]? std, int[] stride, int[] offset, str precision, str backend) -> Tensor",
    _forward,
    lambda video, weight, bias, pos, keep, mean, std, stride, offset, precision, backend: weight.new_empty(
        _shape(video, weight, keep, stride, offset)
    ),
    _flops,
)
BACKWARD = define(
    "tubelet_embed_backward(Tensor grad, Tensor video, Tensor weight, Tensor? keep, float[]? mean, "
    "float[]? std, int[] stride, int[] offset, str precision, bool[] needs, str backend) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
    _flops_backward,
)


class _Embed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, video, weight, bias, pos, keep, *settings):
        ctx.save_for_backward(video, weight, keep)
        ctx.settings = settings
        ctx.needs = [t is not None and t.requires_grad for t in (video, weight, bias, pos)]
        return EMBED.below_autograd(video, weight, bias, pos, keep, *settings)

    @staticmethod
    def backward(ctx, grad):
        video, weight, keep = ctx.saved_tensors
        *settings, backend = ctx.settings
        grads = BACKWARD(grad, video, weight, keep, *settings, ctx.needs, backend)
        grads = (g if need else None for g, need in zip(grads, ctx.needs, strict=True))
        return (*grads, None, *(None for _ in ctx.settings))


differentiable(EMBED, _Embed)
only_once_differentiable(BACKWARD)
