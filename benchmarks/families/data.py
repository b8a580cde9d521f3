"""Clips on their way into a step: kept tubelets out of packed shards beside decoding mp4, and their share of a step."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import fastvivit as fv
from fastvivit.data import ClipDataset, Entry, PackedDataset, pack, write_clip

from ..case import OURS, Bench, Case, Claim, Contestant, Options
from .encoder import training_step

DECODED, WHOLE, SCATTERED = "mp4 decoded", "packed, all tubelets", "packed, single tubelets at random"
STEP = "ViT-B training step"
MASK = 0.75
# Of a cold file; whole groups read the kept share, 25 %.
MOST_BYTES = 0.3
_FPS = 25


def data_cases(options: Options) -> list[Case]:
    """A masked batch from the disk, and its share of a training step of ViT-B."""
    tiny = {"frames": 4, "size": 64, "width": 64, "depth": 2, "heads": 2, "ff": 128} if options.quick else {}
    config, clips = fv.ViViTConfig.base(images=False, **tiny), 2
    kept = config.tokens - int(config.tokens * MASK)
    size = f"{config.frames}x{config.size[0]}x{config.size[1]}"
    layer = f"{clips} clips of {size} at 1 FPS, {kept} of {config.tokens} tubelets each"
    share = "at most 5 % of the step"
    given = {
        "layer": layer,
        "flops": 0,
        "bytes": 2 * clips * kept * 3 * int(np.prod(config.tubelet)),
        "clock": "wall",
        "facts": {"model": "ViT-B", "frames": config.frames, "mask": 75, "tokens": kept},
    }
    return [
        Case(
            name="data/masked batch from the disk, 16 frames",
            counts="reading and collating in this process, files in the page cache",
            build=lambda: _batch(config, clips),
            claims=(Claim(text="at least 3 x as fast as decoding mp4", peers=(DECODED,), at_least=3.0, times=True),),
            seconds=10.0,
            **given,
        ),
        Case(
            name="data/masked batch beside its step, 16 frames",
            counts="reading and collating, in no worker; the step: forward, backward, no optimiser",
            build=lambda: _beside(config, clips, options),
            # Of a GPU's step, workers read ahead of it.
            claims=() if options.gpu else (Claim(text=share, peers=(STEP,), at_most=0.05, times=True),),
            seconds=10.0 if options.gpu else 40.0,
            min_rounds=3,
            **given,
        ),
    ]


class _Clips:
    """Films in a folder that goes with this object, and the same packed."""

    def __init__(self, config: fv.ViViTConfig, clips: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fastvivit-data-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self.indices = range(clips)
        entries = [Entry(video=self._film(config, i), captions=("a film",)) for i in self.indices]
        look = {"frames": config.frames, "fps": 1.0, "size": config.size}
        pack(entries, self.folder / "pack", **look, tubelet=config.tubelet)
        self.decoded = ClipDataset(entries, **look, on_error="raise")
        self.masked = self.packed(MASK)

    def packed(self, mask_ratio: float, strategy: str = "grouped") -> PackedDataset:
        """The data set of packed clips."""
        return PackedDataset(self.folder / "pack", mask_ratio=mask_ratio, strategy=strategy)

    def batch(self, data: ClipDataset) -> dict[str, object]:
        """One batch of all clips."""
        return data.collate([data[i] for i in self.indices])

    def share_read(self) -> float | None:
        """Of a cold shard, the share that a masked batch reads; None where the file system tells nothing."""
        shard = self.folder / "pack" / "shard-00000.bin"
        if _bytes_read() is None or not hasattr(os, "posix_fadvise"):
            return None
        found = []
        for _ in range(3):  # the process may read something else meanwhile: a module, a page of its own code
            with shard.open("rb") as stream:
                os.fsync(stream.fileno())
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            before = _bytes_read()
            self.batch(self.packed(MASK))
            found.append(_bytes_read() - before)
        return min(found) / shard.stat().st_size or None

    def _film(self, config: fv.ViViTConfig, seed: int) -> Path:
        """A camera that pans over a picture of smooth noise."""
        height, width = config.size
        rng = np.random.default_rng(seed)
        noise = torch.from_numpy(rng.random((1, 3, 32, 48), np.float32))
        scene = torch.nn.functional.interpolate(noise, size=(2 * height, 3 * width), mode="bicubic").clamp(0, 1)
        scene = (scene[0].permute(1, 2, 0) * 255).byte().numpy()
        pictures = config.frames * _FPS
        rows, columns = (np.arange(pictures) * room // pictures for room in (height, 2 * width))
        film = np.stack([scene[r : r + height, c : c + width] for r, c in zip(rows, columns, strict=True)])
        return write_clip(self.folder / f"{seed}.mp4", film, fps=_FPS, crf=23)


def _bytes_read() -> int | None:
    """Bytes that this process has had fetched from a disk."""
    file = Path("/proc/self/io")
    if not file.is_file():
        return None
    return int(next(line for line in file.read_text().splitlines() if line.startswith("read_bytes")).split()[1])


def _alone() -> Bench | None:
    if find_spec("av") is not None:
        return None
    # Without films there is nothing to pack.
    return Bench(contestants={OURS: Contestant(call=lambda: None)}, gate=lambda: "PyAV is not installed")


def _batch(config: fv.ViViTConfig, clips: int) -> Bench:
    if (alone := _alone()) is not None:
        return alone
    films = _Clips(config, clips)
    share = films.share_read()
    told = (
        "bytes of a cold file not to be told here" if share is None else f"{100 * share:.1f} % of a cold file's bytes"
    )
    whole, scattered = films.packed(0.0), films.packed(MASK, "random")
    return Bench(
        contestants={
            OURS: Contestant(call=lambda: films.batch(films.masked)["video"].pixels, note=told),
            DECODED: Contestant(call=lambda: films.batch(films.decoded)["video"], note="whole clips", same=False),
            WHOLE: Contestant(call=lambda: films.batch(whole)["video"].pixels, same=False),
            SCATTERED: Contestant(call=lambda: films.batch(scattered)["video"].pixels, same=False),
        },
        gate=lambda: _gate(films, share),
    )


def _gate(films: _Clips, share: float | None) -> str | None:
    """The kept tubelets to the bit, and no more bytes of the disk than is claimed."""
    found, clips = films.batch(films.masked)["video"], films.batch(films.decoded)["video"]
    if not torch.equal(found.pixels, fv.Tubelets.from_clips(clips, found.keep, found.kernel).pixels):
        return "other pixels than those of the decoded clips"
    if share is not None and share > MOST_BYTES:
        return f"{100 * share:.1f} % of a cold file's bytes were read"
    return None


def _beside(config: fv.ViViTConfig, clips: int, options: Options) -> Bench:
    if (alone := _alone()) is not None:
        return alone
    films = _Clips(config, clips)
    torch.manual_seed(0)
    model = fv.ViViT(config).train().to(options.device, options.dtype)
    video = films.batch(films.masked)["video"].to(options.device)
    features: Callable[[], Tensor] = lambda: model(video).last_hidden_state
    contestants = {
        OURS: Contestant(call=lambda: films.batch(films.masked)["video"].pixels, note="one core"),
        STEP: Contestant(call=training_step(features, model), note="from Tubelets on the device", same=False),
    }
    return Bench(contestants=contestants, gate=lambda: _gate(films, None))
