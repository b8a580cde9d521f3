"""The report of a run: what it was, its curves, its scores, frames of the best matches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastvivit.data import ClipDataset
from fastvivit.data.dataset import Failure
from fastvivit.train.evaluate import Evaluation
from fastvivit.train.journal import read_metrics
from fastvivit.train.page import Page, Strip
from fastvivit.train.summary import (
    draw_curve,
    metric_curves,
    score_curve,
    scores_table,
    settings_table,
    sources_table,
    summary_table,
)

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
_MATCHES, _FRAMES, _UNREAD = 3, 16, 200


def write_report(
    run: Path, stage: Stage, evaluation: Scored | None, broken: Sequence[Failure], device: torch.device
) -> Path:
    """Write ``report.html`` into a run's folder; without matplotlib it has tables alone, and says so.

    Args:
        run: the folder.
        stage: the run.
        evaluation: its last scores, or None.
        broken: training files that could not be read.
        device: of the run.

    Returns:
        The page.
    """
    config, heldout = stage.config, stage.heldout
    rows = read_metrics(run)
    unread = [(failure.video, failure.reason) for failure in broken]
    unread += list(heldout.failures.items()) if heldout is not None else []
    page = Page(f"Training run {run.absolute().name}")
    summary_table(page, stage, rows, len(unread), device)
    drawable = find_spec("matplotlib") is not None
    if not drawable:
        page.text('No pictures: matplotlib is not installed (pip install "fastvivit[train]").')
    elif rows:
        page.heading("By step")
        page.plot(metric_curves(rows), "Every step pale, a running mean over it")
    times = sum(f"eval_{stage.headline[0]}" in row for row in rows)
    if times > 1:
        page.heading("Held-out scores by step")
        if drawable:
            page.plot(score_curve(rows, stage.headline), f"{stage.headline[0]} by step, the best in a ring")
        scores_table(page, rows)
    if evaluation is not None:
        stage.report(page, evaluation, drawable=drawable)
    page.heading("Data")
    sources_table(page, stage)
    page.heading("Files that could not be read")
    if unread:
        page.text(f"{len(unread)} of them." if len(unread) <= _UNREAD else f"The first {_UNREAD} of {len(unread)}.")
        page.table(["file", "reason"], unread[:_UNREAD])
    else:
        page.text("None.")
    page.heading(f"Settings that differ from the preset of stage {config.stage!r}")
    settings_table(page, config)
    page.heading("All settings")
    page.code(json.dumps(config.to_dict(), indent=2))
    return page.write(run / REPORT)


def curves(runs: dict[str, list[dict[str, Any]]], field: str) -> Figure:
    """One field of the metrics of some runs by step: every step pale, a running mean over it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 3))
    axes = figure.subplots()
    for number, (name, rows) in enumerate(runs.items()):
        draw_curve(axes, [row["step"] for row in rows], [row[field] for row in rows], f"C{number}", name)
    axes.set_xlabel("step")
    axes.set_ylabel({"lr": "learning rate"}.get(field, field))
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
