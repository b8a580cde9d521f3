"""The definition of tubelet_embed, in plain PyTorch: normalise → conv3d → + pos → index."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as nnf

from fastvivit._operator import recording_gradients
from fastvivit.ops.tubelet_embed.geometry import Geometry


def _rows(video: Tensor, weight: Tensor, bias, pos, ids, geometry: Geometry) -> Tensor:
    """All arguments floating and of one dtype. (M, D)."""
    if geometry.scale is not None:
        scale, shift = video.new_tensor([geometry.scale, geometry.shift]).view(2, -1, 1, 1, 1)
        video = video * scale + shift
    video = video[(slice(None), slice(None), *(slice(o, None) for o in geometry.offset))]
    if geometry.tokens == 0 or geometry.clips == 0:
        rows = weight.new_zeros(0, weight.shape[0]) + 0.0 * (weight.sum() + video.sum())
    else:
        tokens = nnf.conv3d(video, weight, bias, geometry.stride).flatten(2).transpose(1, 2)
        rows = (tokens if pos is None else tokens + pos).flatten(0, 1)
    if ids is None:
        return rows
    outside = (ids < 0) | (ids >= rows.shape[0])
    return rows[ids.clamp(0, max(rows.shape[0] - 1, 0))].masked_fill(outside.unsqueeze(1), float("nan"))


def _wide(tensor: Tensor | None, weight: Tensor) -> Tensor | None:
    return tensor if tensor is None else tensor.to(torch.promote_types(weight.dtype, torch.float32))


def forward(
    video: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pos: Tensor | None,
    ids: Tensor | None,
    geometry: Geometry,
    precision: str,
) -> Tensor:
    """Rows (M, D) of the kept tubelets in the dtype of ``weight``; half types are computed in float32."""
    video, bias, pos, wide = (_wide(t, weight) for t in (video, bias, pos, weight))
    return _rows(video, wide, bias, pos, ids, geometry).to(weight.dtype)


def backward(
    grad: Tensor,
    video: Tensor,
    weight: Tensor,
    ids: Tensor | None,
    geometry: Geometry,
    precision: str,
    needs: tuple[bool, bool, bool, bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of video, weight, bias, pos, where ``needs`` says so, by autograd of the definition."""
    width = weight.shape[0]
    inputs = [_wide(video, weight), _wide(weight, weight)]
    inputs += [inputs[1].new_zeros(width), inputs[1].new_zeros(geometry.tokens, width)]
    inputs = [t.detach().requires_grad_(need) for t, need in zip(inputs, needs, strict=True)]
    with recording_gradients():
        rows = _rows(*inputs, ids, geometry)
    wanted = [t for t in inputs if t.requires_grad]
    found = iter(torch.autograd.grad(rows, wanted, grad.to(rows.dtype), materialize_grads=True))
    dtypes = (video.dtype, weight.dtype, weight.dtype, weight.dtype)
    return tuple(next(found).to(dtype) if need else None for need, dtype in zip(needs, dtypes, strict=True))
