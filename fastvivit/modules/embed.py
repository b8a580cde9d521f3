"""Patch embedding of clips and of images, with learned positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import fastvivit.functional as F
from fastvivit.ops.tubelet_embed.geometry import Size3


class PatchEmbed(nn.Module):
    """Tubelets (or image patches) as tokens: a Conv3d's (Conv2d's) weight, a bias, a position for each place.

    Args:
        channels: C.
        width: D.
        kernel: (t, h, w) of a tubelet, (h, w) of an image patch.
        grid: (T', H', W') of the position table; T' = 1 without time.
        mean: of uint8 pixels in units of 0..1, one a channel.
        std: see ``mean``.
        pos_std: standard deviation of the initial positions.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        kernel: Sequence[int],
        grid: Size3,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        pos_std: float,
    ) -> None:
        super().__init__()
        self.grid, self.mean, self.std, self.pos_std = grid, tuple(mean), tuple(std), pos_std
        self.weight = nn.Parameter(torch.empty(width, channels, *kernel))
        self.bias = nn.Parameter(torch.empty(width))
        self.pos = nn.Parameter(torch.empty(grid[0] * grid[1] * grid[2], width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights at unit gain (variance 1 / fan-in), no bias, small random positions."""
        nn.init.trunc_normal_(self.weight, std=self.weight[0].numel() ** -0.5)
        nn.init.zeros_(self.bias)
        nn.init.trunc_normal_(self.pos, std=self.pos_std)

    def positions(self, grid: Size3) -> Tensor:
        """Positions (N, D) of a clip's grid: its first time slots, height and width interpolated.

        A table without time (T' = 1) is repeated over the slots. Raises ``ValueError`` for more slots than
        positions.
        """
        slots, height, width = grid
        if slots > self.grid[0] != 1:
            raise ValueError(
                f"video: wanted at most {self.grid[0]} time slots (the positions there are), got {slots}; "
                "extend_frames makes room for more"
            )
        pos = F.resize_positions(self.pos, self.grid, (self.grid[0], height, width))
        if self.grid[0] == 1:
            return pos.repeat(slots, 1)
        return pos[: slots * height * width]

    def forward(self, video: Tensor, keep: Tensor | None, grid: Size3) -> Tensor:
        """Kept tokens of (B, C, T, H, W) clips or (B, C, H, W) images, as ``F.tubelet_embed`` returns."""
        norm = {"mean": self.mean, "std": self.std} if video.dtype == torch.uint8 else {}
        return F.tubelet_embed(video, self.weight, self.bias, pos=self.positions(grid), keep=keep, **norm)
