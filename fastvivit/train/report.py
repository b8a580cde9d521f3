"""The report of a run: what it was, its curves, its scores, frames of the best matches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from fastvivit.data import ClipDataset
from fastvivit.data.dataset import Failure
from fastvivit.train.evaluate import Evaluation
from fastvivit.train.journal import read_metrics
from fastvivit.train.page import Page, Strip

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fastvivit.train.stages.base import Scored, Stage

REPORT = "report.html"
_NAMES = {
    "twin": "own caption above the twin's",
    "t2v_r1": "text → clip, R@1",
    "t2v_r5": "text → clip, R@5",
    "t2v_r10": "text → clip, R@10",
    "v2t_r1": "clip → text, R@1",
    "v2t_r5": "clip → text, R@5",
    "v2t_r10": "clip → text, R@10",
    "t2v_medr": "text → clip, median rank",
    "v2t_medr": "clip → text, median rank",
}
_MATCHES, _FRAMES = 3, 16


def write_report(run: Path, stage: Stage, evaluation: Scored | None, broken: Sequence[Failure]) -> Path:
    """Write ``report.html`` into a run's folder; without matplotlib it has no pictures, and says so.

    Args:
        run: the folder.
        stage: the run.
        evaluation: its last scores, or None.
        broken: training files that could not be read.

    Returns:
        The page.
    """
    config, heldout = stage.config, stage.heldout
    rows = read_metrics(run)
    page = Page(f"Training run {run.absolute().name}")
    seconds = sum(row["seconds"] for row in rows)
    page.text(
        f"{config.steps} steps of stage {config.stage!r}, {config.batch_size} clips each, {seconds:.0f} s in "
        f"steps; {config.mask.ratio:.0%} of the tokens of a training clip dropped before they are embedded."
    )
    drawable = find_spec("matplotlib") is not None
    if not drawable:
        page.text('No pictures: matplotlib is not installed (pip install "fastvivit[train]").')
    elif rows:
        page.heading("Curves")
        page.plot(curves({"loss": rows}, "loss"), "Loss by step")
        page.plot(curves({"learning rate": rows}, "lr"), "Learning rate by step")
    if evaluation is not None:
        stage.report(page, evaluation, drawable=drawable)
    page.heading("Files that could not be read")
    unread = [(failure.video, failure.reason) for failure in broken]
    unread += list(heldout.failures.items()) if heldout is not None else []
    if unread:
        page.table(["file", "reason"], unread)
    else:
        page.text("None.")
    page.heading("Settings")
    page.code(json.dumps(config.to_dict(), indent=2))
    return page.write(run / REPORT)


def curves(runs: dict[str, list[dict[str, Any]]], field: str) -> Figure:
    """One field of the metrics of some runs by step: every step pale, a running mean over it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 3))
    axes = figure.subplots()
    for number, (name, rows) in enumerate(runs.items()):
        steps, values = [row["step"] for row in rows], [row[field] for row in rows]
        window = max(1, len(values) // 50)
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        axes.plot(steps, values, color=f"C{number}", alpha=0.25, linewidth=0.8)
        axes.plot(steps[window - 1 :], smooth, color=f"C{number}", label=name)
    axes.set_xlabel("step")
    axes.set_ylabel({"lr": "learning rate"}.get(field, field))
    axes.grid(alpha=0.3)
    if len(runs) > 1:
        axes.legend()
    return figure


def score_table(page: Page, evaluations: dict[str, Evaluation]) -> None:
    """Scores of some runs side by side, beside what guessing would score."""
    first = next(iter(evaluations.values()))
    rows = []
    for field, name in _NAMES.items():
        if field not in first.scores:
            continue
        unit = "" if field.endswith("medr") else " %"
        values = [f"{evaluation.scores[field]:.1f}{unit}" for evaluation in evaluations.values()]
        chance = f"{first.chance[field]:.1f} %" if field in first.chance else f"{(len(first.entries) + 1) / 2:.1f}"
        rows.append([name, *values, chance])
    page.table(["score", *evaluations, "chance"], rows)


def best_matches(page: Page, evaluation: Evaluation, dataset: ClipDataset, query: int) -> None:
    """The clips nearest to one caption, with their frames."""
    page.heading(f"“{evaluation.captions[query]}”", 3)
    scores = evaluation.similarity[query]
    for rank, place in enumerate(scores.topk(min(_MATCHES, len(scores))).indices.tolist(), 1):
        entry = evaluation.entries[place]
        right = "the right clip" if place == evaluation.owners[query] else dataset.entries[entry].captions[0]
        name = Path(dataset.entries[entry].video).name
        page.strip(
            Strip(
                frames=some_frames(dataset.clip(entry)),
                caption=f"{rank}. {name}, {scores[place]:.2f}: {right}",
            )
        )


def some_frames(video: Tensor) -> np.ndarray:
    """Up to 16 frames of a clip (C, T, H, W), or an image (C, H, W): uint8 (n, h, w, 3), sides up to 128."""
    video = video.unsqueeze(1) if video.dim() == 3 else video
    chosen = np.linspace(0, video.shape[1] - 1, min(_FRAMES, video.shape[1])).round().astype(int)
    thin = -(-max(video.shape[2:]) // 128)
    return video[:, chosen, ::thin, ::thin].permute(1, 2, 3, 0).numpy()
