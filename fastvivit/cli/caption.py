"""``fastvivit caption``: video files in words."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fastvivit.cli.models import clip_fps, load_captioner
from fastvivit.describe import Description, describe_files
from fastvivit.search import find_videos
from fastvivit.train.progress import progress


@dataclass(frozen=True, kw_only=True)
class Caption:
    """Describe video files: a line for each, or for every so many seconds of it.

    A line is the file and the text, or file, start, end and text, with tabs between. Of a file, or a window of it, as
    many pictures are looked at as the model takes, from its beginning on.

    Attributes:
        paths: video files, and folders to look for them in.
        model: the folder of a run, a checkpoint or a saved model.
        prompt: what each text goes on from; by default what the model was trained with.
        max_new_tokens: most tokens of a text.
        beams: of beam search; 1 is greedy.
        mask_ratio: share of a clip's tokens to drop; the paper drops 0.3.
        seed: of what is dropped.
        fps: pictures per second; by default what the model was trained with.
        every: seconds from a window to the next.
        batch_size: windows described at a time.
        json: print a JSON list.
    """

    paths: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="PATH ...")]
    model: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    prompt: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    max_new_tokens: int = 32
    beams: int = 1
    mask_ratio: float = 0.0
    seed: int = 0
    fps: Annotated[float | None, tyro.conf.arg(metavar="FPS")] = None
    every: Annotated[float | None, tyro.conf.arg(metavar="SECONDS")] = None
    batch_size: int = 8
    json: bool = False


def run(arguments: list[str]) -> int:
    """Describe, and print."""
    options = tyro.cli(Caption, prog="fastvivit caption", args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
    for name in ("max_new_tokens", "beams", "batch_size"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name.replace('_', '-')}: wanted at least 1, got {getattr(options, name)}")
    if not 0 <= options.mask_ratio < 1:
        raise ValueError(f"mask-ratio: wanted 0 <= ratio < 1, got {options.mask_ratio}")
    if options.every is not None and not options.every > 0:
        raise ValueError(f"every: wanted seconds above 0, got {options.every}")
    files = find_videos(options.paths)
    model, known = load_captioner(options.model)
    rows: list[Description] = []
    # On a terminal the lines themselves show how far it is.
    with progress(len(files), "captions", "file", quiet=sys.stdout.isatty() and not options.json) as advance:
        for row in describe_files(
            model,
            files,
            fps=clip_fps(options.fps, known.fps),
            every=options.every,
            prompt=known.prompt if options.prompt is None else options.prompt,
            max_new_tokens=options.max_new_tokens,
            beams=options.beams,
            mask_ratio=options.mask_ratio,
            seed=options.seed,
            batch_size=options.batch_size,
            broken=lambda file, error: print(f"left out: {error}", file=sys.stderr),
            read=lambda file: advance(1),
        ):
            rows.append(row)
            if not options.json:
                print(_line(row, windows=options.every is not None), flush=True)
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=2, ensure_ascii=False))
    return 0


def _line(row: Description, *, windows: bool) -> str:
    text = " ".join(row.text.split())
    return f"{row.file}\t{row.start:.1f}\t{row.end:.1f}\t{text}" if windows else f"{row.file}\t{text}"
