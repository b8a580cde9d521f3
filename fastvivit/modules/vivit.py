"""ViViT on packed tokens: only kept tubelets are ever read, embedded or attended to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fastvivit.functional as F
from fastvivit.models import ViViTConfig
from fastvivit.modules.block import Block
from fastvivit.modules.embed import PatchEmbed
from fastvivit.ops.checked_ids import checked_ids
from fastvivit.ops.tubelet_embed.geometry import grid_of
from fastvivit.tokens import Grid, Tokens

Keep = Tensor | list[Tensor] | None


@dataclass(frozen=True, kw_only=True)
class EncoderOutput:
    """What an encoder returns.

    Attributes:
        tokens: (M, D) packed tokens after the final norm, clip after clip, in the order of ``keep``.
        cu_seqlens: (B + 1,) int32 rows of each clip.
        keep: grid ids of the tokens, in the form they were given: (B, K) int64, a list of B tensors, or None
            for all.
        grid: (T', H', W') of the clips; a list of B where they differ.
        pooled: (B, D) mean over each clip's tokens, or None without pooling.
        layers: the tokens after each block asked for, before the final norm.
    """

    tokens: Tensor
    cu_seqlens: Tensor
    keep: Keep
    grid: Grid | list[Grid]
    pooled: Tensor | None
    counts: list[int] = field(repr=False)
    layers: tuple[Tensor, ...] = ()

    @property
    def last_hidden_state(self) -> Tensor:
        """(B, K, D). Raises ``ValueError`` where clips kept different numbers of tokens."""
        if len(set(self.counts)) != 1:
            raise ValueError(f"last_hidden_state: wanted clips with equally many tokens, got {self.counts}; use tokens")
        return self.tokens.view(len(self.counts), self.counts[0], -1)


class ViViT(nn.Module):
    """Video Vision Transformer (Arnab et al. 2021) as in the paper: tubelets, learned positions, a mean.

    Args:
        config: see ``ViViTConfig``.
    """

    def __init__(self, config: ViViTConfig) -> None:
        super().__init__()
        self.config = config
        grid = config.grid if config.attention != "frame" else (1, *config.grid[1:])
        norm = {"mean": config.mean, "std": config.std, "pos_std": config.pos_std}
        self.embed = PatchEmbed(config.channels, config.width, config.tubelet, grid, **norm)
        self.image = None
        if config.images:
            still = (1, *config.grid[1:])
            self.image = PatchEmbed(config.channels, config.width, config.tubelet[1:], still, **norm)
        rates = [config.drop_path * i / max(config.depth - 1, 1) for i in range(config.depth)]
        self.blocks = nn.ModuleList(
            Block(
                config.width, config.heads, config.ff, act=config.act, eps=config.eps, drop_path=rate,
                qkv_bias=config.qkv_bias,
            )
            for rate in rates
        )  # fmt: skip
        self.norm = nn.LayerNorm(config.width, config.eps)
        self.checkpointing = False

    @property
    def num_features(self) -> int:
        """Width of the tokens and of ``pooled``, D."""
        return self.config.width

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that an optimiser should not decay, beside those of one dimension."""
        return {name for name, _ in self.named_parameters() if name.endswith(".pos")}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep no activations inside blocks while training; they are computed again in the backward."""
        self.checkpointing = enable

    @torch.no_grad()
    def extend_frames(self, frames: int, how: str = "interpolate") -> None:
        """Make room for clips of ``frames`` frames: positions are resized in time (paper, short to long).

        Call it before the optimiser is made: the position table is a new parameter.

        Args:
            frames: a multiple of the tubelet's frames.
            how: "interpolate", "repeat" or "tile", as in ``F.resize_positions``.

        Raises:
            ValueError: frames that the tubelet does not divide, an unknown ``how``.
        """
        config = self.config.replace(frames=frames)
        if self.embed.grid[0] != 1 or config.attention != "frame":
            pos = F.resize_positions(self.embed.pos, self.embed.grid, config.grid, how=how)
            self.embed.pos = nn.Parameter(pos.detach().clone(), requires_grad=self.embed.pos.requires_grad)
            self.embed.grid = config.grid
        self.config = config

    def forward(
        self,
        video: Tensor | Sequence[Tensor],
        *,
        mask_ratio: float = 0.0,
        keep: Keep = None,
        generator: torch.Generator | None = None,
        strategy: str = "random",
        layers: Sequence[int] = (),
    ) -> EncoderOutput:
        """Encode clips, or images.

        Args:
            video: (B, C, T, H, W) clips, (B, C, H, W) images, or a list of B clips (C, T_i, H_i, W_i). uint8
                is normalised with the configured mean and std; floating pixels are taken as they are. With
                fewer frames than positions the first ones are used; other heights and widths interpolate
                them.
            mask_ratio: share of each clip's tokens to drop, in eval too; drawn by ``F.random_keep``.
            keep: the tokens to keep instead: (B, K) int64 ids, or a list of B tensors of them. Distinct in a
                clip.
            generator: source of randomness for ``mask_ratio``.
            strategy: "random", "tube" or "frame": what ``mask_ratio`` drops.
            layers: blocks (from 0) whose output is wanted too, in ``EncoderOutput.layers``.

        Returns:
            ``EncoderOutput``.

        Raises:
            ValueError: a wrong shape or number, more frames than positions, both ``keep`` and ``mask_ratio``,
                ids out of range or repeated.
        """
        if keep is not None and mask_ratio:
            raise ValueError(f"mask_ratio: wanted 0 beside keep, got {mask_ratio}")
        for layer in layers:
            if not 0 <= layer < len(self.blocks):
                raise ValueError(f"layers: wanted blocks in 0..{len(self.blocks) - 1}, got {layer}")
        clips = _Clips(self, video)
        if mask_ratio:
            keep = clips.draw(mask_ratio, generator, strategy)
        # Frame-level attention wants a frame's tokens together. Ours are drawn in order; a caller's may not
        # be.
        sort = self.config.attention == "frame" and keep is not None and not mask_ratio
        x, tokens = clips.embed(keep)
        restore = None
        if sort:
            x, tokens, restore = _in_grid_order(x, tokens)
        group = tokens.by_frame if self.config.attention == "frame" else tokens.by_clip
        found = []
        for index, block in enumerate(self.blocks):
            if self.checkpointing and self.training:
                x = checkpoint(block, x, group, tokens.by_clip, use_reentrant=False)
            else:
                x = block(x, group, tokens.by_clip)
            if index in layers:
                found.append(x if restore is None else F.gather_tokens(x, restore, distinct=True))
        x = self.norm(x)
        pooled = None
        if self.config.pool == "mean":
            pooled, _ = F.segment_mean(x, tokens.by_clip.segment, tokens.clips)
        if restore is not None:
            x = F.gather_tokens(x, restore, distinct=True)
        return EncoderOutput(
            tokens=x,
            cu_seqlens=tokens.by_clip.cu_seqlens,
            keep=keep,
            grid=clips.grids if clips.listed else clips.grids[0],
            pooled=pooled,
            counts=tokens.counts,
            layers=tuple(found),
        )


class _Clips:
    """A batch as it came: one tensor, or a list of clips that are embedded shape by shape."""

    def __init__(self, model: ViViT, video: Tensor | Sequence[Tensor]) -> None:
        self.model, self.video = model, video
        self.listed = not isinstance(video, Tensor)
        if self.listed:
            if not video:
                raise ValueError("video: wanted at least one clip, got an empty list")
            for i, clip in enumerate(video):
                if not isinstance(clip, Tensor) or clip.dim() != 4:
                    got = tuple(clip.shape) if isinstance(clip, Tensor) else type(clip).__name__
                    raise ValueError(f"video: wanted clips (C, T, H, W) in the list, got {got} at [{i}]")
            shapes = [tuple(clip.shape[1:]) for clip in video]
            self.embedder, self.device = model.embed, video[0].device
        else:
            if video.dim() not in (4, 5) or video.shape[0] == 0:
                raise ValueError(f"video: wanted (B, C, T, H, W) or (B, C, H, W) with B > 0, got {tuple(video.shape)}")
            still = video.dim() == 4
            if still and model.image is None:
                raise ValueError(
                    "video: wanted clips (B, C, T, H, W), got images, and the configuration has images=False"
                )
            self.embedder, self.device = model.image if still else model.embed, video.device
            shapes = [(1, *video.shape[2:]) if still else tuple(video.shape[2:])] * video.shape[0]
        channels, *kernel = self.embedder.weight.shape[1:]
        for clip in video if self.listed else (video[0],):
            if clip.shape[0] != channels:
                raise ValueError(f"video: wanted {channels} channels, got {clip.shape[0]}")
        kernel = (1, *kernel) if len(kernel) == 2 else kernel
        self.shapes = shapes
        self.grids = [self._grid(shape, kernel) for shape in shapes]

    @staticmethod
    def _grid(shape: tuple[int, ...], kernel: tuple[int, ...]) -> Grid:
        for name, length, part in zip(("T", "H", "W"), shape, kernel, strict=True):
            if length < part or length % part:
                raise ValueError(f"video: wanted {name} a multiple of the tubelet's {part}, got {length}")
        return grid_of(shape, kernel, kernel, (0, 0, 0))

    def draw(self, mask_ratio: float, generator, strategy: str) -> Tensor | list[Tensor]:
        """Ids to keep: (B, K), or a list for a list."""
        options = {"generator": generator, "strategy": strategy, "device": self.device}
        if not self.listed:
            return F.random_keep(len(self.grids), prod(self.grids[0]), mask_ratio, grid=self.grids[0], **options)
        return [F.random_keep(1, prod(grid), mask_ratio, grid=grid, **options)[0] for grid in self.grids]

    def embed(self, keep: Keep) -> tuple[Tensor, Tokens]:
        """Rows (M, D), clip after clip in the order of ``keep``, and where they stand."""
        if self.listed or isinstance(keep, list | tuple):
            counts = [prod(grid) for grid in self.grids] if keep is None else self._counts(keep)
            places = None if keep is None else torch.cat(list(keep))
            return self._embed_shapes(keep), Tokens(self.grids, counts, places, self.device)
        if keep is not None and (keep.dim() != 2 or keep.shape[0] != len(self.grids)):
            raise ValueError(f"keep: wanted (B, K) with B = {len(self.grids)}, got shape {tuple(keep.shape)}")
        x = self.embedder(self.video, keep, self.grids[0])
        places = None if keep is None else keep.reshape(-1)
        return x.flatten(0, 1), Tokens(self.grids, [x.shape[1]] * x.shape[0], places, self.device)

    def _counts(self, keep: Sequence[Tensor]) -> list[int]:
        if not isinstance(keep, list | tuple) or len(keep) != len(self.grids):
            got = f"{len(keep)} tensors" if isinstance(keep, list | tuple) else type(keep).__name__
            raise ValueError(f"keep: wanted a list of {len(self.grids)} tensors, one a clip, got {got}")
        for i, ids in enumerate(keep):
            if not isinstance(ids, Tensor) or ids.dim() != 1 or ids.dtype != torch.int64:
                got = f"{ids.dtype} {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
                raise ValueError(f"keep: wanted (K,) int64 ids in the list, got {got} at [{i}]")
        return [ids.shape[0] for ids in keep]

    def _embed_shapes(self, keep: Sequence[Tensor] | None) -> Tensor:
        """One embedding a shape; one row move where clips of a shape are not neighbours."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, shape in enumerate(self.shapes):
            groups.setdefault(shape, []).append(i)
        parts, came, lengths = [], [], {}
        for members in groups.values():
            grid = self.grids[members[0]]
            total = prod(grid)
            clips = self.video if not self.listed else torch.stack([self.video[i] for i in members])
            ids = None
            if keep is not None:
                ids = torch.cat([checked_ids(keep[i], total, "keep") + n * total for n, i in enumerate(members)])
            parts.append(self.embedder(clips, ids, grid).reshape(-1, self.model.num_features))
            came += members
            lengths |= {i: total if keep is None else keep[i].shape[0] for i in members}
        x = parts[0] if len(parts) == 1 else torch.cat(parts)
        if came == sorted(came):
            return x
        starts, at = {}, 0
        for i in came:
            starts[i], at = at, at + lengths[i]
        ranges = [torch.arange(starts[i], starts[i] + lengths[i]) for i in sorted(came)]
        return F.gather_tokens(x, torch.cat(ranges).to(self.device, non_blocking=True), distinct=True)


def _in_grid_order(x: Tensor, tokens: Tokens) -> tuple[Tensor, Tokens, Tensor]:
    """Rows and tokens with each clip's ids ascending, and the (M,) rows that undo it."""
    span = max(prod(grid) for grid in tokens.grids)
    order = (tokens.by_clip.segment * span + tokens.place).argsort()
    ascending = Tokens(tokens.grids, tokens.counts, tokens.place[order], tokens.device)
    return F.gather_tokens(x, order, distinct=True), ascending, order.argsort()
