"""Cached vision: a frozen encoder runs once a clip and mask, and training reads what it made."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastvivit._folders import file_written_whole
from fastvivit.caption import Vision
from fastvivit.caption.files import fingerprint
from fastvivit.caption.store import VisionStore
from fastvivit.data import ClipDataset, Entry, VideoError, collate, sample_seed
from fastvivit.data.dataset import Failure, stack_clips
from fastvivit.modules.vivit import ViViT
from fastvivit.train.caption_tables import DTYPES
from fastvivit.train.checks import one_of
from fastvivit.train.hashes import FileHashes
from fastvivit.train.progress import progress
from fastvivit.train.step import autocast, draw_masks, in_bfloat16
from fastvivit.train.tables import MaskConfig

_FORMAT = 1  # raised when the same settings come to other numbers
SETTINGS, HASHES = "settings.json", "files.jsonl"


class VisionCache:
    """What a frozen encoder makes of clips, on the disk, for any number of epochs and runs.

    A clip is known by the hash of its file's content, its start, end and stream; everything else that decides the
    numbers (the encoder's weights to the bit, frames, fps and size, masks and their seed, dtype and precision) names a
    folder of its own, with a ``settings.json``. So nothing old is ever taken for new, moved files are found again, and
    what nobody uses any more can be removed. ::

        cache = VisionCache("vision", captioner.video, fps=1.0, mask=MaskConfig(ratio=0.3))
        failures = cache.build(entries, masks=4)
        dataset = VisionDataset(cache, entries, masks=4, failures=failures)
        loss = captioner(cache.get(entries[0]), [entries[0].captions[0]])

    Args:
        folder: where; several encoders and settings may share it.
        encoder: the encoder, on its device.
        frames: pictures a clip; None is the encoder's.
        fps: pictures per second.
        size: pixels (h, w), or of the square; None is the encoder's.
        over_time: average over time, as ``VideoCaptioner.encode_video`` with the captioner's ``over_time``.
        mask: which tokens are dropped.
        seed: of the masks. Which mask a clip gets depends on the clip itself, not on where it stands in a manifest.
        dtype: of what is kept.
        precision: "auto" runs the encoder in bfloat16 on a GPU, "float32" nowhere.
        shard_bytes: size of the files, and what waits in memory.

    Attributes:
        settings: all that names the folder.
        store: the ``VisionStore`` of these settings.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        encoder: ViViT,
        *,
        frames: int | None = None,
        fps: float = 1.0,
        size: int | tuple[int, int] | None = None,
        over_time: bool = True,
        mask: MaskConfig | None = None,
        seed: int = 0,
        dtype: str = "float32",
        precision: str = "auto",
        shard_bytes: int = 64 << 20,
    ) -> None:
        if not isinstance(encoder, ViViT):
            raise ValueError(f"encoder: wanted a ViViT, got {type(encoder).__name__}")
        one_of("dtype", dtype, DTYPES)
        config = encoder.config
        # The grids that masks are drawn on are those of clips, not of what the encoder was made for.
        clip = config.replace(frames=frames or config.frames, size=config.size if size is None else size)
        self.encoder, self.over_time, self.seed = encoder, over_time, seed
        self.frames, self.fps, self.size, self.views = clip.frames, fps, clip.size, clip.views
        self.mask = MaskConfig(ratio=0.3) if mask is None else mask
        self.precision, self.dtype = precision, getattr(torch, dtype)
        self.settings: dict[str, Any] = {
            "format": _FORMAT,
            "weights": fingerprint(encoder),
            "encoder": config.to_dict(),
            "tuning": encoder.tuning,
            "frames": self.frames,
            "fps": float(fps),
            "size": list(self.size),
            "over_time": over_time,
            "mask": {"ratio": self.mask.ratio, "strategy": self.mask.strategy},
            "seed": seed,
            "dtype": dtype,
            "precision": "bfloat16" if in_bfloat16(precision, self._device) else "float32",
        }
        folder = Path(folder)
        self.store = VisionStore(folder / _hash(self.settings), shard_bytes=shard_bytes)
        self.hashes = FileHashes(folder / HASHES)

    def clip(self, entry: Entry) -> str:
        """What a clip is known by. Raises ``OSError`` where its file can't be read."""
        return _hash([self.hashes(Path(entry.video)), entry.start, entry.end, entry.stream])

    def get(self, entry: Entry, mask: int = 0) -> Vision:
        """One clip under its mask of this number.

        Raises:
            OSError: its file can't be read.
            ValueError: it has not been built.
        """
        name = f"{self.clip(entry)}-{mask}"
        if name not in self.store:
            raise ValueError(f"entry: wanted a clip that build() has made under mask {mask}, got {entry.video}")
        return self.store.get(name)

    def build(
        self,
        entries: Sequence[Entry],
        masks: int = 1,
        *,
        batch_size: int = 8,
        workers: int = 0,
        quiet: bool = False,
    ) -> list[Failure]:
        """Encode what is not there yet; a killed build goes on where it was when it is called again.

        Args:
            entries: clips.
            masks: different masks of each, numbered from 0.
            batch_size: clips encoded at a time.
            workers: processes that decode; 0 is this one.
            quiet: show no bar.

        Returns:
            The entries that can't be read.
        """
        for name, value, least in (("masks", masks, 1), ("batch_size", batch_size, 1), ("workers", workers, 0)):
            if value < least:
                raise ValueError(f"{name}: wanted at least {least}, got {value}")
        clips: list[str] = []
        unread: dict[int, str] = {}
        missing: dict[str, Entry] = {}
        with progress(len(entries), "hashing files", "clip", quiet=quiet) as advance:
            for index, entry in enumerate(entries):
                try:
                    clip = self.clip(entry)
                except OSError as error:
                    clip, unread[index] = "", f"{entry.video}: {error.strerror}"
                clips.append(clip)
                if clip and any(f"{clip}-{mask}" not in self.store for mask in range(masks)):
                    missing[clip] = entry
                advance(1)
        broken: dict[str, str] = {}
        if missing:
            with file_written_whole(self.store.folder / SETTINGS) as scratch:
                scratch.write_text(json.dumps(self.settings, indent=2) + "\n", encoding="utf-8")
            self.store.remove_scratch()
            broken = self._encode_all(missing, masks, batch_size, workers, quiet)
        reasons = [unread.get(index) or broken.get(clip) for index, clip in enumerate(clips)]
        return [
            Failure(index, str(entries[index].video), reason)
            for index, reason in enumerate(reasons)
            if reason is not None
        ]

    @torch.no_grad()
    def _encode_all(
        self, missing: dict[str, Entry], masks: int, batch_size: int, workers: int, quiet: bool
    ) -> dict[str, str]:
        """Encode clips by what they are known by; why some can't be."""
        broken: dict[str, str] = {}
        training = self.encoder.training
        self.encoder.eval()
        loader = DataLoader(
            _Decoded(ClipDataset(list(missing.values()), frames=self.frames, fps=self.fps, size=self.size,
                                 on_error="raise")),
            batch_size=None, num_workers=workers, generator=torch.Generator(),
        )  # fmt: skip
        videos: dict[str, Tensor] = {}

        def encode() -> None:
            made: dict[str, Vision] = {}
            for mask in range(masks):
                made |= self._encode(videos, mask)
            self.store.update(made)
            videos.clear()

        try:
            with progress(len(missing), "encoding clips", "clip", quiet=quiet) as advance:
                for clip, found in zip(missing, loader, strict=True):
                    if isinstance(found, str):
                        broken[clip] = found
                    else:
                        videos[clip] = found
                    # Batches of clips that can be read, each kept whole: a build that goes on after a kill makes
                    # the batches that it would have made, and on a GPU the bits of a clip depend on its batch.
                    if len(videos) == batch_size:
                        encode()
                    advance(1)
                encode()
        finally:
            self.encoder.train(training)
            self.store.flush()
        self.store.refresh()  # what a run trains on is what it finds when it is resumed, whoever wrote it first
        return broken

    def _encode(self, videos: dict[str, Tensor], mask: int) -> dict[str, Vision]:
        """Those of some clips under one mask that are not there, by name."""
        clips = [clip for clip in videos if f"{clip}-{mask}" not in self.store]
        if not clips:
            return {}
        keep = draw_masks(torch.tensor([self.mask_seed(clip, mask) for clip in clips]), self.views, self.mask)
        video = stack_clips([videos[clip] for clip in clips])
        with autocast(self.precision, self._device):
            out = self.encoder(video.to(self._device), keep=None if keep is None else keep.to(self._device))
        vision = Vision.of(out, over_time=self.over_time)
        vision = Vision(vision.tokens.to(self.dtype), vision.mask).to("cpu")
        return {f"{clip}-{mask}": vision[place] for place, clip in enumerate(clips)}

    def mask_seed(self, clip: str, mask: int) -> int:
        """The seed of a clip's mask of this number; ``clip`` is what it is known by."""
        return sample_seed(self.seed, mask, int(clip, 16), "vision")

    @property
    def _device(self) -> torch.device:
        return next(self.encoder.parameters()).device


class VisionDataset(ClipDataset):
    """A ``ClipDataset`` whose items have a ``Vision`` of one clip as their ``video``, out of a cache.

    An epoch takes one of a clip's masks, drawn from (seed, epoch, index). Broken files are replaced as there.

    Args:
        cache: in which the entries have been built.
        entries: clips.
        masks: how many masks of a clip to draw from.
        seed: the run's seed.
        failures: what ``build`` returned.

    Attributes:
        known: the same; no item finds any more.

    Raises:
        ValueError: no masks; an entry that is neither in the cache nor among the failures.
    """

    def __init__(
        self,
        cache: VisionCache,
        entries: Sequence[Entry],
        *,
        masks: int = 1,
        seed: int = 0,
        failures: Sequence[Failure] = (),
    ) -> None:
        if masks < 1:
            raise ValueError(f"masks: wanted at least 1, got {masks}")
        super().__init__(entries, frames=cache.frames, fps=cache.fps, size=cache.size, seed=seed)
        self.record_failures(failures)
        self.known = tuple(failures)
        self.store, self.masks = cache.store, masks
        clips = ["" if self._broken[index] else cache.clip(entry) for index, entry in enumerate(entries)]
        for index, clip in enumerate(clips):
            if clip and any(f"{clip}-{mask}" not in self.store for mask in range(masks)):
                raise ValueError(f"entries: wanted clips that build() has made, got {entries[index].video}")
        # One array, which forked workers share: a list of strings they would copy, touch by touch.
        self._clips = np.array(clips, "S")

    def _read(self, index: int, epoch: int, found: list[Failure]) -> Vision | None:
        if self._broken[index]:
            return None
        return self.store.get(f"{self._clips[index].decode()}-{self.mask_of(index, epoch)}")

    def mask_of(self, index: int, epoch: int) -> int:
        """Number of the mask that an entry has in an epoch."""
        return sample_seed(self.seed, epoch, index, "which mask") % self.masks

    @staticmethod
    def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A batch as ``fastvivit.data.collate`` makes it, its ``video`` one ``Vision``."""
        return collate(items, Vision.stack)


class _Decoded(Dataset[Tensor | str]):
    """Clips, or why they can't be read."""

    def __init__(self, clips: ClipDataset) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Tensor | str:
        try:
            return self.clips[index]["video"]
        except (VideoError, OSError) as error:
            return str(error)


def _hash(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()
