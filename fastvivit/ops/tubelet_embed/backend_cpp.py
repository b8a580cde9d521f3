"""tubelet_embed by the compiled CPU kernels (csrc/tubelet_embed_cpu.cpp, csrc/tubelet_patches_cpu.cpp).

The kept tubelets are gathered, converted and normalised block by block into float32 rows that stay in the cache, and
multiplied there on top of bias and position. The backward gathers them again, around PyTorch's matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import addressof, byref, c_float, c_int64
from functools import lru_cache

import torch
from torch import Tensor

from fastvivit import _native
from fastvivit.ops._product import product, product_plus
from fastvivit.ops._rows_native import segment_sum
from fastvivit.ops.tubelet_embed.geometry import Geometry

_DTYPE = {torch.float32: 0, torch.float16: 2, torch.bfloat16: 3, torch.uint8: 4}
# Floats of a block of patches: 8 MiB stays in a shared cache, and is tall enough for the product to reach its
# rate.
_BLOCK = 2 << 20
_Stride = c_int64 * 5


@lru_cache(maxsize=256)
def _template(geometry: Geometry) -> tuple[_native.Tubelets, tuple]:
    """``geometry`` for the kernels, without a video, and the floats it points to, which must outlive it."""
    channels = geometry.channels
    floats = c_float * channels
    normal = floats(*(geometry.scale or (1.0,) * channels)), floats(*(geometry.shift or (0.0,) * channels))
    where = ((c_int64 * 3)(*v) for v in (geometry.kernel, geometry.stride, geometry.offset, geometry.grid))
    return _native.Tubelets(None, 0, _Stride(), channels, *where, *map(addressof, normal)), normal


class _Patches:
    """The tubelets of ``video`` as float32 rows of C·t·h·w normalised pixels."""

    def __init__(self, video: Tensor, ids: Tensor | None, geometry: Geometry) -> None:
        self.video, self.ids, self.geometry = video, ids, geometry
        self.rows = geometry.clips * geometry.tokens if ids is None else ids.shape[0]
        template, self.normal = _template(geometry)
        self.tubelets = _native.Tubelets.from_buffer_copy(template)
        self.tubelets.video, self.tubelets.dtype = video.data_ptr(), _DTYPE[video.dtype]
        self.tubelets.stride = _Stride(*video.stride())

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Row ranges and their patches (rows, C·t·h·w), which the next block overwrites."""
        lib, ids = _native.load(), None if self.ids is None else self.ids.data_ptr()
        step = max(min(_BLOCK // self.geometry.patch, self.rows), 64)
        buffer = torch.empty(min(step, self.rows), self.geometry.patch)
        for first in range(0, self.rows, step):
            rows = min(step, self.rows - first)
            lib.fv_patches(byref(self.tubelets), ids, first, rows, self.geometry.clips, buffer.data_ptr())
            yield slice(first, first + rows), buffer if rows == buffer.shape[0] else buffer[:rows]

    def add_gradient(self, grad_patches: Tensor) -> None:
        """Add gradients of all patches (rows, C·t·h·w) to ``video``, where their pixels came from."""
        ids = None if self.ids is None else self.ids.data_ptr()
        grad_patches = grad_patches.contiguous()
        _native.load().fv_patches_backward(
            byref(self.tubelets), ids, self.rows, self.geometry.clips, grad_patches.data_ptr()
        )


def _matrix(weight: Tensor) -> Tensor:
    return weight.reshape(weight.shape[0], -1).float()


def forward(
    video: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pos: Tensor | None,
    ids: Tensor | None,
    geometry: Geometry,
    precision: str,
) -> Tensor:
    """Rows (M, D) of the kept tubelets in the dtype of ``weight``, computed in float32."""
    patches = _Patches(video, ids, geometry)
    weight = weight.contiguous()
    bias, pos = (t if t is None else t.float().contiguous() for t in (bias, pos))
    out = torch.empty(patches.rows, weight.shape[0], dtype=weight.dtype)
    _native.load().fv_embed(
        byref(patches.tubelets), None if ids is None else ids.data_ptr(), patches.rows, geometry.clips,
        weight.data_ptr(), _DTYPE[weight.dtype], weight.shape[0], None if bias is None else bias.data_ptr(),
        None if pos is None else pos.data_ptr(), torch.get_num_threads(), out.data_ptr(),
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
    """Gradients of video, weight, bias and pos, each where ``needs`` says so; pixels are gathered again."""
    needs_video, needs_weight, needs_bias, needs_pos = needs
    grad_video = grad_weight = grad_bias = grad_pos = None
    grad32 = grad.float()
    if needs_video:
        found = torch.zeros(video.shape)
        _Patches(found, ids, geometry).add_gradient(product(grad32, _matrix(weight).t()))
        grad_video = found.to(video.dtype)
    if needs_weight:
        patches = _Patches(video, ids, geometry)
        total = None
        for rows, block in patches.blocks():
            operands = grad32[rows].t(), block.t()
            total = product(*operands) if total is None else product_plus(*operands, total)
        total = torch.zeros(weight.shape[0], geometry.patch) if total is None else total
        grad_weight = total.view(weight.shape).to(weight.dtype)
    if needs_bias:
        grad_bias = grad32.sum(0).to(weight.dtype)
    if needs_pos:
        places = torch.arange(grad.shape[0]) if ids is None else ids
        grad_pos = segment_sum(grad32.contiguous(), places % geometry.tokens, geometry.tokens).to(weight.dtype)
    return grad_video, grad_weight, grad_bias, grad_pos
