"""``fastvivit embed``: video files to vectors."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fastvivit.cli.models import clip_fps, load_model
from fastvivit.search import embed_files, find_videos, save_index


@dataclass(frozen=True, kw_only=True)
class Embed:
    """Encode video files to vectors: one for every window as long as the model's clips.

    Attributes:
        paths: video files, and folders to look for them in.
        model: the folder of a run, a checkpoint or a saved model.
        out: the safetensors file to write: vectors, starts, and the files' names.
        fps: pictures per second; by default what the model was trained with.
        batch_size: windows encoded at a time.
    """

    paths: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="PATH ...")]
    model: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    fps: Annotated[float | None, tyro.conf.arg(metavar="FPS")] = None
    batch_size: int = 8


def run(arguments: list[str]) -> int:
    """Encode, and say how much."""
    options = tyro.cli(Embed, prog="fastvivit embed", args=arguments)
    if options.batch_size < 1:
        raise ValueError(f"batch-size: wanted at least 1, got {options.batch_size}")
    files = find_videos(options.paths)
    model, known = load_model(options.model)
    broken = []

    def note(file: Path, error: ValueError) -> None:
        broken.append(file)
        print(f"left out: {error}", file=sys.stderr)

    fps = clip_fps(options.fps, known)
    index = embed_files(model, files, fps=fps, batch_size=options.batch_size, broken=note)
    save_index(index, options.out)
    read = len(files) - len(broken)
    print(f"{len(index.files)} vectors of {index.vectors.shape[1]} from {read} files: {options.out}")
    if broken:
        print(f"{len(broken)} files could not be read", file=sys.stderr)
    return 0
