"""Finding clips by text: files cut into windows, a vector for each, nearest first."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastvivit.data import VideoError, read_clip
from fastvivit.data.container import SUFFIXES
from fastvivit.modules.dual import VideoTextModel

_CHUNK = 1024  # frames decoded at a time: bounds the memory that a long film takes


@dataclass(frozen=True, kw_only=True)
class Index:
    """Vectors of windows.

    Attributes:
        files: the file of each window.
        starts: where it begins, in seconds.
        vectors: (n, dim) float32 unit vectors.
        seconds: the length of a window.
        model: a fingerprint of the model that made them.
    """

    files: list[str]
    starts: list[float]
    vectors: Tensor
    seconds: float
    model: str


@dataclass(frozen=True, kw_only=True)
class Match:
    """A window that was found.

    Attributes:
        file: the video.
        start: seconds at which the window begins.
        end: seconds at which it ends.
        score: cosine of its vector and the query's.
    """

    file: str
    start: float
    end: float
    score: float


def find_videos(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The files among ``paths`` as they are, and the videos below the folders among them, by suffix, sorted.

    Raises:
        ValueError: a path that doesn't exist, or nothing found.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            below = (file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            found += sorted(below)
        elif path.is_file():
            found.append(path)
        else:
            raise ValueError(f"paths: wanted a video file or a folder, no such file: {path}")
    if not found:
        raise ValueError(f"paths: wanted video files ({', '.join(SUFFIXES)}), found none")
    return list(dict.fromkeys(found))


def read_windows(path: Path, frames: int, fps: float, size: int | tuple[int, int]) -> Iterator[tuple[float, Tensor]]:
    """A file from its beginning to its end as (start, clip (C, T, H, W)) of ``frames / fps`` seconds each.

    The last window repeats its last picture; one that is less than half full is left out, unless it is the
    only one.

    Raises:
        VideoError: a file that can't be read.
    """
    many = max(1, _CHUNK // frames)
    chunk = 0
    while True:
        start = chunk * many * frames / fps
        try:
            video = read_clip(path, many * frames, fps, size, start, pad=False)
        except VideoError as error:
            if chunk and str(error).startswith("start:"):  # the film ended with the chunk before
                return
            raise
        for place in range(0, video.shape[1], frames):
            clip = video[:, place : place + frames]
            missing = frames - clip.shape[1]
            if missing > frames // 2 and (chunk or place):
                return
            yield start + place / fps, pad_clip(clip, frames)
        if video.shape[1] < many * frames:
            return
        chunk += 1


def pad_clip(clip: Tensor, frames: int) -> Tensor:
    """A clip (C, T, H, W) of at most ``frames`` pictures with its last one repeated to fill them."""
    missing = frames - clip.shape[1]
    return torch.cat([clip, clip[:, -1:].expand(-1, missing, -1, -1)], dim=1) if missing else clip


@torch.no_grad()
def embed_files(
    model: VideoTextModel,
    files: Sequence[Path],
    *,
    fps: float,
    batch_size: int = 8,
    broken: Callable[[Path, VideoError], Any] | None = None,
) -> Index:
    """Encode every window of some files, unmasked.

    Args:
        model: in eval mode.
        files: videos.
        fps: pictures per second, as in training.
        batch_size: windows encoded at a time.
        broken: called for each file that can't be read, which is then left out; None raises its error.

    Raises:
        ValueError: a batch of nothing; no file can be read.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: wanted at least 1, got {batch_size}")
    config, device = model.video.config, model.logit_scale.device
    names: list[str] = []
    starts: list[float] = []
    vectors: list[Tensor] = []
    waiting: list[Tensor] = []

    def encode() -> None:
        if waiting:
            vectors.append(model.encode_video(torch.stack(waiting).to(device)).float().cpu())
            waiting.clear()

    for file in files:
        try:
            for start, clip in read_windows(file, config.frames, fps, config.size):
                names.append(str(file))
                starts.append(start)
                waiting.append(clip)
                if len(waiting) == batch_size:
                    encode()
        except VideoError as error:
            if broken is None:
                raise
            broken(file, error)
    encode()
    if not vectors:
        raise ValueError(f"files: wanted at least one video that can be read, got none of {len(files)}")
    return Index(
        files=names,
        starts=starts,
        vectors=torch.cat(vectors),
        seconds=config.frames / fps,
        model=fingerprint(model),
    )


def search(index: Index, query: Tensor, top: int = 5) -> list[Match]:
    """The ``top`` windows nearest to a query (dim,), best first."""
    scores = index.vectors @ query.float().cpu()
    best = scores.topk(min(top, len(scores))).indices.tolist()
    return [
        Match(
            file=index.files[i],
            start=index.starts[i],
            end=index.starts[i] + index.seconds,
            score=float(scores[i]),
        )
        for i in best
    ]


def fingerprint(model: VideoTextModel) -> str:
    """Tells models apart: a hash of the projections, which every training step changes."""
    digest = hashlib.blake2b(digest_size=8)
    for projection in (model.video_proj, model.text_proj):
        digest.update(projection.weight.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_index(index: Index, path: str | os.PathLike[str]) -> Path:
    """Write an index as a safetensors file: ``vectors``, ``starts``, the files' names in its metadata."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"files": json.dumps(index.files), "seconds": repr(index.seconds), "model": index.model}
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    starts = torch.tensor(index.starts, dtype=torch.float64)
    save_file({"vectors": index.vectors, "starts": starts}, partial, metadata=metadata)
    partial.replace(path)
    return path


def load_index(path: str | os.PathLike[str]) -> Index:
    """Read what ``save_index`` wrote.

    Raises:
        ValueError: no such file, or not an index.
    """
    if not Path(path).is_file():
        raise ValueError(f"index: wanted a file that `fastvivit embed` wrote, no such file: {path}")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            return Index(
                files=json.loads(metadata["files"]),
                starts=file.get_tensor("starts").tolist(),
                vectors=file.get_tensor("vectors"),
                seconds=float(metadata["seconds"]),
                model=metadata["model"],
            )
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise ValueError(f"index: wanted a file that `fastvivit embed` wrote, got {path}: {error}") from None
