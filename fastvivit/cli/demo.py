"""``fastvivit demo``: the whole recipe in miniature, on real video files that it makes itself."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated

import tyro

from fastvivit.cli.demo_report import summary, write_demo_report
from fastvivit.cli.demo_runs import MODELS, Outcome, Trained, demo_config, run_searches
from fastvivit.data import ClipDataset, write_digits
from fastvivit.pretrained import load_pretrained
from fastvivit.search import embed_files, find_videos
from fastvivit.train import evaluate, fit, read_metrics
from fastvivit.train.loop import MODEL

_MARK = "videos"


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Make videos of moving digits, train two small models on them, score them, search with them, and report.

    One model sees a clip as a whole, the other one frame at a time. It takes a few minutes on two CPU cores.

    Attributes:
        out: the folder for videos, runs and the report; an earlier demo in it is replaced.
        videos: a folder of your own clips to search, too.
        seed: of the videos and the models.
        clips: training clips; there are a quarter as many held-out ones, at most 256.
        steps: training steps of the video-first model; the other one takes half of them, of twice the tokens.
    """

    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("fastvivit-demo")
    videos: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    seed: int = 0
    clips: int = 1600
    steps: int = 400


def run(arguments: list[str]) -> int:
    """Run it, and say where the report is."""
    options = tyro.cli(Demo, prog="fastvivit demo", args=arguments)
    for module in ("av", "transformers", "matplotlib"):
        import_module(module)  # said before any work is done, and not after minutes of it
    if options.clips < 16 or options.clips % 8:
        raise ValueError(f"clips: wanted a multiple of 8, at least 16, got {options.clips}")
    if options.seed < 0:
        raise ValueError(f"seed: wanted at least 0, got {options.seed}")
    own = [] if options.videos is None else find_videos([options.videos])
    out = _make_room(options.out)
    began = time.monotonic()
    train, heldout = _write_videos(out, options)
    trained = {}
    for number, kind in enumerate(MODELS, 1):
        print(f"{number + 1}/4  training the {kind} model: {MODELS[kind]}", flush=True)
        config = demo_config(kind, train, heldout, clips=options.clips, steps=options.steps, seed=options.seed)
        folder = fit(config, out / kind, name=kind)
        model = load_pretrained(folder / MODEL)
        dataset = ClipDataset(heldout, frames=config.model.frames, fps=config.data.fps, size=config.model.size)
        trained[kind] = Trained(
            model=model,
            config=config,
            evaluation=evaluate(model, dataset, batch_size=config.batch_size),
            metrics=read_metrics(folder),
        )
    print("4/4  searching the held-out files by text", flush=True)
    outcome = Outcome(
        trained=trained,
        searches=run_searches(trained, dataset.entries),
        own=_search_own(trained["video-first"], own),
        dataset=dataset,
        seconds=time.monotonic() - began,
    )
    page = write_demo_report(out, outcome)
    print(f"\n{summary(outcome)}\n\nreport: {page}")
    return 0


def _make_room(out: Path) -> Path:
    """An empty folder, or one that only an earlier demo has filled; its parts are removed."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: wanted a folder, {out} is a file")
    if out.is_dir() and any(out.iterdir()) and not (out / _MARK).is_dir():
        raise ValueError(f"out: wanted a new folder, or that of an earlier demo; {out} holds something else")
    for part in (*MODELS, _MARK):
        if (out / part).is_dir():
            shutil.rmtree(out / part)
    (out / _MARK).mkdir(parents=True)
    return out


def _write_videos(out: Path, options: Demo) -> tuple[Path, Path]:
    began, heldout_clips = time.monotonic(), min(options.clips // 4, 256)
    train = write_digits(out / _MARK / "train", options.clips, seed=options.seed)
    heldout = write_digits(out / _MARK / "heldout", heldout_clips, seed=options.seed, split="heldout")
    seconds = time.monotonic() - began
    print(
        f"1/4  wrote {options.clips} + {heldout_clips} mp4 files of moving digits in {seconds:.0f} s",
        flush=True,
    )
    return train, heldout


def _search_own(trained: Trained, files: list[Path]):
    """Windows of the user's clips; files that can't be read are left out and said."""
    if not files:
        return None
    fps = trained.config.data.fps
    return embed_files(
        trained.model, files, fps=fps, broken=lambda file, error: print(f"left out: {error}", flush=True)
    )
