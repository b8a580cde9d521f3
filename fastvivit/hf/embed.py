"""Pixels of transformers' models as tokens: sizes, positions, and the patch product of what is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import fastvivit.functional as F
from fastvivit.ops.tubelet_embed.geometry import Size3, grid_of


@dataclass(frozen=True)
class Norm:
    """Mean and standard deviation for uint8 pixels, in units of 0..1; None: uint8 is refused."""

    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    @staticmethod
    def of(mean: Sequence[float] | None, std: Sequence[float] | None) -> Norm:
        """Checked: both or neither. Raises ``ValueError``."""
        if (mean is None) != (std is None):
            name, other = ("std", "mean") if std is None else ("mean", "std")
            raise ValueError(f"{name}: wanted values beside {other}, one a channel, got None")
        if mean is None:
            return Norm(None, None)
        mean, std = tuple(map(float, mean)), tuple(map(float, std))
        if len(mean) != len(std):
            raise ValueError(f"std: wanted {len(mean)} values like mean, got {len(std)}")
        if not min(std, default=0.0) > 0:
            raise ValueError(f"std: wanted values above 0, got {std}")
        return Norm(mean, std)


def kernel_of(projection: nn.Module) -> Size3:
    """(t, h, w) of a patch convolution; t is 1 for a Conv2d."""
    kernel = tuple(projection.weight.shape[2:])
    return (1, *kernel) if len(kernel) == 2 else kernel


def clip_grid(
    pixels: Tensor, kernel: Size3, own: Size3, channels: int, norm: Norm, name: str = "pixel_values"
) -> Size3:
    """(T', H', W') of clips; checks them.

    Args:
        pixels: (B, T, C, H, W), uint8 or floating.
        kernel: (t, h, w) of a tubelet.
        own: (T, H, W) the model was made for: the one size that is allowed to floor, as the original does.
        channels: C.
        norm: whether uint8 is taken.
        name: of the argument, for errors.

    Raises:
        ValueError: a wrong shape, a size the tubelet does not divide, uint8 without mean and std.
    """
    if not isinstance(pixels, Tensor) or pixels.dim() != 5:
        got = tuple(pixels.shape) if isinstance(pixels, Tensor) else type(pixels).__name__
        raise ValueError(f"{name}: wanted (B, T, C, H, W), got {got}")
    if pixels.shape[2] != channels:
        raise ValueError(f"{name}: wanted {channels} channels in (B, T, C, H, W), got shape {tuple(pixels.shape)}")
    if pixels.dtype == torch.uint8:
        if norm.mean is None:
            raise ValueError(f"{name}: wanted floats, or mean= and std= in fv.accelerate for uint8, got uint8")
        if len(norm.mean) != channels:
            raise ValueError(f"mean: wanted {channels} values, one a channel, got {len(norm.mean)}")
    elif not pixels.is_floating_point():
        raise ValueError(f"{name}: wanted uint8 or floats, got {str(pixels.dtype).removeprefix('torch.')}")
    size = (pixels.shape[1], *pixels.shape[3:])
    for axis, length, part in zip(("T", "H", "W"), size, kernel, strict=True):
        if length < part or (length % part and size != own):
            raise ValueError(f"{name}: wanted {axis} a multiple of the tubelet's {part}, got {length}")
    return grid_of(size, kernel, kernel, (0, 0, 0))


def positions(table: Tensor, own: Size3, grid: Size3, interpolate: bool = False) -> Tensor:
    """A position table (N, D) of grid ``own`` for another grid; the table itself where they are equal.

    Height and width are interpolated. Fewer time slots take the first ones, unless ``interpolate`` asks for the whole
    length to be squeezed; more are interpolated.
    """
    if grid[0] < own[0] and not interpolate:
        table, own = table[: grid[0] * own[1] * own[2]], (grid[0], *own[1:])
    return F.resize_positions(table, own, grid)


def embed(projection: nn.Module, pixels: Tensor, pos: Tensor | None, keep: Tensor | None, norm: Norm) -> Tensor:
    """Tokens of the kept tubelets: ``F.tubelet_embed`` with the weights of a model's patch convolution.

    Args:
        projection: Conv3d, or Conv2d for frames. One that someone has wrapped or hooked (an adapter, an
            offloader) is called as it is, and its tokens are dropped afterwards.
        pixels: (B, T, C, H, W), checked by ``clip_grid``.
        pos: (N, D) or None.
        keep: (B, K) int64 ids, or None.
        norm: for uint8.

    Returns:
        (B, K, D), or (B, N, D) without ``keep``.
    """
    video, byte = pixels.transpose(1, 2), pixels.dtype == torch.uint8
    if _plain(projection):
        weight = projection.weight if projection.weight.dim() == 5 else projection.weight.unsqueeze(2)
        mean, std = (norm.mean, norm.std) if byte else (None, None)
        return F.tubelet_embed(video, weight, projection.bias, pos=pos, keep=keep, mean=mean, std=std)
    dtype = projection.weight.dtype
    video = normalised(pixels, norm, dtype).transpose(1, 2) if byte else video.to(dtype)
    if projection.weight.dim() == 5:
        tokens = projection(video).flatten(2).transpose(1, 2)
    else:
        frames = projection(video.transpose(1, 2).flatten(0, 1)).flatten(2).transpose(1, 2)
        tokens = frames.unflatten(0, tuple(pixels.shape[:2])).flatten(1, 2)
    tokens = tokens if pos is None else tokens + pos
    return tokens if keep is None else F.gather_tokens(tokens, keep, distinct=True)


def patches_forward(
    module: nn.Module,
    original: Callable,
    norm: Norm,
    /,
    pixel_values: Tensor,
    interpolate_pos_encoding: bool = False,
    *,
    pos: Tensor | None = None,
    keep: Tensor | None = None,
) -> Tensor:
    """The forward of a ViViT's or VideoMAE's patch embeddings: tokens (B, K, D) of tubelets.

    A module's own forward, so that hooks on it (``enable_input_require_grads``) still run.
    """
    return embed(module.projection, pixel_values, pos, keep, norm)


def normalised(pixels: Tensor, norm: Norm, dtype: torch.dtype) -> Tensor:
    """uint8 (B, T, C, H, W) as ``(x / 255 - mean) / std``."""
    mean, std = (torch.tensor(v, device=pixels.device).view(-1, 1, 1) for v in (norm.mean, norm.std))
    return ((pixels.float() / 255 - mean) / std).to(dtype)


def _plain(projection: nn.Module) -> bool:
    """Whether the module is its weights and nothing else: no adapter, hook, offloader, shard or changed stride."""
    if type(projection) not in (nn.Conv2d, nn.Conv3d) or "forward" in projection.__dict__:
        return False
    if type(projection.weight) is not nn.Parameter:
        return False
    if projection._forward_hooks or projection._forward_pre_hooks or projection._backward_hooks:
        return False
    tiles = projection.stride == projection.kernel_size and projection.groups == 1
    return tiles and not any(projection.padding) and not projection._backward_pre_hooks
