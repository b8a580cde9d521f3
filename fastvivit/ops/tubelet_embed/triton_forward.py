"""The forward kernel of tubelet_embed: an implicit matrix product that gathers kept tubelets from the video.

A patch element's place is worked out in the kernel from compile-time tubelet sizes, not read from a table:
so the compiler sees that a run of w pixels is contiguous and aligned, and loads 16 bytes at a time. For the
same reason a channels-last video is multiplied in (t, h, w, c) order, in which its runs are C times longer
(the weight, a few megabytes, is permuted once a call).

uint8 pixels enter the product as x - 128: exact in every dtype, free (a bit flipped, then a signed
conversion), and it takes most of the mean out of the accumulator. The rest of the normalisation is folded
into weight and bias.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import gcd
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastvivit.ops.tubelet_embed.geometry import Geometry


@triton.jit
def _tubelet_corner(
    token, tokens, grid_h, grid_w, stride_b, stride_t, stride_h, stride_w,
    ST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    OT: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr,
):  # fmt: skip
    """Offset in the video of the first pixel of ``token``, a row-major (clip, t, h, w) id, in int64."""
    place = token % tokens
    t = place // (grid_h * grid_w) * ST + OT
    h = place // grid_w % grid_h * SH + OH
    w = place % grid_w * SW + OW
    corner = (token // tokens).to(tl.int64) * stride_b + t.to(tl.int64) * stride_t
    return corner + h.to(tl.int64) * stride_h + w.to(tl.int64) * stride_w


@triton.jit
def _patch_offset(
    k, stride_c, stride_t, stride_h, stride_w,
    C: tl.constexpr, KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ORDER: tl.constexpr,
):  # fmt: skip
    """Offset of patch element ``k`` from its tubelet's corner, in int64.

    ORDER "cthw": k is (c, t, h, w); "thwc": (t, h, w, c); "thw+c": the same, w and c being one run in memory.
    """
    if ORDER == "cthw":
        offset = (k % KW).to(tl.int64) * stride_w + (k // (KW * KH * KT)).to(tl.int64) * stride_c
        line = k // KW
    else:
        run = (k % (KW * C)).to(tl.int64)
        offset = run if ORDER == "thw+c" else run // C * stride_w + run % C * stride_c
        line = k // (KW * C)
    return offset + (line % KH).to(tl.int64) * stride_h + (line // KH % KT).to(tl.int64) * stride_t


@triton.jit
def _patch_channel(k, C: tl.constexpr, TUBELET: tl.constexpr, ORDER: tl.constexpr):
    """Channel of patch element ``k``; TUBELET is KT·KH·KW."""
    channel = k // TUBELET if ORDER == "cthw" else k % C
    return tl.minimum(channel, C - 1)


@triton.jit
def _operand(pixels, channel, scale, shift, NORM: tl.constexpr, dtype: tl.constexpr):
    """Pixels [M, K] as the product takes them: x - 128 of bytes, ``x·scale[c] + shift[c]`` or x of floats."""
    if NORM == "centre":
        return (pixels ^ 0x80).to(tl.int8, bitcast=True).to(dtype)
    if NORM == "affine":
        pixels = pixels.to(tl.float32) * tl.load(scale + channel)[None, :] + tl.load(shift + channel)[None, :]
    return pixels.to(dtype)


@triton.jit(do_not_specialize=["rows", "total", "tokens", "grid_h", "grid_w", "factor"])
def _tubelet_embed_forward_kernel(
    video, weight, bias, pos, ids, scale, shift, out, rows, total, width, factor, stride_pos,
    tokens, grid_h, grid_w, stride_b, stride_c, stride_t, stride_h, stride_w,
    C: tl.constexpr, KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    ST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    OT: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr,
    ORDER: tl.constexpr, NORM: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``out[m] = factor · pixels(ids[m]) @ weight.T + bias + pos[ids[m] % tokens]``; NaN for a bad id."""
    K: tl.constexpr = C * KT * KH * KW
    # Programs that read the same pixels are neighbours, so that all but the first find them in the L2 cache.
    blocks = tl.cdiv(width, BLOCK_N)
    row = tl.program_id(0) // blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    live = row < rows
    if ids is None:
        valid = live
        token = row
    else:
        token = tl.load(ids + row, mask=live, other=0)
        valid = (token >= 0) & (token < total)
    # Rows and columns that nobody stores are read as valid ones: loads without masks are cheaper.
    token = tl.where(valid, token, 0).to(tl.int32)
    corner = _tubelet_corner(
        token, tokens, grid_h, grid_w, stride_b, stride_t, stride_h, stride_w, ST, SH, SW, OT, OH, OW
    )
    lines = weight + tl.minimum(column, width - 1).to(tl.int64) * K
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        offset = _patch_offset(k, stride_c, stride_t, stride_h, stride_w, C, KT, KH, KW, ORDER)
        if K % BLOCK_K == 0:
            pixels = tl.load(video + corner[:, None] + offset[None, :])
            w = tl.load(lines[:, None] + k[None, :])
        else:
            pixels = tl.load(video + corner[:, None] + offset[None, :], mask=(k < K)[None, :], other=0)
            w = tl.load(lines[:, None] + k[None, :], mask=(k < K)[None, :], other=0.0)
        channel = _patch_channel(k, C, KT * KH * KW, ORDER)
        a = _operand(pixels, channel, scale, shift, NORM, w.dtype)
        acc = tl.dot(a, tl.trans(w), acc, input_precision=PRECISION)
    acc = acc * factor
    within = column < width
    if bias is not None:
        acc += tl.load(bias + column, mask=within, other=0.0).to(tl.float32)[None, :]
    store = live[:, None] & within[None, :]
    if pos is not None:
        place = (token % tokens).to(tl.int64)[:, None] * stride_pos + column[None, :]
        acc += tl.load(pos + place, mask=store, other=0.0).to(tl.float32)
    if ids is not None:
        acc = tl.where(valid[:, None], acc, float("nan"))
    address = out + row.to(tl.int64)[:, None] * width + column[None, :]
    tl.store(address, acc.to(out.dtype.element_ty), mask=store)


@triton.jit(do_not_specialize=["rows", "total", "tokens", "grid_h", "grid_w"])
def _tubelet_corners_kernel(
    ids, corners, rows, total, tokens, grid_h, grid_w, stride_b, stride_t, stride_h, stride_w,
    ST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    OT: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr,
    UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``corners[m]`` = offset of the first pixel of row m's tubelet, in UNIT pixels; -1 for a bad id."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = row < rows
    if ids is None:
        token = row
    else:
        token = tl.load(ids + row, mask=live, other=-1)
    valid = (token >= 0) & (token < total)
    token = tl.where(valid, token, 0).to(tl.int32)
    corner = _tubelet_corner(
        token, tokens, grid_h, grid_w, stride_b, stride_t, stride_h, stride_w, ST, SH, SW, OT, OH, OW
    )
    tl.store(corners + row, tl.where(valid, corner // UNIT, -1), mask=live)


class Tile(NamedTuple):
    """Rows, columns and depth of a program's block of the product, its warps and pipeline stages."""

    m: int
    n: int
    k: int
    warps: int
    stages: int

    def blocks(self, rows: int, columns: int) -> int:
        """Programs that cover a result."""
        return triton.cdiv(rows, self.m) * triton.cdiv(columns, self.n)

    def options(self) -> dict[str, object]:
        """What a kernel is launched with."""
        return {
            "BLOCK_M": self.m, "BLOCK_N": self.n, "BLOCK_K": self.k,
            "num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True,
        }  # fmt: skip


# The interpreter pays by the program, and small tests must still cross the edges of a tile.
INTERPRETED = Tile(16, 64, 128, 4, 1)
# Bytes of shared memory that a pipeline may fill: consumer cards of 8 have 99 KiB, 9 and 10 have 227 KiB.
_SHARED = {8: 96 << 10, 9: 200 << 10, 10: 200 << 10}
# Programs below which the narrow tiles are used; about the multiprocessors of a large device.
FULL_DEVICE = 128


@lru_cache
def architecture(device: torch.device) -> int:
    """Major compute capability as the tables know it; 0 is the interpreter."""
    if device.type != "cuda":
        return 0
    major = torch.cuda.get_device_capability(device)[0]
    # Architecture 12 (consumer Blackwell) has the matrix instructions and shared memory of 8.
    return major if major in _SHARED else 8


def product_kind(weight: Tensor, precision: str) -> str:
    """Which rows of a table of tiles a product uses: "half", "tf32" or "ieee"."""
    return precision if weight.dtype == torch.float32 else "half"


def pick_tile(tiles: dict, device: torch.device, kind: str, programs: Callable[[Tile], int]) -> Tile:
    """The wide tile of a table, or the narrow one if ``programs`` of wide ones leave the device idle."""
    major = architecture(device)
    if major == 0:
        return INTERPRETED
    wide, narrow = tiles[major, kind]
    return wide if programs(wide) >= FULL_DEVICE else narrow


def fit_stages(tile: Tile, major: int, stage_bytes: int) -> Tile:
    """``tile`` with as many of its pipeline stages as the shared memory of architecture ``major`` holds."""
    limit = _SHARED.get(major, _SHARED[8])
    return tile._replace(stages=max(min(tile.stages, limit // stage_bytes), 1))


@lru_cache(maxsize=256)
def table(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """``values`` on the device, copied there once: a copy a call would stall, and no graph captures it."""
    return torch.tensor(values, device=device, dtype=dtype)


def pixel_order(video: Tensor) -> str:
    """The order in which patch elements are multiplied, so that neighbours in it are neighbours in memory."""
    channels, (_, stride_c, _, _, stride_w) = video.shape[1], video.stride()
    if channels == 1 or stride_w <= stride_c:
        return "cthw"
    return "thw+c" if stride_c == 1 and stride_w == channels else "thwc"


def matrix_of(weight: Tensor, order: str) -> Tensor:
    """Patch elements of ``weight`` (D, C, t, h, w) in ``order``: (D, K) contiguous."""
    return (weight if order == "cthw" else weight.permute(0, 2, 3, 4, 1)).flatten(1).contiguous()


def normalisation(video: Tensor, geometry: Geometry) -> dict[str, object]:
    """How the kernels are to normalise: NORM, and scale and shift (C,) float32 of "affine" (float videos)."""
    if video.dtype == torch.uint8:
        return {"NORM": "centre", "scale": None, "shift": None}
    if geometry.scale is None:
        return {"NORM": "none", "scale": None, "shift": None}
    # Folding a float video's mean into the bias would cancel badly where the mean is many deviations from 0.
    scale, shift = (table(v, video.device, torch.float32) for v in (geometry.scale, geometry.shift))
    return {"NORM": "affine", "scale": scale, "shift": shift}


def byte_scale_shift(geometry: Geometry) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Scale and shift (C,) that normalise y = x - 128: ``x·s + z = y·s + (z + 128·s)``."""
    scale = geometry.scale or (1.0,) * geometry.channels
    shift = geometry.shift or (0.0,) * geometry.channels
    return scale, tuple(z + 128.0 * s for s, z in zip(scale, shift, strict=True))


def round_to_tf32(x: Tensor) -> Tensor:
    """Round float32 to the 10-bit mantissa that TF32 products keep (they would cut it off)."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


def grid_arguments(video: Tensor, geometry: Geometry) -> dict[str, int]:
    """What a kernel needs to find a token's corner, besides the strides of ``patch_arguments``."""
    names = ("ST", "SH", "SW", "OT", "OH", "OW")
    constants = dict(zip(names, (*geometry.stride, *geometry.offset), strict=True))
    grid = {"tokens": geometry.tokens, "grid_h": geometry.grid[1], "grid_w": geometry.grid[2]}
    # Of one clip it moves nothing, and after unsqueeze it may be 3, from which no load could be seen to be aligned.
    return {**grid, **constants, "stride_b": video.stride(0) if geometry.clips > 1 else 0}


def patch_arguments(video: Tensor, geometry: Geometry) -> dict[str, int]:
    """What a kernel needs to find a patch element from its tubelet's corner."""
    strides = dict(zip(("stride_c", "stride_t", "stride_h", "stride_w"), video.stride()[1:], strict=True))
    sizes = dict(zip(("C", "KT", "KH", "KW"), (geometry.channels, *geometry.kernel), strict=True))
    return {**strides, **sizes}


def corners_of(video: Tensor, ids: Tensor | None, geometry: Geometry, rows: int) -> tuple[Tensor, int]:
    """Where each row's tubelet begins, once for both products: (M,) int64, in units of the second result."""
    where, strides = grid_arguments(video, geometry), patch_arguments(video, geometry)
    axes = zip(("T", "H", "W"), video.stride()[2:], strict=True)
    steps = [where[kind + axis] * stride for axis, stride in axes for kind in "SO"]
    unit = gcd(16, where["stride_b"], *steps)
    corners = torch.empty(rows, dtype=torch.int64, device=video.device)
    _tubelet_corners_kernel[(triton.cdiv(rows, 256),)](
        ids, corners, rows, geometry.clips * geometry.tokens, **where, UNIT=unit, BLOCK=256,
        **{name: strides[name] for name in ("stride_t", "stride_h", "stride_w")},
    )  # fmt: skip
    return corners, unit
