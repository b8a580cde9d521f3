"""tubelet_embed in Triton: the forward; the gradients are in triton_backward.py."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvivit.ops.tubelet_embed.geometry import Geometry
from fastvivit.ops.tubelet_embed.triton_backward import backward
from fastvivit.ops.tubelet_embed.triton_forward import (
    Tile,
    _tubelet_embed_forward_kernel,
    architecture,
    byte_scale_shift,
    fit_stages,
    grid_arguments,
    matrix_of,
    normalisation,
    patch_arguments,
    pick_tile,
    pixel_order,
    product_kind,
    round_to_tf32,
    table,
)

__all__ = ["backward", "forward"]

# By architecture (8, 9, 10) and product: wide tiles, and narrow ones for calls too small to fill the device.
# Only what compiles without a spill is here (benchmarks/compile_report.py): 128 x 256 tiles do not, yet.
TILES = {
    (8, "half"): (Tile(128, 128, 32, 8, 4), Tile(64, 64, 64, 4, 4)),
    (8, "tf32"): (Tile(128, 128, 32, 8, 3), Tile(64, 64, 32, 4, 4)),
    (8, "ieee"): (Tile(64, 64, 32, 8, 3), Tile(32, 32, 32, 4, 3)),
    (9, "half"): (Tile(128, 128, 64, 8, 4), Tile(64, 64, 64, 4, 4)),
    (9, "tf32"): (Tile(128, 128, 32, 8, 4), Tile(64, 64, 32, 4, 4)),
    (9, "ieee"): (Tile(64, 64, 32, 8, 3), Tile(32, 32, 32, 4, 3)),
    (10, "half"): (Tile(128, 128, 64, 8, 4), Tile(64, 64, 64, 4, 4)),
    (10, "tf32"): (Tile(128, 128, 32, 8, 4), Tile(64, 64, 32, 4, 4)),
    (10, "ieee"): (Tile(64, 64, 32, 8, 3), Tile(32, 32, 32, 4, 3)),
}


def stage_bytes(tile: Tile, video_size: int, weight_size: int) -> int:
    """Shared memory of one pipeline stage, from the element sizes."""
    return tile.k * (tile.m * video_size + tile.n * weight_size)


def _fold(weight: Tensor, bias: Tensor | None, geometry: Geometry, kind: str) -> tuple[Tensor, Tensor, float]:
    """Fold the normalisation of bytes: ``(x·s + z) @ w = factor · (x - 128) @ w' + extra``.

    Channels of one scale leave the weight untouched: the factor takes it. Otherwise w' is rounded to its
    dtype, and the bias is worked out from the rounded w', so that a pixel at the mean still gives nothing.
    """
    scale, shift = byte_scale_shift(geometry)
    factor = max(map(abs, scale)) or 1.0
    ratio = tuple(s / factor for s in scale)
    if any(r != 1.0 for r in ratio):
        folded = weight.float() * table(ratio, weight.device, torch.float32).view(-1, 1, 1, 1)
        weight = folded.to(weight.dtype)
    if kind == "tf32":
        weight = round_to_tf32(weight)
    level = tuple(factor * z / s if s else 0.0 for s, z in zip(scale, shift, strict=True))
    # A few million weights, once a call: double costs nothing and leaves this sum without an error.
    extra = weight.flatten(2).sum(2, dtype=torch.float64) @ table(level, weight.device, torch.float64)
    return weight, (extra if bias is None else extra + bias).float(), factor


def forward(
    video: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pos: Tensor | None,
    ids: Tensor | None,
    geometry: Geometry,
    precision: str,
) -> Tensor:
    """Rows of the kept tubelets.

    Args:
        video: (B, C, T, H, W) uint8 or floating, any strides.
        weight: (D, C, t, h, w) float32, float16 or bfloat16; the product's operands have its dtype.
        bias: (D,) or None.
        pos: (N, D) or None.
        ids: (M,) int64 over B·N, or None for all; a row of NaN for one out of range.
        geometry: where the tubelets lie.
        precision: "ieee" or "tf32", of a float32 product.

    Returns:
        (M, D) in the dtype of ``weight``.
    """
    width, total, device = weight.shape[0], geometry.clips * geometry.tokens, video.device
    rows = total if ids is None else ids.shape[0]
    out = weight.new_empty(rows, width)
    if total == 0 or out.numel() == 0:
        return out.fill_(float("nan"))
    kind, order, factor = product_kind(weight, precision), pixel_order(video), 1.0
    if video.dtype == torch.uint8:
        weight, bias, factor = _fold(weight, bias, geometry, kind)
    elif kind == "tf32":
        weight = round_to_tf32(weight)
    if pos is not None and pos.stride(1) != 1:
        pos = pos.contiguous()
    tile = pick_tile(TILES, device, kind, lambda t: t.blocks(rows, width))
    stage = stage_bytes(tile, video.element_size(), weight.element_size())
    tile = fit_stages(tile, architecture(device), stage)
    with torch.cuda.device_of(video):
        _tubelet_embed_forward_kernel[(tile.blocks(rows, width),)](
            video, matrix_of(weight, order), bias, pos, ids, out=out, rows=rows, total=total, width=width,
            factor=factor, stride_pos=0 if pos is None else pos.stride(0), ORDER=order,
            PRECISION="tf32" if kind == "tf32" else "ieee",
            **grid_arguments(video, geometry), **patch_arguments(video, geometry),
            **normalisation(video, geometry), **tile.options(),
        )  # fmt: skip
    return out
