"""Embedding a clip the usual way, normalise → Conv3d → + pos → index; and its floor, the bare product."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as nnf

# mean 0.5 and std 0.5: one multiplication and one addition a pixel.
SCALE, SHIFT = 2 / 255, -1.0


def chain(video: Tensor, weight: Tensor, bias: Tensor, pos: Tensor, keep: Tensor) -> Tensor:
    """uint8 (B, C, T, H, W) → (B, K, D). In-place normalisation; memory format as the arguments have it."""
    tokens = nnf.conv3d(video.to(weight.dtype).mul_(SCALE).add_(SHIFT), weight, bias, weight.shape[2:])
    tokens = tokens.flatten(2).transpose(1, 2) + pos
    return tokens.gather(1, keep.unsqueeze(2).expand(-1, -1, tokens.shape[2]))


def compiled_chain():
    """``chain`` by torch.compile, which fuses all but the convolution."""

    def out_of_place(video: Tensor, weight: Tensor, bias: Tensor, pos: Tensor, keep: Tensor) -> Tensor:
        tokens = nnf.conv3d(video.to(weight.dtype) * SCALE + SHIFT, weight, bias, weight.shape[2:])
        tokens = tokens.flatten(2).transpose(1, 2) + pos
        return tokens.gather(1, keep.unsqueeze(2).expand(-1, -1, tokens.shape[2]))

    return torch.compile(out_of_place, dynamic=False)


def patches(video: Tensor, kernel: tuple[int, int, int], keep: Tensor) -> Tensor:
    """Kept tubelets as rows (B·K, C·t·h·w), normalised in float32 for uint8 and in float64 for float64."""
    rows = _tubelets(video, kernel)[torch.arange(video.shape[0], device=video.device)[:, None], keep].flatten(0, 1)
    rows = rows if rows.is_floating_point() else rows.float()
    return rows.mul_(SCALE).add_(SHIFT)


def patches_linear(video: Tensor, weight: Tensor, bias: Tensor, pos: Tensor, keep: Tensor) -> Tensor:
    """What masking before the product looks like in plain PyTorch: fold, index, normalise, multiply, add."""
    rows = patches(video, tuple(weight.shape[2:]), keep).to(weight.dtype)
    out = nnf.linear(rows, weight.flatten(1), bias).view(*keep.shape, -1)
    return out + pos[keep]


def bare_product(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The floor: ``F.linear`` with bias on patches that are ready. No pixel is read and no position added."""
    return nnf.linear(rows, weight.flatten(1), bias)


def onednn_product(device: str) -> Callable[[Tensor, Tensor, Tensor | None], Tensor] | None:
    """``F.linear`` by oneDNN, without gradient; None where PyTorch has no such call, or off the CPU.

    ``torch.mm`` goes to MKL, which may hold back on other makers' CPUs. Convolutions go to oneDNN, which does
    not.
    """
    found = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if device == "cpu" else None
    return found and (lambda rows, matrix, bias: found(rows, matrix, bias, "none", [], ""))


def _tubelets(video: Tensor, kernel: tuple[int, int, int]) -> Tensor:
    """(B, N, C, t, h, w); a copy of the video."""
    clips, channels, frames, height, width = video.shape
    t, h, w = kernel
    grid = video.view(clips, channels, frames // t, t, height // h, h, width // w, w)
    return grid.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(clips, -1, channels * t * h * w)
