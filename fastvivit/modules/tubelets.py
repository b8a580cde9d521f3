"""Clips of which only the kept tubelets are there: what a masked step has to read, send and keep."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import prod

import torch
from torch import Tensor

from fastvivit._checks import FLOATING, require_tensor
from fastvivit.modules.clips import Keep, Kept
from fastvivit.modules.embed import PatchEmbed, TubesEmbed
from fastvivit.tokens import Tokens


class Tubelets:
    """The kept tubelets of B clips of one size. An encoder takes them as it takes ``(video, keep=ids)``.

    Masked pixels are not there, so they are not sent to a device either. In memory a tubelet's pixels best stand
    together as (t, h, w, C), tubelet after tubelet: then ``pixels`` is a permuted view, and embedding copies nothing.
    Other layouts are copied once when they are embedded.

    Args:
        pixels: (M, C, t, h, w) uint8 or floating, tubelets of clip after clip; (M, C, h, w) patches of images.
        keep: which they are: (B, K) int64 ids ``0..N-1`` on each clip's grid, row-major t, h, w, ascending in a
            clip; or a list of B tensors (K_i,) of them. On the device of ``pixels``.
        size: (T, H, W) of each clip, (H, W) of images; multiples of the tubelet's.

    Attributes:
        pixels: as given.
        ids: (M,) int64, the ids of clip after clip.
        counts: kept tubelets of each clip.
        size: as given.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit each other, nothing kept, or (on a CPU) ids out of
            range or not ascending. On a GPU nobody looks: a bad id makes its row NaN.
    """

    def __init__(self, pixels: Tensor, keep: Keep, size: Sequence[int]) -> None:
        require_tensor("pixels", pixels, (4, 5), (torch.uint8, *FLOATING))
        self.pixels, self.size = pixels, _numbers("size", size, pixels.dim() - 2)
        for name, length, part in zip("THW"[-len(self.size) :], self.size, self.kernel, strict=True):
            if part < 1 or length % part:
                raise ValueError(f"size: wanted {name} a multiple of the tubelet's {part}, got {length}")
        self.ids, self.counts, self._even = _flat(keep, pixels)
        if not self.ids.is_cuda:
            require_ascending(self.ids, self.counts, prod(self.grid))

    @classmethod
    def from_clips(cls, video: Tensor | Sequence[Tensor], keep: Keep, kernel: Sequence[int]) -> Tubelets:
        """Take the kept tubelets out of whole clips; only their pixels are copied, with gradient where there is one.

        Args:
            video: (B, C, T, H, W) of any strides, a list of B clips (C, T, H, W) of one size, or images (B, C, H, W).
            keep: (B, K) ids or a list of B tensors, ascending; as ``draw_keep`` draws them; None for all.
            kernel: pixels of a tubelet, (t, h, w); (h, w) of images.

        Raises:
            ValueError: as the class; clips of several sizes, a kernel that does not tile them.
        """
        video = _one_batch(video)
        kernel = _numbers("kernel", kernel, video.dim() - 2)
        for name, length, part in zip("THW"[-len(kernel) :], video.shape[2:], kernel, strict=True):
            if length % part:
                raise ValueError(f"video: wanted {name} a multiple of the tubelet's {part}, got {length}")
        grid = [length // part for length, part in zip(video.shape[2:], kernel, strict=True)]
        total, batch = prod(grid), video.shape[0]
        if keep is None:
            keep = torch.arange(total, device=video.device).expand(batch, -1)
        ids, counts, even = _flat(keep, None)
        if len(counts) != batch:
            raise ValueError(f"keep: wanted ids of {batch} clips like video, got of {len(counts)}")
        if ids.device != video.device:
            raise ValueError(f"keep: wanted device {video.device} like video, got {ids.device}")
        if not ids.is_cuda:
            require_ascending(ids, counts, total)
        return cls._of(_cut(video, kernel, grid, ids, counts), ids, counts, tuple(video.shape[2:]), even)

    @classmethod
    def _of(cls, pixels: Tensor, ids: Tensor, counts: tuple[int, ...], size: tuple[int, ...], even: bool) -> Tubelets:
        """From parts that have been checked."""
        made = object.__new__(cls)
        made.pixels, made.ids, made.counts, made.size, made._even = pixels, ids, counts, size, even
        return made

    @classmethod
    def stack(cls, parts: Sequence[Tubelets]) -> Tubelets:
        """Several batches as one, in memory as (M, t, h, w, C).

        Raises:
            ValueError: none, or some whose sizes, kernels or dtypes differ.
        """
        if not parts:
            raise ValueError("parts: wanted at least one, got none")
        kinds = {(part.size, tuple(part.pixels.shape[1:]), part.pixels.dtype) for part in parts}
        if len(kinds) > 1:
            raise ValueError(f"parts: wanted one size, tubelet and dtype, got {sorted(map(str, kinds))}")
        last = parts[0].pixels.dim()
        pixels = torch.cat([part.pixels.movedim(1, -1) for part in parts]).movedim(last - 1, 1)
        counts = tuple(count for part in parts for count in part.counts)
        even = all(part._even for part in parts) and len(set(counts)) == 1
        return cls._of(pixels, torch.cat([part.ids for part in parts]), counts, parts[0].size, even)

    @property
    def keep(self) -> Tensor | list[Tensor]:
        """The ids in the form they were given."""
        return self.ids.view(len(self), -1) if self._even else list(self.ids.split(list(self.counts)))

    @property
    def kernel(self) -> tuple[int, ...]:
        """Pixels of a tubelet, (t, h, w), or (h, w) of images."""
        return tuple(self.pixels.shape[2:])

    @property
    def grid(self) -> tuple[int, ...]:
        """Tubelets of a whole clip along each axis of ``size``."""
        return tuple(length // part for length, part in zip(self.size, self.kernel, strict=True))

    @property
    def device(self) -> torch.device:
        """Where the pixels are."""
        return self.pixels.device

    def __len__(self) -> int:
        """B."""
        return len(self.counts)

    def __getitem__(self, clip: int | slice) -> Tubelets:
        """One clip, or neighbours, as a batch: views. Raises ``IndexError`` past the last clip, as sequences do."""
        if not isinstance(clip, slice) and not -len(self) <= clip < len(self):
            raise IndexError(f"clip: wanted one of {len(self)}, got {clip}")
        first, last, step = (clip if isinstance(clip, slice) else slice(clip, clip + 1 or None)).indices(len(self))
        if step != 1 or last <= first:
            raise ValueError(f"clip: wanted a range of at least one clip of {len(self)}, without a step, got {clip}")
        starts = [0, *accumulate(self.counts)]
        rows = slice(starts[first], starts[last])
        return self._of(self.pixels[rows], self.ids[rows], self.counts[first:last], self.size, self._even)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Tubelets:
        """The same on a device."""
        pixels, ids = (part.to(device, non_blocking=non_blocking) for part in (self.pixels, self.ids))
        return self._of(pixels, ids, self.counts, self.size, self._even)

    def pin_memory(self) -> Tubelets:
        """The same in page-locked memory; loaders with ``pin_memory=True`` call it."""
        return self._of(self.pixels.pin_memory(), self.ids.pin_memory(), self.counts, self.size, self._even)

    def __repr__(self) -> str:
        """In short."""
        kind = str(self.pixels.dtype).removeprefix("torch.")
        return f"Tubelets({len(self)} clips of {self.size}, {sum(self.counts)} tubelets of {self.kernel}, {kind})"


def embed_tubelets(
    tubelets: Tubelets, embed: PatchEmbed | TubesEmbed, image: PatchEmbed | None, cls: str | None
) -> tuple[Tensor, Tokens]:
    """Rows (M, D) of kept tubelets, and where they stand: as ``Clips.embed`` of the whole clips, to the bit.

    Args:
        tubelets: kept ones of clips or images.
        embed: what clips go through.
        image: what images go through, or None.
        cls: which sequences will have a CLS token.

    Raises:
        ValueError: an encoder of tubes, no image path, other channels or kernels, more slots than positions.
    """
    still = len(tubelets.size) == 2
    embedder = image if still else embed
    if isinstance(embedder, TubesEmbed):
        raise ValueError("video: wanted clips for attention='tubes', whose tubelets have several shapes, got Tubelets")
    if embedder is None:
        raise ValueError("video: wanted Tubelets of clips, got of images, and the configuration has images=False")
    if tubelets.pixels.shape[1:] != embedder.weight.shape[1:]:
        wanted, got = tuple(embedder.weight.shape[1:]), tuple(tubelets.pixels.shape[1:])
        raise ValueError(f"video: wanted Tubelets of shape {wanted} like the encoder's weight, got {got}")
    size = (1, *tubelets.size) if still else tubelets.size
    views = embedder.views(size)
    tokens = Tokens([views] * len(tubelets), tubelets.counts, tubelets.ids, tubelets.device, cls=cls)
    return embedder.tubelets(tubelets.pixels, tubelets.ids, views), tokens


def _numbers(name: str, value: Sequence[int], count: int) -> tuple[int, ...]:
    value = tuple(value)
    if len(value) != count or not all(isinstance(v, int) and v >= 1 for v in value):
        raise ValueError(f"{name}: wanted {count} whole numbers of at least 1, got {value}")
    return value


def _one_batch(video: Tensor | Sequence[Tensor]) -> Tensor:
    if not isinstance(video, Tensor):
        clips = list(video)
        if not clips or len({tuple(clip.shape) for clip in clips}) > 1:
            raise ValueError(f"video: wanted clips of one shape, got {[tuple(clip.shape) for clip in clips]}")
        video = torch.stack(clips)
    require_tensor("video", video, (4, 5), (torch.uint8, *FLOATING))
    if video.shape[0] == 0:
        raise ValueError(f"video: wanted at least one clip, got shape {tuple(video.shape)}")
    return video


def _flat(keep: Keep, like: Tensor | None) -> tuple[Tensor, tuple[int, ...], bool]:
    """Ids (M,), how many each clip has, and whether they came as (B, K)."""
    keep = keep.ids if isinstance(keep, Kept) else keep
    even = isinstance(keep, Tensor)
    if not even and (not isinstance(keep, list | tuple) or not keep):
        raise ValueError(f"keep: wanted (B, K) ids or a list of (K,) tensors, got {type(keep).__name__}")
    for ids in (keep,) if even else keep:
        require_tensor("keep", ids, (2 if even else 1,), (torch.int64,), like)
    counts = (keep.shape[1],) * keep.shape[0] if even else tuple(ids.shape[0] for ids in keep)
    ids = keep.reshape(-1) if even else torch.cat(list(keep))
    if ids.shape[0] == 0:
        raise ValueError("keep: wanted at least one tubelet, got none")
    if like is not None and ids.shape[0] != like.shape[0]:
        raise ValueError(f"keep: wanted {like.shape[0]} ids, one a tubelet of pixels, got {ids.shape[0]}")
    return ids, counts, even


def require_ascending(ids: Tensor, counts: Sequence[int], total: int) -> None:
    """Raise ``ValueError`` unless the ids (M,) of each clip are within ``0..total-1`` and ascend; on a CPU."""
    outside = (ids < 0) | (ids >= total)
    if outside.any():
        raise ValueError(f"keep: wanted ids in 0..{total - 1}, got {int(ids[outside][0])}")
    clip = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    rows = ids + clip * total
    falls = rows.diff() <= 0
    if falls.any():
        at = int(falls.nonzero()[0])
        raise ValueError(
            f"keep: wanted ids that ascend in each clip, got {ids[at : at + 2].tolist()} in clip {clip[at]}"
        )


def _cut(video: Tensor, kernel: Sequence[int], grid: Sequence[int], ids: Tensor, counts: Sequence[int]) -> Tensor:
    """Tubelets (M, C, *kernel) of a batch, in memory as (M, *kernel, C)."""
    axes = len(kernel)
    tiles = video.movedim(1, -1)
    for axis, part in reversed(list(enumerate(kernel, 1))):
        tiles = tiles.unflatten(axis, (-1, part))
    # (B, T', t, H', h, W', w, C) with the places in front of the pixels.
    tiles = tiles.permute(0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), -1)
    repeats = torch.tensor(counts)
    clip = torch.arange(len(counts)).repeat_interleave(repeats, output_size=ids.shape[0])
    place, rest = [], ids
    for length in reversed(grid):
        place.insert(0, rest % length)
        rest = rest // length
    return tiles[(clip.to(ids.device, non_blocking=True), *place)].movedim(-1, 1)
