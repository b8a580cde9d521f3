"""Patch embedding of clips, of images and of tubes, with learned positions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn

import fastvivit.functional as F
from fastvivit._autocast import autocast_dtype
from fastvivit.models import ViViTConfig
from fastvivit.ops.tubelet_embed.geometry import Size3, grid_of
from fastvivit.tokens import Views
from fastvivit.tubes import Tube, grids_of


class PatchEmbed(nn.Module):
    """Tubelets (or image patches) as tokens: a Conv3d's (Conv2d's) weight, a bias, a position for each place.

    Args:
        config: channels, width, normalisation and initial positions are its.
        kernel: (t, h, w) of a tubelet, (h, w) of an image patch.
        grid: (T', H', W') of the position table.
        time: "full", a position for each (t, h, w); "factorised", a table of places plus one of time slots,
            which begins at zero: the same as the table of places repeated; None, places alone, and any number
            of slots.
        tube: stride and offset, where tubelets do not tile the clip.
    """

    def __init__(
        self,
        config: ViViTConfig,
        kernel: Sequence[int],
        grid: Size3,
        *,
        time: str | None = "full",
        tube: Tube | None = None,
    ) -> None:
        super().__init__()
        slots, height, width = grid if time is not None else (1, *grid[1:])
        self.grid, self.timeless = (slots, height, width), time is None
        self.mean, self.std, self.pos_std = config.mean, config.std, config.pos_std
        self.stride = tuple(kernel) if tube is None else tube.stride
        self.offset = (0,) * len(kernel) if tube is None else tube.offset
        self.weight = nn.Parameter(torch.empty(config.width, config.channels, *kernel))
        self.bias = nn.Parameter(torch.empty(config.width))
        factorised = time == "factorised"
        self.pos = nn.Parameter(torch.empty((1 if factorised else slots) * height * width, config.width))
        self.pos_time = nn.Parameter(torch.empty(slots, config.width)) if factorised else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights at unit gain (variance 1 / fan-in), no bias, small random positions, none for time."""
        nn.init.trunc_normal_(self.weight, std=self.weight[0].numel() ** -0.5)
        nn.init.zeros_(self.bias)
        nn.init.trunc_normal_(self.pos, std=self.pos_std)
        if self.pos_time is not None:
            nn.init.zeros_(self.pos_time)

    @property
    def channels(self) -> int:
        """C."""
        return self.weight.shape[1]

    def views(self, size: Sequence[int]) -> Views:
        """The grid of a clip of ``size`` (T, H, W). Raises ``ValueError`` for one that tubelets do not tile."""
        kernel = (1,) * (5 - self.weight.dim()) + tuple(self.weight.shape[2:])
        for name, length, part in zip(("T", "H", "W"), size, kernel, strict=True):
            if length < part or length % part:
                raise ValueError(f"video: wanted {name} a multiple of the tubelet's {part}, got {length}")
        return (grid_of(size, kernel, kernel, (0, 0, 0)),)

    def table(self) -> Tensor:
        """Positions (T'·H'·W', D) of the whole grid."""
        if self.pos_time is None:
            return self.pos
        return (self.pos + self.pos_time.unsqueeze(1)).flatten(0, 1)

    def positions(self, grid: Size3) -> Tensor:
        """Positions (N, D) of a clip's grid: its first time slots, height and width interpolated.

        A table without time is repeated over the slots. Raises ``ValueError`` for more slots than
        positions.
        """
        slots, height, width = grid
        if slots > self.grid[0] and not self.timeless:
            raise ValueError(
                f"video: wanted at most {self.grid[0]} time slots (the positions there are), got {slots}; "
                "extend_frames makes room for more"
            )
        if self.pos_time is not None:
            pos = F.resize_positions(self.pos, (1, *self.grid[1:]), (1, height, width))
            return (pos + self.pos_time[:slots].unsqueeze(1)).flatten(0, 1)
        pos = F.resize_positions(self.pos, self.grid, (self.grid[0], height, width))
        if self.timeless:
            return pos.repeat(slots, 1)
        return pos[: slots * height * width]

    @torch.no_grad()
    def extend(self, grid: Size3, how: str) -> None:
        """Resize the position table in time to ``grid`` (T', H', W'); the parameter is a new one."""
        if self.timeless:
            grid = self.grid
        name, size, wanted = "pos", self.grid, grid
        if self.pos_time is not None:
            name, size, wanted = "pos_time", (self.grid[0], 1, 1), (grid[0], 1, 1)
        table = getattr(self, name)
        resized = F.resize_positions(table, size, wanted, how=how).detach().clone()
        setattr(self, name, nn.Parameter(resized, requires_grad=table.requires_grad))
        self.grid = grid

    @torch.no_grad()
    def offset_times_(self, std: float) -> None:
        """Add a random vector to the positions of each time slot, where there are several.

        Positions repeated over time say nothing of order, and training is slow to tell slots apart.
        """
        if self.grid[0] > 1:
            offsets = torch.randn(self.grid[0], 1, self.pos.shape[1], dtype=self.pos.dtype) * std
            if self.pos_time is None:
                offsets = offsets.to(self.pos.device).expand(-1, self.grid[1] * self.grid[2], -1)
                self.pos += offsets.reshape(self.pos.shape)
            else:
                self.pos_time += offsets.squeeze(1).to(self.pos.device)

    def forward(self, video: Tensor, keep: Tensor | None, views: Views, split: Sequence[int] | None = None) -> Tensor:
        """Kept tokens of (B, C, T, H, W) clips or (B, C, H, W) images, as ``F.tubelet_embed`` returns."""
        del split  # there is one view
        pos = self.positions(views[0])
        return F.tubelet_embed(
            video,
            self.weight,
            self.bias,
            pos=pos,
            keep=keep,
            stride=self.stride,
            offset=self.offset,
            **self._norm(video),
        )

    def tubelets(self, pixels: Tensor, ids: Tensor, views: Views) -> Tensor:
        """Tokens (M, D) of single tubelets (M, C, t, h, w), or patches (M, C, h, w), at places ``ids`` of a grid.

        They are embedded as one clip, each on top of the other in time (images: in height), whose positions are
        those of their places: so bias, position and product meet as in the whole clips, to the bit. That clip is a
        view where each tubelet's pixels stand together as (t, h, w, C).
        """
        pos = self.positions(views[0])
        # Cast here, autocast's way, so that the rows are moved in the dtype in which they are added.
        pos = F.gather_tokens(pos.to(autocast_dtype(pixels) or self.weight.dtype), ids)
        strip = pixels.transpose(0, 1).flatten(1, 2).unsqueeze(0)
        return F.tubelet_embed(strip, self.weight, self.bias, pos=pos, **self._norm(pixels))[0]

    def _norm(self, pixels: Tensor) -> dict[str, tuple[float, ...]]:
        return {"mean": self.mean, "std": self.std} if pixels.dtype == torch.uint8 else {}


class TubesEmbed(nn.Module):
    """Tubes of several shapes, each with a kernel and positions of its own, their tokens one after the other.

    TubeViT (Piergiovanni et al. 2023, section 3.1), with learned positions as the paper has them (section 4.1).

    Args:
        config: its ``tubes``.
    """

    def __init__(self, config: ViViTConfig) -> None:
        super().__init__()
        self.shapes = config.tubes
        self.tubes = nn.ModuleList(
            PatchEmbed(config, tube.kernel, grid, tube=tube)
            for tube, grid in zip(config.tubes, config.views, strict=True)
        )

    @property
    def channels(self) -> int:
        """C."""
        return self.tubes[0].channels

    def views(self, size: Sequence[int]) -> Views:
        """Grids of a clip of ``size`` (T, H, W). Raises ``ValueError`` where a tube has no position in it."""
        return grids_of(self.shapes, size, "video")

    def offset_times_(self, std: float) -> None:
        """See ``PatchEmbed.offset_times_``."""
        for tube in self.tubes:
            tube.offset_times_(std)

    def forward(self, video: Tensor, keep: Tensor | None, views: Views, split: Sequence[int] | None = None) -> Tensor:
        """Kept tokens of (B, C, T, H, W) clips.

        Args:
            video: clips of one shape.
            keep: None; (B, K) ids ``0..N-1`` with ``split``; or (M,) ids ``0..B·N-1``, whose
                tubes are then read from the ids (on a GPU that waits for them).
            views: their grids.
            split: kept tokens of each tube, where all clips have the same.

        Returns:
            (B, N, D), (B, K, D) or (M, D).
        """
        starts = [0]
        for grid in views:
            starts.append(starts[-1] + prod(grid))
        if keep is None:
            return torch.cat([tube(video, None, (grid,)) for tube, grid in zip(self.tubes, views, strict=True)], 1)
        if split is not None:
            shares = zip(self.tubes, views, starts, keep.split(list(split), 1), strict=False)
            return torch.cat([tube(video, ids - start, (grid,)) for tube, grid, start, ids in shares], 1)
        clip, place = keep // starts[-1], keep % starts[-1]
        rows, came = [], []
        for tube, grid, (start, end) in zip(self.tubes, views, pairwise(starts), strict=True):
            mine = ((place >= start) & (place < end)).nonzero().squeeze(1)
            rows.append(tube(video, clip[mine] * prod(grid) + place[mine] - start, (grid,)))
            came.append(mine)
        return F.scatter_tokens(torch.cat(rows), torch.cat(came), keep.shape[0])
