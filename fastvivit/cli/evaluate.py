"""``fastvivit evaluate``: the paper's scores of a model on a manifest, and its systems side by side."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fastvivit.cli.models import load_captioner, load_chat, load_model
from fastvivit.data import Entry, one_a_clip, read_manifest
from fastvivit.evaluation import SETUPS, Aggregated, Asking, Clip, Comparison, Direct, Reading, Selected
from fastvivit.evaluation import compare as compare_systems
from fastvivit.evaluation import retrieval as score_retrieval
from fastvivit.evaluation.setups import CHOICE
from fastvivit.modular import CaptionAggregator, FrameSelector
from fastvivit.train.progress import progress

_SYSTEMS = ("long", "selector", "aggregator")
_TEXTS = {"captioning": 32, "summaries": 128, "multiple_choice": 32}


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Score a model on the clips of a manifest, and the paper's other systems on the same clips.

    "long" gives the model the whole clip. "selector" gives it the --k frames that --scorer finds nearest to the
    question, the --query, or else to what the aggregator (with --llm) or the model itself says of the clip.
    "aggregator" has it caption segments, which the chat model --llm merges.

    Attributes:
        manifest: JSONL or CSV; `fastvivit data import` writes them.
        model: the folder of a captioner, or for retrieval of a dual encoder: a run, a checkpoint or a saved model.
        task: what to score; retrieval takes a dual encoder. By default what --setup says, else captioning.
        setup: a benchmark as the paper evaluates it: sets task, frames, fps and mask.
        systems: some of long, selector and aggregator, with commas.
        short: the folder of another captioner for selector and aggregator, a 16-frame model in the paper.
        scorer: the folder of the dual encoder that scores frames.
        llm: the folder of a transformers chat model and its tokenizer.
        k: frames that the selector keeps.
        seconds: length of the aggregator's segments.
        oracle: cut at the entries' field `segments` instead.
        query: what the selector looks for where nothing is asked.
        prompt: what a captioner's texts begin after; by default what each model was trained with.
        frames: the most pictures of a clip; by default what --setup says, else what the model takes.
        fps: pictures per second; by default what --setup says, else what the model was trained with, else 1.
        mask: share of the video's tokens to drop; 0.3 by default, as in the paper. Retrieval drops none.
        size: pixels of a clip's sides, where --model and --short differ; by default what the models take.
        normalise: how an option's log-likelihood counts.
        max_new_tokens: the longest text: by default 32, for summaries 128.
        batch_size: clips at a time.
        workers: processes that decode.
        seed: of the masks.
        limit: only the first clips of the manifest.
        predictions: a JSONL file to write what was said of each clip.
        json: print JSON.
    """

    manifest: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MANIFEST")]
    model: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    task: Literal["retrieval", "captioning", "summaries", "multiple_choice"] | None = None
    setup: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    systems: Annotated[str, tyro.conf.arg(metavar="NAMES")] = "long"
    short: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    scorer: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    llm: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    k: int = 16
    seconds: float = 16.0
    oracle: bool = False
    query: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    prompt: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    frames: Annotated[int | None, tyro.conf.arg(metavar="FRAMES")] = None
    fps: Annotated[float | None, tyro.conf.arg(metavar="FPS")] = None
    mask: Annotated[float | None, tyro.conf.arg(metavar="RATIO")] = None
    size: Annotated[int | None, tyro.conf.arg(metavar="PIXELS")] = None
    normalise: Literal["sum", "tokens"] = "sum"
    max_new_tokens: Annotated[int | None, tyro.conf.arg(metavar="TOKENS")] = None
    batch_size: int = 8
    workers: int = 0
    seed: int = 0
    limit: Annotated[int | None, tyro.conf.arg(metavar="CLIPS")] = None
    predictions: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    json: bool = False


def run(arguments: list[str]) -> int:
    """Evaluate, and print the scores."""
    options = tyro.cli(Evaluate, prog="fastvivit evaluate", args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
    setup = None
    if options.setup is not None:
        if options.setup not in SETUPS:
            raise ValueError(f"setup: wanted one of {', '.join(SETUPS)}, got {options.setup!r}")
        setup = SETUPS[options.setup]
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"limit: wanted at least 1, got {options.limit}")
    task = options.task or (setup.task if setup else "captioning")
    names = _names(options, task)
    entries = read_manifest(options.manifest)
    entries = _first(entries if task == CHOICE else one_a_clip(entries), options.limit)
    if task == "retrieval":
        model, known = load_model(options.model)
        with _reading(options, setup, known, len(entries)) as reading:
            found = score_retrieval(model, entries, reading=reading, predictions=options.predictions)
        comparison = Comparison(task=task, scores={"dual encoder": found}, broken=[])
    else:
        systems, known = _systems(options, names)
        mask = options.mask if options.mask is not None else (setup.mask_ratio if setup else 0.3)
        with _reading(options, setup, known, len(entries)) as reading:
            comparison = _compare(options, task, systems, entries, mask, reading)
    if options.json:
        print(json.dumps(asdict(comparison), indent=2))
        return 0
    print(comparison.table())
    for video, reason in comparison.broken:
        print(f"left out: {video}: {reason}", file=sys.stderr)
    return 0


def _first(entries: Sequence[Entry], limit: int | None) -> list[Entry]:
    """The first entries, without the twins that are not among them."""
    chosen = entries[:limit]
    files = {entry.video for entry in chosen}
    return [entry if entry.twin in files else replace(entry, twin=None) for entry in chosen]


def _names(options: Evaluate, task: str) -> list[str]:
    """The systems asked for; refuses folders that they miss, before anything is loaded."""
    names = list(dict.fromkeys(name.strip() for name in options.systems.split(",")))
    if unknown := [name for name in names if name not in _SYSTEMS]:
        raise ValueError(f"systems: wanted some of {', '.join(_SYSTEMS)}, got {unknown[0]!r}")
    if task == "retrieval" and names != ["long"]:
        raise ValueError("systems: wanted long alone for retrieval, which has one system, got " + options.systems)
    if "selector" in names and options.scorer is None:
        raise ValueError("scorer: wanted the folder of a dual encoder for the selector, got none")
    if "aggregator" in names and options.llm is None:
        raise ValueError("llm: wanted the folder of a chat model for the aggregator, got none")
    if options.oracle and "aggregator" not in names:
        raise ValueError(
            "oracle: wanted the aggregator among --systems, which alone has segments, got " + options.systems
        )
    if "long" not in names and options.frames is None and options.setup is None:
        raise ValueError(
            "frames: wanted --frames or --setup, as these systems alone do not say how much of a video to read"
        )
    return names


def _systems(options: Evaluate, names: list[str]) -> tuple[dict[str, Any], float | None]:
    captioner, known = load_captioner(options.model)
    short, known_short = (captioner, known) if options.short is None else load_captioner(options.short)
    prompt, prompt_short = (one.prompt if options.prompt is None else options.prompt for one in (known, known_short))
    found: dict[str, Any] = {"long": Direct(captioner, prompt)}
    if options.llm is not None:
        aggregator = CaptionAggregator(short, load_chat(options.llm), options.seconds, prompt=prompt_short)
        found["aggregator"] = Aggregated(aggregator, oracle=options.oracle)
    if "selector" in names:
        selector = FrameSelector.from_model(load_model(options.scorer)[0], options.k)
        query = _query(options, found.get("aggregator", Direct(short, prompt_short)))
        found["selector"] = Selected(selector, short, query, prompt_short)
    return {name: found[name] for name in names}, known.fps


def _query(options: Evaluate, describer: Any) -> Callable[[Clip, Asking], str]:
    """What the selector looks for in a clip."""
    if options.query is not None:
        return lambda clip, asking: options.query
    return lambda clip, asking: describer.describe([clip], asking)[0]


@contextmanager
def _reading(options: Evaluate, setup: Any, known: float | None, clips: int) -> Iterator[Reading]:
    """How clips are read, with a bar on a terminal."""
    frames, fps = options.frames, options.fps
    if setup is not None:
        frames = setup.frames if frames is None else frames
        fps = setup.fps if fps is None else fps
    fps = next(rate for rate in (fps, known, 1.0) if rate is not None)
    with progress(clips, "evaluate", "clip") as advance:
        yield Reading(
            frames=frames,
            fps=fps,
            size=options.size,
            batch_size=options.batch_size,
            workers=options.workers,
            progress=advance,
        )


def _compare(
    options: Evaluate, task: str, systems: dict[str, Any], entries: Sequence[Entry], mask: float, reading: Reading
) -> Comparison:
    return compare_systems(
        systems,
        entries,
        task,
        mask_ratio=mask,
        seed=options.seed,
        normalise=options.normalise,
        max_new_tokens=_TEXTS[task] if options.max_new_tokens is None else options.max_new_tokens,
        reading=reading,
        predictions=options.predictions,
    )
