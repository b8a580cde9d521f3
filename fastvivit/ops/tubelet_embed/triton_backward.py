"""The gradients of tubelet_embed: pixels are gathered again, no sum uses atomics, all are in a fixed order.

Rows whose id is out of range (NaN in the forward) pass no gradient on.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastvivit.ops._rows_sorted import sort_ids
from fastvivit.ops._rows_triton import invert_ids, sum_columns, sum_sorted
from fastvivit.ops.tubelet_embed.geometry import Geometry
from fastvivit.ops.tubelet_embed.triton_forward import (
    FULL_DEVICE,
    Tile,
    _operand,
    _patch_channel,
    _patch_offset,
    architecture,
    byte_scale_shift,
    corners_of,
    fit_stages,
    grid_arguments,
    matrix_of,
    normalisation,
    patch_arguments,
    pick_tile,
    pixel_order,
    product_kind,
    table,
)


@triton.jit(do_not_specialize=["rows", "split_rows"])
def _tubelet_embed_grad_weight_kernel(
    grad, video, corners, scale, shift, partial, rows, width, split_rows, stride_grad,
    stride_c, stride_t, stride_h, stride_w,
    C: tl.constexpr, KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ORDER: tl.constexpr,
    NORM: tl.constexpr, PRECISION: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``partial[split, d, k] = sum of grad[m, d] · pixel[m, k]`` over the split's rows, in their order."""
    K: tl.constexpr = C * KT * KH * KW
    blocks_n, blocks_k = tl.cdiv(width, BLOCK_N), tl.cdiv(K, BLOCK_K)
    split = tl.program_id(0) // (blocks_n * blocks_k)
    column = tl.program_id(0) % blocks_n * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.program_id(0) // blocks_n % blocks_k * BLOCK_K + tl.arange(0, BLOCK_K)
    within, inside = column < width, k < K
    offset = _patch_offset(k, stride_c, stride_t, stride_h, stride_w, C, KT, KH, KW, ORDER)
    channel = _patch_channel(k, C, KT * KH * KW, ORDER)
    first = split.to(tl.int64) * split_rows
    last = tl.minimum(first + split_rows, rows)
    acc = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for start in range(first, last, BLOCK_M):
        row = start + tl.arange(0, BLOCK_M)
        corner = tl.load(corners + row, mask=row < last, other=-1)
        valid = corner >= 0
        # In units, so that the compiler knows how far a corner is aligned, whatever the table holds.
        address = video + (tl.where(valid, corner, 0) * UNIT)[:, None] + offset[None, :]
        pixels = tl.load(address, mask=valid[:, None] & inside[None, :], other=0)
        address = grad + row[:, None] * stride_grad + column[None, :]
        g = tl.load(address, mask=valid[:, None] & within[None, :], other=0.0)
        a = _operand(pixels, channel, scale, shift, NORM, g.dtype)
        acc = tl.dot(tl.trans(g), a, acc, input_precision=PRECISION)
    address = partial + (split.to(tl.int64) * width + column[:, None]) * K + k[None, :]
    tl.store(address, acc, mask=within[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["rows"])
def _tubelet_embed_grad_video_kernel(
    grad, weight, corners, scale, flag, out, rows, width, stride_grad, stride_c, stride_t, stride_h, stride_w,
    C: tl.constexpr, KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ORDER: tl.constexpr,
    PATCHES: tl.constexpr, PRECISION: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``scale · grad @ weight.T``, weight (K, D), to its place in the video, or with PATCHES (M, K)."""
    K: tl.constexpr = C * KT * KH * KW
    blocks = tl.cdiv(K, BLOCK_N)
    row = (tl.program_id(0) // blocks).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = k < K
    corner = tl.load(corners + row, mask=row < rows, other=-1)
    valid = corner >= 0
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, width, BLOCK_K):
        column = start + tl.arange(0, BLOCK_K)
        within = column < width
        address = grad + row[:, None] * stride_grad + column[None, :]
        g = tl.load(address, mask=valid[:, None] & within[None, :], other=0.0)
        address = weight + k.to(tl.int64)[:, None] * width + column[None, :]
        w = tl.load(address, mask=inside[:, None] & within[None, :], other=0.0)
        acc = tl.dot(g, tl.trans(w), acc, input_precision=PRECISION)
    if scale is not None:
        acc = acc * tl.load(scale + _patch_channel(k, C, KT * KH * KW, ORDER))[None, :]
    if flag is not None:
        acc = tl.where(tl.load(flag) != -1, float("nan"), acc)
    if PATCHES:
        address = out + row[:, None] * K + k[None, :]
    else:
        offset = _patch_offset(k, stride_c, stride_t, stride_h, stride_w, C, KT, KH, KW, ORDER)
        address = out + (tl.where(valid, corner, 0) * UNIT)[:, None] + offset[None, :]
    tl.store(address, acc.to(out.dtype.element_ty), mask=valid[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["frames", "height", "breadth", "tokens", "grid_t", "grid_h", "grid_w"])
def _fold_patches_kernel(
    patches, inverse, out, frames, height, breadth, tokens, grid_t, grid_h, grid_w,
    stride_b, stride_c, stride_t, stride_h, stride_w,
    C: tl.constexpr, KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    ST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    OT: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Each pixel sums its element of every tubelet that covers it: patches (M, K), K as (c, t, h, w)."""
    # A channel of a clip may hold more than 2^31 pixels: only where its block begins is worked out in int64.
    pixels = height * breadth
    blocks = tl.cdiv(frames * tl.cast(pixels, tl.int64), BLOCK)
    plane = (tl.program_id(0) // blocks).to(tl.int32)
    first = tl.program_id(0) % blocks * BLOCK
    flat = (first % pixels).to(tl.int32) + tl.arange(0, BLOCK)
    b, c = plane // C, plane % C
    t, h, w = (first // pixels).to(tl.int32) + flat // pixels, flat % pixels // breadth, flat % breadth
    live = t < frames
    # The last tubelet along each axis that may cover the pixel, and how many may: n counts back from there.
    NT: tl.constexpr = (KT + ST - 1) // ST
    NH: tl.constexpr = (KH + SH - 1) // SH
    NW: tl.constexpr = (KW + SW - 1) // SW
    at_t, at_h, at_w = t - OT, h - OH, w - OW
    last_t = tl.where(at_t >= 0, at_t // ST, -1)
    last_h = tl.where(at_h >= 0, at_h // SH, -1)
    last_w = tl.where(at_w >= 0, at_w // SW, -1)
    acc = tl.zeros((BLOCK,), tl.float32)
    for n in range(NT * NH * NW):
        slot_t, slot_h, slot_w = last_t - n // (NH * NW), last_h - n // NW % NH, last_w - n % NW
        i, j, k = at_t - slot_t * ST, at_h - slot_h * SH, at_w - slot_w * SW
        covered = live & (slot_t >= 0) & (slot_t < grid_t) & (i < KT)
        covered = covered & (slot_h >= 0) & (slot_h < grid_h) & (j < KH)
        covered = covered & (slot_w >= 0) & (slot_w < grid_w) & (k < KW)
        row = b.to(tl.int64) * tokens + (slot_t * grid_h + slot_h) * grid_w + slot_w
        if inverse is not None:
            row = tl.load(inverse + row, mask=covered, other=-1)
            covered = covered & (row >= 0)
        address = patches + row * (C * KT * KH * KW) + (((c * KT + i) * KH + j) * KW + k)
        acc += tl.load(address, mask=covered, other=0.0)
    address = out + b.to(tl.int64) * stride_b + c.to(tl.int64) * stride_c + t.to(tl.int64) * stride_t
    address += h.to(tl.int64) * stride_h + w.to(tl.int64) * stride_w
    tl.store(address, acc.to(out.dtype.element_ty), mask=live)


# By architecture and product: wide tiles, narrow ones. For the weight, m is the depth and (n, k) the block.
WEIGHT_TILES = {
    (8, "half"): (Tile(32, 128, 128, 8, 4), Tile(64, 64, 64, 4, 3)),
    (8, "tf32"): (Tile(32, 128, 128, 8, 3), Tile(32, 64, 64, 4, 3)),
    (8, "ieee"): (Tile(32, 64, 64, 8, 3), Tile(32, 32, 32, 4, 3)),
    (9, "half"): (Tile(64, 128, 128, 8, 3), Tile(64, 64, 64, 4, 3)),
    (9, "tf32"): (Tile(32, 128, 128, 8, 3), Tile(32, 64, 64, 4, 3)),
    (9, "ieee"): (Tile(32, 64, 64, 8, 3), Tile(32, 32, 32, 4, 3)),
    (10, "half"): (Tile(64, 128, 128, 8, 3), Tile(64, 64, 64, 4, 3)),
    (10, "tf32"): (Tile(32, 128, 128, 8, 3), Tile(32, 64, 64, 4, 3)),
    (10, "ieee"): (Tile(32, 64, 64, 8, 3), Tile(32, 32, 32, 4, 3)),
}
VIDEO_TILES = {
    (8, "half"): (Tile(128, 128, 32, 8, 3), Tile(64, 64, 64, 4, 3)),
    (8, "tf32"): (Tile(128, 128, 32, 8, 3), Tile(64, 64, 32, 4, 3)),
    (8, "ieee"): (Tile(64, 64, 32, 8, 3), Tile(32, 32, 32, 4, 3)),
    (9, "half"): (Tile(128, 128, 64, 8, 3), Tile(64, 64, 64, 4, 3)),
    (9, "tf32"): (Tile(128, 128, 32, 8, 3), Tile(64, 64, 32, 4, 3)),
    (9, "ieee"): (Tile(64, 64, 32, 8, 3), Tile(32, 32, 32, 4, 3)),
    (10, "half"): (Tile(128, 128, 64, 8, 3), Tile(64, 64, 64, 8, 3)),
    (10, "tf32"): (Tile(128, 128, 32, 8, 3), Tile(64, 64, 32, 8, 3)),
    (10, "ieee"): (Tile(64, 64, 32, 8, 3), Tile(32, 32, 32, 4, 3)),
}


def weight_stage_bytes(tile: Tile, video_size: int, grad_size: int) -> int:
    """Shared memory of one pipeline stage of the weight's gradient, from the element sizes."""
    return tile.m * (tile.n * grad_size + tile.k * video_size)


def video_stage_bytes(tile: Tile, grad_size: int) -> int:
    """Shared memory of one pipeline stage of the video's gradient, from the element size."""
    return tile.k * (tile.m + tile.n) * grad_size


def _grad_weight(grad, video, weight, corners, unit, geometry, precision) -> Tensor:
    """Gradient, in float32, of the weight as it meets the kernel's pixels: normalised, or bytes - 128."""
    (rows, width), order = grad.shape, pixel_order(video)
    kind = product_kind(weight, precision)

    def most_splits(tile: Tile) -> int:
        # Each with a few steps to fill its pipeline.
        return max(rows // (8 * tile.m), 1)

    def blocks(tile: Tile) -> int:
        return triton.cdiv(width, tile.n) * triton.cdiv(geometry.patch, tile.k)

    tile = pick_tile(WEIGHT_TILES, video.device, kind, lambda t: blocks(t) * most_splits(t))
    stage = weight_stage_bytes(tile, video.element_size(), grad.element_size())
    tile = fit_stages(tile, architecture(video.device), stage)
    # Two programs to a multiprocessor.
    splits = min(triton.cdiv(2 * FULL_DEVICE, blocks(tile)), most_splits(tile))
    split_rows = triton.cdiv(triton.cdiv(rows, splits), tile.m) * tile.m
    splits = triton.cdiv(rows, split_rows)
    partial = torch.empty(splits, width, geometry.patch, dtype=torch.float32, device=video.device)
    _tubelet_embed_grad_weight_kernel[(blocks(tile) * splits,)](
        grad, video, corners, partial=partial, rows=rows, width=width, split_rows=split_rows,
        stride_grad=grad.stride(0), ORDER=order, PRECISION="tf32" if kind == "tf32" else "ieee", UNIT=unit,
        **patch_arguments(video, geometry), **normalisation(video, geometry), **tile.options(),
    )  # fmt: skip
    total = partial[0] if splits == 1 else partial.sum(0)
    if order == "cthw":
        return total.view(weight.shape)
    return total.view(width, *geometry.kernel, geometry.channels).permute(0, 4, 1, 2, 3)


def _grad_video(grad, video, weight, ids, corners, unit, geometry, precision) -> Tensor:
    """Gradient of a floating video, in its memory order where that is dense. A repeated id makes it NaN."""
    out = torch.zeros_like(video)
    (rows, width), patch = grad.shape, geometry.patch
    steps = zip(geometry.kernel, geometry.stride, geometry.grid, strict=True)
    overlapping = any(k > s and n > 1 for k, s, n in steps)
    inverse = flag = None
    if ids is not None:
        inverse, (flag, _) = invert_ids(ids, geometry.clips * geometry.tokens, outside_spoils=False)
    order = "cthw" if overlapping else pixel_order(out)
    target = torch.empty(rows, patch, dtype=torch.float32, device=video.device) if overlapping else out
    # The corners are those of ``video``; a gradient laid out otherwise (an expanded video) needs its own.
    if not overlapping and out.stride() != video.stride():
        corners, unit = corners_of(out, ids, geometry, rows)
    kind = product_kind(weight, precision)
    tile = pick_tile(VIDEO_TILES, video.device, kind, lambda t: t.blocks(rows, patch))
    stage = video_stage_bytes(tile, grad.element_size())
    tile = fit_stages(tile, architecture(video.device), stage)
    scale = None if geometry.scale is None else table(geometry.scale, video.device, torch.float32)
    _tubelet_embed_grad_video_kernel[(tile.blocks(rows, patch),)](
        grad, matrix_of(weight, order).t().contiguous(), corners, scale, flag, target, rows, width,
        stride_grad=grad.stride(0), ORDER=order, PATCHES=overlapping, UNIT=unit,
        PRECISION="tf32" if kind == "tf32" else "ieee", **patch_arguments(out, geometry), **tile.options(),
    )  # fmt: skip
    if overlapping:
        clips, channels, frames, height, breadth = video.shape
        _fold_patches_kernel[(clips * channels * triton.cdiv(frames * height * breadth, 1024),)](
            target, inverse, out, frames, height, breadth, grid_t=geometry.grid[0], BLOCK=1024,
            **grid_arguments(out, geometry), **patch_arguments(out, geometry),
        )  # fmt: skip
    return out


def backward(
    grad: Tensor,
    video: Tensor,
    weight: Tensor,
    ids: Tensor | None,
    geometry: Geometry,
    precision: str,
    needs: tuple[bool, bool, bool, bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of video, weight, bias (D,) and pos (N, D), each where ``needs`` says so.

    grad is (M, D) in the dtype of ``weight``, which the last three gradients have too. Sums run in float32.
    """
    needs_video, needs_weight, needs_bias, needs_pos = needs
    (rows, width), total = grad.shape, geometry.clips * geometry.tokens
    if rows == 0 or width == 0 or total == 0:
        like = (video, weight, weight[:, 0, 0, 0, 0], weight.new_empty(geometry.tokens, width))
        return tuple(torch.zeros_like(t) if need else None for t, need in zip(like, needs, strict=True))
    grad = grad if grad.stride(1) == 1 else grad.contiguous()
    grad_video = grad_weight = grad_bias = grad_pos = None
    with torch.cuda.device_of(video):
        if needs_video or needs_weight:
            corners, unit = corners_of(video, ids, geometry, rows)
        if needs_video:
            grad_video = _grad_video(grad, video, weight, ids, corners, unit, geometry, precision)
        fold = needs_weight and video.dtype == torch.uint8
        if needs_bias or fold:
            taken = "all" if ids is None else "inside"
            column_sum = sum_columns(grad, taken, ids, total, dtype=torch.float32)
            grad_bias = column_sum.to(weight.dtype) if needs_bias else None
        if needs_weight:
            grad_weight = _grad_weight(grad, video, weight, corners, unit, geometry, precision)
            if fold:
                scale, shift = (table(v, video.device, torch.float32) for v in byte_scale_shift(geometry))
                grad_weight = grad_weight * scale.view(-1, 1, 1, 1)
                grad_weight += torch.outer(column_sum, shift)[:, :, None, None, None]
            grad_weight = grad_weight.to(weight.dtype, memory_format=torch.contiguous_format)
        if needs_pos:
            if ids is None and geometry.clips == 1:
                grad_pos = grad.clone()  # an operator may not return what it was given
            elif ids is None:
                grad_pos = grad.unflatten(0, (geometry.clips, geometry.tokens)).sum(0, dtype=torch.float32)
                grad_pos = grad_pos.to(weight.dtype)
            else:
                places = torch.where((ids >= 0) & (ids < total), ids % geometry.tokens, -1)
                grad_pos = sum_sorted(grad, *sort_ids(places, geometry.tokens))
    return grad_video, grad_weight, grad_bias, grad_pos
