"""``fastvivit search``: clips by text."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from fastvivit.cli.models import clip_fps, load_model
from fastvivit.search import Index, embed_files, find_videos, fingerprint, load_index, search


@dataclass(frozen=True, kw_only=True)
class Search:
    """Find clips by text, in video files or in vectors that `fastvivit embed` wrote.

    Attributes:
        query: what to look for.
        paths: video files, and folders to look for them in.
        model: the folder of a run, a checkpoint or a saved model.
        index: vectors to search instead of files.
        top: how many matches to show.
        fps: pictures per second of files; by default what the model was trained with.
        json: print a JSON list.
    """

    query: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="QUERY")]
    paths: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="PATH ...")] = ()
    model: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    index: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    top: int = 5
    fps: Annotated[float | None, tyro.conf.arg(metavar="FPS")] = None
    json: bool = False


def run(arguments: list[str]) -> int:
    """Search, and print the matches, best first."""
    options = tyro.cli(Search, prog="fastvivit search", args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
    if bool(options.paths) == (options.index is not None):
        raise ValueError("wanted either video files (or folders) or --index, got " + _got(options))
    if options.top < 1:
        raise ValueError(f"top: wanted at least 1, got {options.top}")
    if not options.query.strip():
        raise ValueError("query: wanted words, got none")
    model, known = load_model(options.model)
    if options.index is not None:
        index = load_index(options.index)
        if index.model != fingerprint(model):
            raise ValueError(f"index: wanted vectors of the model in {options.model}, {options.index} is another's")
    else:
        index = _embed(options, model, known)
    with torch.no_grad():
        matches = search(index, model.encode_text([options.query])[0], options.top)
    if options.json:
        print(json.dumps([asdict(match) for match in matches], indent=2))
        return 0
    print("score  from     to       file")
    for match in matches:
        print(f"{match.score:5.2f}  {match.start:6.1f}s  {match.end:6.1f}s  {match.file}")
    return 0


def _embed(options: Search, model, known: float | None) -> Index:
    return embed_files(
        model,
        find_videos(options.paths),
        fps=clip_fps(options.fps, known),
        broken=lambda file, error: print(f"left out: {error}", file=sys.stderr),
    )


def _got(options: Search) -> str:
    return "both" if options.paths else "neither"
