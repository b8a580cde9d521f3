"""A batch of clips on its way into an encoder: shapes, grids, masks, embedded rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

import fastvivit.functional as F
from fastvivit.modules.embed import PatchEmbed, TubesEmbed
from fastvivit.ops.checked_ids import checked_ids
from fastvivit.tokens import Tokens, Views


@dataclass(frozen=True, eq=False)
class Kept:
    """Ids as ``draw_keep`` draws them, which spares the encoder from sorting them and from looking at them.

    Attributes:
        ids: (B, K) int64, ascending in each clip.
        split: kept tokens of each grid of a clip, the same for all clips.
    """

    ids: Tensor
    split: tuple[int, ...]

    def to(self, device: torch.device, non_blocking: bool = False) -> Kept:
        """The same on another device."""
        return Kept(self.ids.to(device, non_blocking=non_blocking), self.split)

    def pin_memory(self) -> Kept:
        """The same in page-locked memory."""
        return Kept(self.ids.pin_memory(), self.split)

    @property
    def device(self) -> torch.device:
        """Where the ids are."""
        return self.ids.device


Keep = Tensor | list[Tensor] | Kept | None


def draw_keep(
    batch: int,
    views: Views,
    mask_ratio: float,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | None = None,
    strategy: str = "random",
) -> Kept:
    """``F.random_keep`` on the grids of a clip; ids count through them in turn. Tubes are masked one by one.

    Raises:
        ValueError: as ``F.random_keep``, and tubes with another strategy than "random".
    """
    if len(views) > 1 and strategy != "random":
        raise ValueError(f"strategy: wanted 'random' with tubes, which share no places or slots, got {strategy!r}")
    parts, start = [], 0
    for grid in views:
        ids = F.random_keep(
            batch, prod(grid), mask_ratio, grid=grid, generator=generator, strategy=strategy, device=device
        )
        parts.append(ids + start if start else ids)
        start += prod(grid)
    ids = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
    return Kept(ids, tuple(part.shape[1] for part in parts))


class Clips:
    """A batch as it came: one tensor, or a list of clips that are embedded shape by shape.

    Args:
        video: (B, C, T, H, W), (B, C, H, W), or a list of (C, T_i, H_i, W_i).
        embed: what clips go through.
        image: what images go through, or None.

    Raises:
        ValueError: shapes that are neither, an empty batch, images without a path, other channels, a grid that
            does not fit.
    """

    def __init__(
        self, video: Tensor | Sequence[Tensor], embed: PatchEmbed | TubesEmbed, image: PatchEmbed | None
    ) -> None:
        self.video, self.listed = video, not isinstance(video, Tensor)
        if self.listed:
            if not video:
                raise ValueError("video: wanted at least one clip, got an empty list")
            for i, clip in enumerate(video):
                if not isinstance(clip, Tensor) or clip.dim() != 4:
                    got = tuple(clip.shape) if isinstance(clip, Tensor) else type(clip).__name__
                    raise ValueError(f"video: wanted clips (C, T, H, W) in the list, got {got} at [{i}]")
            self.embedder, self.device = embed, video[0].device
            self.shapes = [tuple(clip.shape[1:]) for clip in video]
        else:
            if video.dim() not in (4, 5) or video.shape[0] == 0:
                raise ValueError(f"video: wanted (B, C, T, H, W) or (B, C, H, W) with B > 0, got {tuple(video.shape)}")
            still = video.dim() == 4
            if still and image is None:
                raise ValueError(
                    "video: wanted clips (B, C, T, H, W), got images, and the configuration has images=False"
                )
            self.embedder, self.device = image if still else embed, video.device
            self.shapes = [(1, *video.shape[2:]) if still else tuple(video.shape[2:])] * video.shape[0]
        for clip in video if self.listed else (video[0],):
            if clip.shape[0] != self.embedder.channels:
                raise ValueError(f"video: wanted {self.embedder.channels} channels, got {clip.shape[0]}")
        self.views = [self.embedder.views(shape) for shape in self.shapes]
        self.sizes = [sum(map(prod, views)) for views in self.views]

    @property
    def grid(self):
        """What ``EncoderOutput.grid`` says: the grid (of each clip in a list); a tuple of grids of tubes."""
        grids = [views if isinstance(self.embedder, TubesEmbed) else views[0] for views in self.views]
        return grids if self.listed else grids[0]

    def draw(self, mask_ratio: float, generator: torch.Generator | None, strategy: str) -> Kept | list[Kept]:
        """Ids to keep, of the batch, or one by one of a list."""
        runs = [(views, 1) for views in self.views] if self.listed else [(self.views[0], len(self.views))]
        options = {"generator": generator, "device": self.device, "strategy": strategy}
        drawn = [draw_keep(batch, views, mask_ratio, **options) for views, batch in runs]
        return drawn if self.listed else drawn[0]

    def embed(self, keep: Keep | list[Kept], cls: str | None) -> tuple[Tensor, Tokens]:
        """Rows (m, D) of the kept grid tokens, clip after clip in the order of ``keep``, and where they stand.

        Args:
            keep: ids, as the caller gave them or ``draw`` drew them.
            cls: which sequences will have a CLS token.
        """
        split: list[tuple[int, ...]] | None = None
        if isinstance(keep, Kept):
            keep, split = keep.ids, [keep.split] * len(self.views)
        elif isinstance(keep, list) and keep and isinstance(keep[0], Kept):
            keep, split = [one.ids[0] for one in keep], [one.split for one in keep]
        counts, ids = self.sizes, None
        if keep is not None:
            counts = self._counts(keep)
            ids = keep.reshape(-1) if isinstance(keep, Tensor) else torch.cat(list(keep))
        together = not self.listed and (keep is None or isinstance(keep, Tensor))
        if together and (keep is None or split or isinstance(self.embedder, PatchEmbed)):
            x = self.embedder(self.video, keep, self.views[0], split and split[0]).flatten(0, 1)
        else:
            x = self._embed_shapes(keep.unbind() if isinstance(keep, Tensor) else keep, split)
        return x, Tokens(self.views, counts, ids, self.device, cls=cls)

    def _counts(self, keep: Tensor | list[Tensor]) -> list[int]:
        batch = len(self.views)
        if isinstance(keep, Tensor):
            if keep.dim() != 2 or keep.shape[0] != batch:
                raise ValueError(f"keep: wanted (B, K) with B = {batch}, got shape {tuple(keep.shape)}")
            return [keep.shape[1]] * batch
        if not isinstance(keep, list | tuple) or len(keep) != batch:
            got = f"{len(keep)} tensors" if isinstance(keep, list | tuple) else type(keep).__name__
            raise ValueError(f"keep: wanted a list of {batch} tensors, one a clip, got {got}")
        for i, ids in enumerate(keep):
            if not isinstance(ids, Tensor) or ids.dim() != 1 or ids.dtype != torch.int64:
                got = f"{ids.dtype} {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
                raise ValueError(f"keep: wanted (K,) int64 ids in the list, got {got} at [{i}]")
        return [ids.shape[0] for ids in keep]

    def _embed_shapes(self, keep: Sequence[Tensor] | None, split: Sequence[tuple[int, ...]] | None) -> Tensor:
        """One embedding a shape and dtype; one row move where clips of a kind are not neighbours."""
        groups: dict[tuple, list[int]] = {}
        for i, shape in enumerate(self.shapes):
            groups.setdefault((shape, self.video[i].dtype), []).append(i)
        parts, came, lengths = [], [], {}
        for members in groups.values():
            first, total = members[0], self.sizes[members[0]]
            clips = self.video if not self.listed else torch.stack([self.video[i] for i in members])
            ids = None
            if keep is not None and split is not None:
                ids = torch.stack([keep[i] for i in members])
            elif keep is not None:
                checked = [checked_ids(keep[i], total, "keep") for i in members]
                # A bad id, -1 on a GPU, has to stay one.
                ids = torch.cat([torch.where(own < 0, own, own + n * total) for n, own in enumerate(checked)])
            x = self.embedder(clips, ids, self.views[first], split and split[first])
            parts.append(x.reshape(-1, x.shape[-1]))
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


def in_grid_order(x: Tensor, tokens: Tokens) -> tuple[Tensor, Tokens, Tensor]:
    """Rows (m, D) of grid tokens with each clip's ids ascending, and the (m,) rows that undo it."""
    plain = Tokens(tokens.views, tokens.kept, tokens.ids, tokens.device)
    span = max(sum(map(prod, views)) for views in tokens.views)
    # Clamped: an id out of range, which is NaN on a GPU, must not move its row to another clip.
    order = (plain.by_clip.segment * span + tokens.ids.clamp(0, span - 1)).argsort()
    ascending = Tokens(tokens.views, tokens.kept, tokens.ids[order], tokens.device, cls=tokens.cls)
    return F.gather_tokens(x, order, distinct=True), ascending, order.argsort()
