"""What the demo says of long clips."""

from __future__ import annotations

from fastvivit.cli.demo_stages import LONG, LONG_FRAMES, SHORT_FRAMES, WALK_CHANCE, LongOutcome
from fastvivit.data import read_clip
from fastvivit.train import TrainConfig
from fastvivit.train.page import Page, Strip
from fastvivit.train.report import curves, some_frames

_COLUMNS = {"motions": "moves as asked", "twin": "own above twin's", "t2v_r1": "text -> clip, R@1"}


def long_summary(long: LongOutcome) -> str:
    """The table at the end of the demo, as text."""
    title = f"on {len(long.dataset.entries)} clips of {LONG_FRAMES} frames"
    lines = [f"{title:<36}" + "".join(f"{column:>20}" for column in _COLUMNS.values())]
    lines += [f"{name:<36}" + "".join(f"{value:18.1f} %" for value in values) for name, values in _rows(long)]
    return "\n".join(lines)


def long_section(page: Page, long: LongOutcome) -> None:
    """The same as a part of the report, with a clip as both models see it."""
    config = long.config
    page.heading(f"From {SHORT_FRAMES} to {LONG_FRAMES} frames")
    page.text(
        "A long clip shows one digit that goes four ways, one after the other, and its twin has the halves swapped. "
        f"A model of {SHORT_FRAMES} frames has two bad choices: the start of the clip, which shows the first move, or "
        "every fourth frame, in which the digit comes back to where it was and seems to stand still. With its "
        f"positions stretched over {LONG_FRAMES} frames it sees all of the clip, and has never met such clips or "
        f"captions. Then stage “short_to_long” trained its last {config.tuning.layers} layers: {config.steps} steps of "
        f"{said(config)}, {config.mask.ratio:.0%} of their tokens dropped, {config.memory.chunk} clips in memory at a "
        "time, the loss over all."
    )
    page.table(
        ["model", *(column.replace("->", "→") for column in _COLUMNS.values())],
        [[name, *(f"{value:.1f} %" for value in values)] for name, values in _rows(long)],
    )
    page.plot(curves({LONG: long.metrics}, "loss"), "Loss by step of the last stage")
    entry, frames = long.dataset.entries[0], LONG_FRAMES // 4
    for name, fps in (
        ("at its full rate, the first move", config.data.fps),
        ("every fourth frame", config.data.fps / 4),
    ):
        clip = read_clip(entry.video, frames, fps, long.dataset.size)
        page.strip(Strip(frames=some_frames(clip), caption=f"{entry.captions[0]}: {name}"))


def said(config: TrainConfig) -> str:
    """The batch of a run in words."""
    if not config.data.sources:
        return f"{config.batch_size} clips"
    clips, images = (source.batch for source in config.data.sources)
    return f"{clips} clips and {images} images"


def _rows(long: LongOutcome) -> list[tuple[str, list[float]]]:
    rows = [
        (view.name, [view.motions, view.evaluation.scores["twin"], view.evaluation.scores["t2v_r1"]])
        for view in long.views
    ]
    chance = long.views[-1].evaluation.chance
    return [*rows, ("chance", [WALK_CHANCE, chance["twin"], chance["t2v_r1"]])]
