"""The first sections of a run's report: what it was, what it took, how it went by step."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import MISSING, asdict, fields
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import fastvivit
from fastvivit.models import ViViTConfig, plain
from fastvivit.train.config import TrainConfig
from fastvivit.train.journal import best_score
from fastvivit.train.page import Page
from fastvivit.train.presets import TABLE_4
from fastvivit.train.say import show_duration, show_number
from fastvivit.train.starvation import LIMIT, remedy, usable_cores
from fastvivit.train.tables import DataConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fastvivit.train.stages.base import Stage

# Field, title, what its numbers are multiplied by.
_CURVES = (
    ("loss", "loss", 1),
    ("lr", "learning rate", 1),
    ("grad_norm", "norm of the gradient, before clipping", 1),
    ("clips_per_second", "clips/s", 1),
    ("tokens_per_second", "tokens/s", 1),
    ("mfu", "MFU, %", 100),
    ("data_wait", "share of the step spent waiting for data, %", 100),
    ("memory_peak", "memory at most, GB", 1e-9),
)
_NOT_SETTINGS = ("stage", "steps", "data.train", "data.sources", "data.heldout")
# A run's first steps warm up kernels, caches and loaders.
_COLD = 5


def summary_table(page: Page, stage: Stage, rows: Sequence[dict[str, Any]], broken: int, device: torch.device) -> None:
    """What a run was and took, in lines; a word on its data where they starved the device.

    Args:
        page: to write to.
        stage: the run.
        rows: of ``read_metrics``.
        broken: files that could not be read.
        device: of the run.
    """
    config, ranks = stage.config, stage.ranks.size
    lines = [
        ["stage", config.stage],
        ["started from", "scratch" if config.start is None else config.start],
        ["steps", f"{config.steps} of {config.batch_size} samples"],
        ["masked", ", ".join(f"{mask.ratio:.0%}" for mask in config.masks) + " of the tokens of a clip"],
        ["time in steps", show_duration(sum(row["seconds"] for row in rows))],
    ]
    warm = [row for row in (rows[_COLD:] or rows) if "tokens_per_second" in row]
    if warm:
        middle = {name: median(row[name] for row in warm) for name in ("clips_per_second", "tokens_per_second")}
        speed = (
            f"{show_number(middle['clips_per_second'])} clips/s, {show_number(middle['tokens_per_second'])} tokens/s"
        )
        lines.append(["speed, median step", speed])
        if mfus := [row["mfu"] for row in warm if "mfu" in row]:
            lines.append(["MFU, median step", f"{median(mfus):.1%}"])
        lines.append(["waiting for data", f"{_over_time(warm, 'data_wait'):.1%} of the time"])
        lines.append(["memory at most", f"{max(row['memory_peak'] for row in warm) / 1e9:.2f} GB"])
    name, _ = stage.headline
    if (best := best_score(rows, stage.headline)) is not None:
        scored = sum(f"eval_{name}" in row for row in rows)
        lines.append(
            [f"best held-out {name}", f"{best[f'eval_{name}']:.4g} at step {best['step']}, taken {scored} times"]
        )
    lines += [
        ["files that could not be read", str(broken)],
        ["device", device_name(device) + (f", {ranks} processes" if ranks > 1 else "")],
        ["versions", versions()],
    ]
    page.table(["", "this run"], lines)
    if warm and _over_time(warm, "data_wait") > LIMIT:
        wait, busy = _over_time(warm, "data_wait"), _over_time(warm, "data_busy")
        said = remedy(wait, busy, config.data.workers, usable_cores())
        page.text(f"{said[0].upper()}{said[1:]}.")


def sources_table(page: Page, stage: Stage) -> None:
    """What was trained on and scored on."""
    pairs = zip(stage.config.sources, stage.sources, strict=True)
    lines = [
        [source.path, dataset.kind, f"{len(dataset)}", f"{source.batch}", f"{source.weight:g}"]
        for source, dataset in pairs
    ]
    if stage.heldout is not None:
        lines.append([f"{stage.config.data.heldout} (held out)", stage.heldout.kind, f"{len(stage.heldout)}", "", ""])
    page.table(["data", "kind", "entries", "of a batch", "weight"], lines)


def settings_table(page: Page, config: TrainConfig) -> None:
    """Settings that are not those of the stage's preset."""
    lines = changed_settings(config)
    if lines:
        page.table(["setting", "this run", "preset"], lines)
    else:
        page.text("All settings are the preset's.")


def changed_settings(config: TrainConfig) -> list[tuple[str, str, str]]:
    """(Name, value, the preset's) of every setting that differs from the preset of the run's stage."""
    own, preset = config.to_dict(), _defaults(TrainConfig)
    for name, value in TABLE_4[config.stage].items():
        preset[name] = preset.get(name, {}) | value if isinstance(value, dict) else value
    preset["data"] = plain(asdict(DataConfig(train="")))
    if own["model"] is not None:
        preset["model"] = plain(asdict(ViViTConfig()))
    found, usual = _flat(own), _flat(preset)
    return [
        (name, _shown(value), _shown(usual.get(name)))
        for name, value in found.items()
        if name not in _NOT_SETTINGS and value != usual.get(name)
    ]


def metric_curves(rows: Sequence[dict[str, Any]]) -> Figure:
    """Small plots of what every step noted, two beside each other; fields that no step has are left out."""
    from matplotlib.figure import Figure

    shown = [curve for curve in _CURVES if any(curve[0] in row for row in rows)]
    height = -(-len(shown) // 2)
    figure = Figure(figsize=(9.5, 2.1 * height), layout="constrained")
    places = figure.subplots(height, 2, squeeze=False).flatten()
    for axes, (field, title, times) in zip(places, shown, strict=False):
        points = [(row["step"], times * row[field]) for row in rows if field in row]
        draw_curve(axes, *zip(*points, strict=True))
        axes.set_title(title, fontsize=10, loc="left")
        if field == "data_wait":
            axes.set_ylim(0, 100)
        elif field not in ("loss", "lr"):
            axes.set_ylim(0, 1.1 * max(value for _, value in points) or 1)
    for axes in places[len(shown) :]:
        axes.axis("off")
    for axes in places[max(0, len(shown) - 2) : len(shown)]:
        axes.set_xlabel("step")
    return figure


def score_curve(rows: Sequence[dict[str, Any]], headline: tuple[str, bool]) -> Figure:
    """The held-out score by step, its best marked."""
    from matplotlib.figure import Figure

    field = f"eval_{headline[0]}"
    points = [(row["step"], row[field]) for row in rows if field in row]
    best = best_score(rows, headline)
    figure = Figure(figsize=(9.5, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*points, strict=True), marker="o", markersize=4)
    axes.plot([best["step"]], [best[field]], "o", markersize=10, fillstyle="none", color="C1")
    axes.set_xlabel("step")
    axes.set_ylabel(headline[0])
    axes.grid(alpha=0.3)
    return figure


def draw_curve(axes: Any, steps: Sequence[float], values: Sequence[float], color: str = "C0", name: str = "") -> None:
    """Every step pale, a running mean over it."""
    window = max(1, len(values) // 50)
    smooth = np.convolve(values, np.ones(window) / window, mode="valid")
    axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
    axes.plot(steps[window - 1 :], smooth, color=color, label=name)
    axes.grid(alpha=0.3)


def scores_table(page: Page, rows: Sequence[dict[str, Any]]) -> None:
    """Every held-out score of every time it was taken; of many times the last dozen."""
    scored = [row for row in rows if any(name.startswith("eval_") for name in row)]
    names = [name for name in scored[-1] if name.startswith("eval_")]
    shared = [name for name in names if all(name in row for row in scored)]
    lines = [[str(row["step"]), *(f"{row[name]:.4g}" for name in shared)] for row in scored[-12:]]
    page.table(["step", *(name.removeprefix("eval_") for name in shared)], lines)


def device_name(device: torch.device) -> str:
    """What a device is called."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {os.cpu_count()} cores)"


def versions() -> str:
    """Of Python and of the libraries that a run's numbers depend on."""
    found = [f"fastvivit {fastvivit.__version__}", f"torch {torch.__version__}"]
    for name in ("transformers", "av"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join([*found, f"Python {platform.python_version()}"])


def _defaults(kind: type) -> dict[str, Any]:
    """The defaults of a dataclass's fields as plain JSON values; those without one are left out."""
    found = {}
    for field in fields(kind):
        if field.default is not MISSING:
            found[field.name] = field.default
        elif field.default_factory is not MISSING:
            found[field.name] = asdict(field.default_factory())
    return plain(found)


def _over_time(rows: Sequence[dict[str, Any]], field: str) -> float:
    total = sum(row["seconds"] for row in rows)
    return sum(row[field] * row["seconds"] for row in rows if field in row) / total


def _flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found = {}
    for name, value in nested.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def _shown(value: Any) -> str:
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
