"""The public function of tubelet_embed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastvivit._autocast import autocast_dtype
from fastvivit._checks import FLOATING, require_tensor
from fastvivit.ops.tubelet_embed.geometry import grid_of
from fastvivit.ops.tubelet_embed.op import EMBED, OP

_VIDEO = (torch.uint8, *FLOATING)
_PRECISIONS = ("ieee", "tf32")
_NO_OFFSET = (0, 0, 0)


def tubelet_embed(
    video: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    pos: Tensor | None = None,
    keep: Tensor | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    stride: Sequence[int] | None = None,
    offset: Sequence[int] = _NO_OFFSET,
    precision: str = "ieee",
    backend: str = "auto",
) -> Tensor:
    """Embed the kept tubelets of a batch of clips in one pass.

    ``conv3d((x - mean) / std, weight, bias) + pos``, then index.

    Only the kept tubelets are read, converted, multiplied and stored; the video stays uint8 until then. The
    weight is a Conv3d's, unchanged. Tubelet embedding of ViViT (Arnab et al. 2021, section 3.2); dropping
    tokens before the patch product is exactly equal to dropping them after it (paper, section 4.3).

    Args:
        video: (B, C, T, H, W), or (B, C, H, W) for images; uint8, float32, float16 or bfloat16, any strides:
            a decoder buffer (B, T, H, W, C) permuted costs no copy. uint8 is divided by 255. (float64:
            ``reference`` only.)
        weight: (D, C, t, h, w), or (D, C, h, w) for images; floating.
        bias: (D,) in the dtype of ``weight``.
        pos: (N, D), added to each token by its place on the grid; N = T'·H'·W' in row-major t, h, w.
        keep: None for every token; (B, K) int64 ids ``0..N-1`` of each clip; or (M,) int64 ids ``0..B·N-1``.
            Distinct.
        mean: C floats in units of 0..1; None with ``std`` given is 0.
        std: C floats in units of 0..1; None with ``mean`` given is 1.
        stride: pixels between tubelets (t, h, w), (h, w) for images; None is the kernel. Overlap and gaps are
            allowed.
        offset: pixels before the first tubelet (t, h, w), (h, w) for images.
        precision: "ieee" or "tf32": how float32 is multiplied on a GPU.
        backend: "auto" or a name of this op's table (``fastvivit info`` prints it).

    Returns:
        (B, N, D), (B, K, D) or (M, D), as ``keep`` says, in the dtype of ``weight``, accumulated in float32.
        Under autocast floating inputs are cast to its dtype first.

    Raises:
        ValueError: a wrong shape, dtype, device or number, or (on a CPU) an id out of range or repeated. On a
            GPU a bad id makes its row NaN.
        BackendError: the named backend can't run, or none can.
    """
    require_tensor("video", video, (4, 5), _VIDEO)
    dims = video.dim()
    require_tensor("weight", weight, (dims,), FLOATING, video)
    spatial = dims - 2
    if weight.shape[1] != video.shape[1]:
        raise ValueError(f"weight: wanted {video.shape[1]} channels like video, got shape {tuple(weight.shape)}")
    stride = tuple(weight.shape[2:]) if stride is None else _numbers("stride", stride, spatial, 1)
    offset = _NO_OFFSET[-spatial:] if offset is _NO_OFFSET else _numbers("offset", offset, spatial, 0)
    if dims == 4:
        video, weight, stride, offset = video.unsqueeze(2), weight.unsqueeze(2), (1, *stride), (0, *offset)
    if 0 in weight.shape:
        raise ValueError(f"weight: wanted no axis of size 0, got shape {tuple(weight.shape)}")
    t, h, w = grid_of(video.shape[2:], weight.shape[2:], stride, offset)
    tokens, width = t * h * w, weight.shape[0]
    if tokens == 0:
        need = tuple(k + o for k, o in zip(weight.shape[2:], offset, strict=True))
        raise ValueError(f"video: wanted at least (T, H, W) = {need} for one tubelet, got {tuple(video.shape[2:])}")
    if bias is not None:
        require_tensor("bias", bias, (1,), (weight.dtype,), video)
        if bias.shape[0] != width:
            raise ValueError(f"bias: wanted shape ({width},), got {tuple(bias.shape)}")
    if pos is not None:
        require_tensor("pos", pos, (2,), FLOATING, video)
        if pos.shape[0] != tokens or pos.shape[1] != width:
            raise ValueError(f"pos: wanted shape ({tokens}, {width}) for a grid of {(t, h, w)}, got {tuple(pos.shape)}")
    if keep is not None:
        require_tensor("keep", keep, (1, 2), (torch.int64,), video)
        if keep.dim() == 2 and keep.shape[0] != video.shape[0]:
            raise ValueError(f"keep: wanted {video.shape[0]} clips like video, got shape {tuple(keep.shape)}")
    mean = None if mean is None else _floats("mean", mean, video.shape[1])
    std = None if std is None else _floats("std", std, video.shape[1])
    if std is not None and not min(std) > 0:
        raise ValueError(f"std: wanted values above 0, got {std}")
    if precision not in _PRECISIONS:
        raise ValueError(f"precision: wanted 'ieee' or 'tf32', got {precision!r}")
    if backend != "auto":
        OP.check_name(backend)
    dtype = autocast_dtype(video)
    if dtype is not None:
        weight = weight.to(dtype)
        bias = bias if bias is None else bias.to(dtype)
        video = video.to(dtype) if video.is_floating_point() else video
    if pos is not None and pos.dtype != weight.dtype:
        pos = pos.to(weight.dtype)
    return EMBED(video, weight, bias, pos, keep, mean, std, stride, offset, precision, backend)


def _numbers(name: str, value: Sequence[int], count: int, least: int) -> tuple[int, ...]:
    value = tuple(value)
    if len(value) != count or not all(isinstance(v, int) and v >= least for v in value):
        raise ValueError(f"{name}: wanted {count} whole numbers of at least {least}, got {value}")
    return value


def _floats(name: str, value: Sequence[float], count: int) -> list[float]:
    value = [*map(float, value)]
    if len(value) != count:
        raise ValueError(f"{name}: wanted {count} values, one a channel, got {len(value)}")
    return value
