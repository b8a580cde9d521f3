"""``fastvivit demo``: the whole recipe in miniature, on real video files that it makes itself."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Annotated

import tyro

from fastvivit.cli.demo_captions import CAPTIONERS, run_captions
from fastvivit.cli.demo_captions_report import captions_summary, write_captions_report
from fastvivit.cli.demo_folder import make_room, write_videos
from fastvivit.cli.demo_report import summary, write_demo_report
from fastvivit.cli.demo_runs import FRAMES, MODELS, SHORT, demo_config, run_searches
from fastvivit.cli.demo_stages import IMAGES, LONG, STAGES, stage_configs, view_long, write_stage_files
from fastvivit.search import find_videos
from fastvivit.train import fit

_PARTS = 6
# Searches forgive an encoder more than captions do.
_SEARCH = {"clips": 1600, "steps": 400}
_CAPTIONS = {"clips": 3200, "steps": 1200, "caption_steps": 300}


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Make videos of moving digits, train small models on them, score them, search with them, and report.

    One model sees a clip as a whole, and is made in the paper's stages: images, then clips beside images, then clips of
    four times the length. Another one sees a clip one frame at a time. It takes a few minutes on two CPU cores. With
    --captions both are trained from scratch and for longer, and then each is given words: nothing is searched, clips
    are described.

    Attributes:
        out: the folder for videos, runs and the report; an earlier demo in it is replaced.
        captions: teach both models to describe clips, instead of searching with them.
        videos: a folder of your own clips to search, too.
        seed: of the videos and the models.
        clips: training clips; there are a quarter as many held-out ones, at most 256. 1600, with captions 3200.
        steps: training steps of the video-first model on short clips; the frame-level one takes half of them, of
            twice the tokens, images and long clips take less than that. 400, with captions 1200.
        caption_steps: with captions, training steps of what connects a model with a language model. 300.
    """

    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("fastvivit-demo")
    captions: bool = False
    videos: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    seed: int = 0
    clips: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    steps: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    caption_steps: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None


def run(arguments: list[str]) -> int:
    """Run it, and say where the report is."""
    options = tyro.cli(Demo, prog="fastvivit demo", args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
    for module in ("av", "transformers", "matplotlib"):
        import_module(module)  # said before any work is done, and not after minutes of it
    options = _checked(options)
    own = [] if options.videos is None else find_videos([options.videos])
    out = make_room(options.out, (*MODELS, *CAPTIONERS.values(), IMAGES, LONG))
    page, table = (_captions if options.captions else _searches)(out, options, own)
    print(f"\n{table}\n\nreport: {page}")
    return 0


def _searches(out: Path, options: Demo, own: Sequence[Path]) -> tuple[Path, str]:
    """The stages, the frame-level model, and searches; the report and its table."""
    began = time.monotonic()
    train, heldout = write_videos(out, options.clips, options.seed, _PARTS)
    files = write_stage_files(out, options.clips, options.seed)
    short, frames = (
        demo_config(kind, train, heldout, clips=options.clips, steps=options.steps, seed=options.seed)
        for kind in MODELS
    )
    stages = stage_configs(out, short, files, clips=options.clips)
    configs = {IMAGES: stages[IMAGES], SHORT: stages[SHORT], FRAMES: frames, LONG: stages[LONG]}
    for number, (name, config) in enumerate(configs.items(), 2):
        print(f"{number}/{_PARTS}  training the {name} model: {STAGES.get(name) or MODELS[name]}", flush=True)
        fit(config, out / name, name=name)
    print(f"{_PARTS}/{_PARTS}  searching the held-out files by text", flush=True)
    long = view_long(out, configs[LONG])
    outcome = run_searches(out, {kind: configs[kind] for kind in MODELS}, own)
    seconds = time.monotonic() - began
    return write_demo_report(out, outcome, long), f"{summary(outcome, long)}\n\nall of it took {seconds:.0f} s"


def _captions(out: Path, options: Demo, own: Sequence[Path]) -> tuple[Path, str]:
    """Both models, and words for them; the report and its table."""
    began = time.monotonic()
    train, heldout = write_videos(out, options.clips, options.seed, _PARTS)
    configs = {}
    for number, kind in enumerate(MODELS, 2):
        print(f"{number}/{_PARTS}  training the {kind} model: {MODELS[kind]}", flush=True)
        configs[kind] = demo_config(kind, train, heldout, clips=options.clips, steps=options.steps, seed=options.seed)
        fit(configs[kind], out / kind, name=kind)
    outcome = run_captions(out, configs, options.caption_steps, began)
    return write_captions_report(out, outcome), captions_summary(outcome)


def _checked(options: Demo) -> Demo:
    """The options with their defaults filled in. Raises ``ValueError`` where they don't fit."""
    if not options.captions and options.caption_steps is not None:
        raise ValueError(f"caption-steps: wanted with --captions only, got {options.caption_steps}")
    if options.captions and options.videos is not None:
        raise ValueError("videos: wanted without --captions, whose models know no words for your clips")
    defaults = _CAPTIONS if options.captions else _SEARCH
    filled = replace(options, **{name: value for name, value in defaults.items() if getattr(options, name) is None})
    if filled.clips < 16 or filled.clips % 8:
        raise ValueError(f"clips: wanted a multiple of 8, at least 16, got {filled.clips}")
    if filled.seed < 0:
        raise ValueError(f"seed: wanted at least 0, got {filled.seed}")
    for name in ("steps", "caption_steps") if filled.captions else ("steps",):
        if getattr(filled, name) < 1:
            raise ValueError(f"{name.replace('_', '-')}: wanted at least 1, got {getattr(filled, name)}")
    return filled
