"""Pictures of a results file: ``python -m benchmarks.plots RESULTS.jsonl [--out DIR]``.

A roofline with the row moves beside it, attention's rate over sequence length, and milliseconds over the masking ratio.
A picture that a run has nothing for is not drawn.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogFormatter

from .case import OURS

Series = dict[str, list[tuple[float, float, float, float]]]

OUR_COLOUR = "#c1272d"
# Told apart by people who do not see red and green (Okabe and Ito), and by their markers.
COLOURS = ("#0072b2", "#009e73", "#e69f00", "#56b4e9", "#cc79a7", "#7f7f7f", "#000000", "#8c6bb1", "#b8860b")
MARKERS = "osD^vP*Xh"
FAMILIES = {"attention": "o", "embed": "s", "encoder": "D", "block": "^"}


def latest(lines: Iterable[dict]) -> tuple[dict, dict[str, dict]]:
    """The last ceilings, and the last right result of every case."""
    lines = list(lines)
    ceilings = [line for line in lines if line.get("kind") == "ceilings"]
    cases = {line["name"]: line for line in lines if line.get("kind") == "case" and line["gate"] == "ok"}
    if not ceilings or not cases:
        raise ValueError("records: wanted a run's ceilings and a case that was timed, got neither or one")
    return ceilings[-1], cases


def draw(lines: Iterable[dict], folder: Path) -> list[Path]:
    """Draw what the records hold into ``folder``; return the files."""
    ceilings, cases = latest(lines)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, make in (("roofline", roofline), ("attention_rate", attention_rate), ("masking", masking)):
        figure = make(ceilings, cases)
        if figure is not None:
            figure.text(0.005, 0.005, _about(ceilings), fontsize=7, color="#555555")
            drawn.append(folder / f"{name}.png")
            figure.savefig(drawn[-1], dpi=130)
    return drawn


def _about(run: dict) -> str:
    dirty = ", uncommitted changes" if run["dirty"] else ""
    quick = "QUICK RUN, tiny shapes: no figures of merit.  " if run["quick"] else ""
    return f"{quick}{run['device']}, torch {run['torch']}, commit {run['commit']}{dirty}, {str(run['date'])[:10]}"


def _figure(width: float, height: float, panels: int, title: str, ratios=None, rows: int = 1):
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0.03, 1, 0.97))
    figure.suptitle(title, fontsize=12)
    axes = figure.subplots(rows, panels, squeeze=False, width_ratios=ratios).ravel()
    for axis in axes:
        axis.grid(True, which="major", color="#dddddd", linewidth=0.7)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def roofline(ceilings: dict, cases: dict[str, dict]) -> Figure | None:
    """FLOP/s over FLOPs a byte under the two measured ceilings; the row moves, which hold no FLOPs, as bars."""
    products = {name: case for name, case in cases.items() if case["flops"] and case["bytes"]}
    moves = {name: case for name, case in cases.items() if name.startswith("rows/")}
    if not products and not moves:
        return None
    ratios = [3, 2] if products and moves else None
    title = "What the machine allows, and what is reached"
    figure, axes = _figure(12 if ratios else 7.5, 5.2, 2 if ratios else 1, title, ratios)
    if products:
        _roof(axes[0], ceilings, products)
    if moves:
        _bars(axes[-1], ceilings, moves)
    return figure


def _roof(axis, ceilings: dict, cases: dict[str, dict]) -> None:
    copy, product = ceilings["copy_bytes_per_s"], ceilings["product_flop_per_s"]
    unit, word = _unit(product)
    at = [case["flops"] / case["bytes"] for case in cases.values()]
    low, high = min(*at, product / copy) / 2, max(*at, product / copy) * 2
    top = product / unit
    axis.plot([low, product / copy, high], [low * copy / unit, top, top], color="black", lw=1.5)
    axis.text(high, top, f"product {_si(product)}FLOP/s ", ha="right", va="bottom", fontsize=8)
    middle = (low * product / copy) ** 0.5
    axis.text(middle, middle * copy / unit, f"  copy {_si(copy)}B/s", ha="left", va="top", fontsize=8)
    for name, case in cases.items():
        family = name.partition("/")[0]
        x, marker = case["flops"] / case["bytes"], FAMILIES.get(family, "o")
        rates = {n: case["flops"] / e["seconds"]["median"] / unit for n, e in case["contestants"].items()}
        ours = rates.pop(OURS)
        peers = [rate for n, rate in rates.items() if not n.startswith(OURS)]
        if peers:
            best = max(peers)
            axis.plot([x, x], [best, ours], color="#bbbbbb", lw=0.8, zorder=1)
            axis.plot(x, best, marker, mfc="white", mec="#555555", ms=6, zorder=2)
        axis.plot(x, ours, marker, color=OUR_COLOUR, ms=6, zorder=3)
    for family in dict.fromkeys(name.partition("/")[0] for name in cases):
        axis.plot([], [], FAMILIES.get(family, "o"), color=OUR_COLOUR, ms=6, label=f"{OURS}, {family}")
    axis.plot([], [], "o", mfc="white", mec="#555555", ms=6, label="fastest peer of the case")
    axis.set(xscale="log", yscale="log", xlabel="FLOPs for each byte that must move", ylabel=f"{word}FLOP/s")
    # Nothing can lie above the roof: the legend does.
    axis.set_ylim(None, top * (top / axis.get_ylim()[0]) ** 0.2)
    _plain(axis.yaxis)
    axis.legend(fontsize=8, loc="upper left", frameon=False, ncols=3)


def _bars(axis, ceilings: dict, cases: dict[str, dict]) -> None:
    copy, ticks = ceilings["copy_bytes_per_s"], []
    for place, (name, case) in enumerate(cases.items()):
        seconds = {n: e["seconds"]["median"] for n, e in case["contestants"].items()}
        peers = [value for n, value in seconds.items() if not n.startswith(OURS) and n != "inverse map alone"]
        axis.barh(place - 0.18, case["bytes"] / seconds[OURS] / 1e9, 0.34, color=OUR_COLOUR)
        if peers:
            axis.barh(place + 0.18, case["bytes"] / min(peers) / 1e9, 0.34, color="#bbbbbb")
        ticks.append(name.partition("/")[2].replace(", ", ",\n"))
    axis.axvline(copy / 1e9, color="black", lw=1.5)
    axis.text(copy / 1e9, -0.6, f"copy {_si(copy)}B/s ", ha="right", va="center", fontsize=8)
    axis.set_yticks(range(len(ticks)), ticks, fontsize=8)
    axis.set(xlabel="row moves: GB/s, each row once read and once written", ylim=(len(ticks) - 0.4, -1.3))
    handles = [Patch(color=OUR_COLOUR, label=OURS), Patch(color="#bbbbbb", label="fastest peer")]
    axis.legend(handles=handles, fontsize=8, frameon=False, loc="upper left", ncols=2)


def _unit(rate: float) -> tuple[float, str]:
    return (1e12, "T") if rate >= 1e12 else (1e9, "G")


class _PlainLog(LogFormatter):
    """0.2 and 400 where its parent would write powers of ten; the parent decides which ticks get a label."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def _plain(axis) -> None:
    for put in (axis.set_major_formatter, axis.set_minor_formatter):
        put(_PlainLog(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
    axis.set_tick_params(which="minor", labelsize=8)


def _si(value: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} "


def _collect(cases: Iterable[dict], x: str, y) -> Series:
    """By contestant: x, and the median, low and high of ``y(case, seconds)``, in order of x."""
    found = defaultdict(list)
    for case in cases:
        for name, entry in case["contestants"].items():
            values = sorted(y(case, entry["seconds"][key]) for key in ("median", "p10", "p90"))
            found[name].append((case["facts"][x], y(case, entry["seconds"]["median"]), values[0], values[-1]))
    return {name: sorted(points) for name, points in found.items()}


def _lines(axis, series: Series, styles: dict[str, tuple[str, str]]) -> None:
    for name, points in series.items():
        x, middle, low, high = zip(*points, strict=True)
        ours = name == OURS
        colour, marker = (OUR_COLOUR, "o") if ours else styles[name]
        axis.plot(x, middle, marker=marker, color=colour, lw=2.4 if ours else 1.1, ms=6 if ours else 4.5, label=name,
                  ls="--" if name.startswith(OURS) and not ours else "-", zorder=3 if ours else 2)  # fmt: skip
        axis.fill_between(x, low, high, color=colour, alpha=0.13, lw=0)


def _styles(panels: list[Series]) -> dict[str, tuple[str, str]]:
    """One colour and marker for a contestant in every panel of a figure."""
    names = dict.fromkeys(name for series in panels for name in series if name != OURS)
    return {name: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(names)}


def _legend(figure: Figure, axes) -> None:
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=8, frameon=False)


def attention_rate(ceilings: dict, cases: dict[str, dict]) -> Figure | None:
    """TFLOP/s over the tokens of a clip, a panel a direction; every contestant."""
    unit, word = _unit(ceilings["product_flop_per_s"])
    panels = {}
    for direction in ("forward", "backward", "forward + backward"):
        chosen = {}
        for case in cases.values():
            facts = case.get("facts", {})
            if case["name"].startswith("attention/") and facts.get("direction") == direction and facts.get("equal"):
                same = facts.get("clips") == 1 and facts.get("heads") == 12 and facts.get("head_dim") == 64
                if same or case["quick"]:
                    chosen[facts["tokens"]] = case
        if chosen:
            panels[direction] = _collect(chosen.values(), "tokens", lambda case, s: case["flops"] / s / unit)
    if not panels:
        return None
    figure, axes = _figure(5.2 * len(panels) + 2.3, 4.8, len(panels), "Attention of one clip, 12 heads of 64")
    styles = _styles(list(panels.values()))
    for axis, (direction, series) in zip(axes, panels.items(), strict=True):
        _lines(axis, series, styles)
        axis.axhline(ceilings["product_flop_per_s"] / unit, color="black", lw=1, ls=":", label="matrix product")
        axis.set_xscale("log", base=2)
        ticks = sorted({point[0] for points in series.values() for point in points})
        axis.set_xticks(_thin(ticks), [f"{tick:,}" for tick in _thin(ticks)], fontsize=8)
        axis.minorticks_off()
        axis.set(title=direction, xlabel="tokens", ylabel=f"{word}FLOP/s (4·d·H·L², backward 2.5 times)")
        axis.set_ylim(0, None)
    _legend(figure, axes)
    return figure


def _thin(ticks: list[int]) -> list[int]:
    """Ticks at least a factor of 1.4 apart, so that labels do not run into each other on a logarithmic axis."""
    kept: list[int] = []
    for tick in reversed(ticks):
        if not kept or tick * 1.4 <= kept[-1]:
            kept.append(tick)
    return kept[::-1]


def masking(ceilings: dict, cases: dict[str, dict]) -> Figure | None:
    """Milliseconds over the share of masked tubelets: forward of the embedding and of attention, longest clip."""
    panels = {}
    for family in ("embed", "attention"):
        by_frames = defaultdict(list)
        for case in cases.values():
            facts = case.get("facts", {})
            wanted = facts.get("direction") == "forward" and facts.get("model") == "ViT-B" and "mask" in facts
            if case["name"].startswith(f"{family}/") and wanted:
                by_frames[facts["frames"]].append(case)
        many = {frames: found for frames, found in by_frames.items() if len(found) > 1}
        if many:
            # The clip with the most ratios, of those the longest.
            frames = max(many, key=lambda frames: (len(many[frames]), frames))
            series = _collect(many[frames], "mask", lambda case, s: s * 1e3)
            panels[f"{family}, {frames} frames, forward"] = series
    if not panels:
        return None
    figure, axes = _figure(6.2 * len(panels), 6.2, len(panels), "What masking saves, ViT-B, clips of 256 x 256")
    for axis, (title, series) in zip(axes, panels.items(), strict=True):
        _lines(axis, series, _styles([series]))
        axis.set(title=title, xlabel="masked tubelets, %", ylabel="ms", yscale="log")
        _plain(axis.yaxis)
        axis.legend(fontsize=8, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.13))
    return figure


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return pictures_of(argv, "benchmarks.plots", __doc__.splitlines()[0], "fastvivit bench", draw)


def pictures_of(
    argv: list[str] | None, prog: str, about: str, writer: str, draw: Callable[[list[dict], Path], list[Path]]
) -> int:
    """The command line of a module that draws a results file; returns the exit status."""
    parser = argparse.ArgumentParser(prog=prog, description=about)
    parser.add_argument("results", type=Path, help=f"a file that {writer} wrote")
    parser.add_argument("--out", type=Path, help="folder of the pictures (default: plots beside the file)")
    given = parser.parse_args(argv)
    lines = [json.loads(line) for line in given.results.read_text(encoding="utf-8").splitlines() if line.strip()]
    for path in draw(lines, given.out or given.results.parent / "plots" / given.results.stem):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
