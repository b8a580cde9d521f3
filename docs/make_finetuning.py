"""Writes a run on real clips into docs/finetuning.md: ``python docs/make_finetuning.py``. A test binds the two.

The run is ``docs/finetuning_report.json``, which ``docs/run_finetuning.py`` leaves.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE, REPORT, PICTURE = HERE / "finetuning.md", HERE / "finetuning_report.json", HERE / "pictures" / "finetuning.png"
BEGIN, END = "<!-- written by make_finetuning.py: {} -->\n", "<!-- end -->\n"
STAGES = {"short": "image to video", "long": "short to long"}
MEAN = 10  # steps over which losses are averaged
_MODELS = {
    "untrained": ("short", "DINOv2-S inflated beside MiniLM, nothing trained"),
    "short": ("short", "after image to video"),
    "stretched": ("long", "the same, positions stretched, no further training"),
    "long": ("long", "after short to long"),
}


def scan(report: dict[str, Any]) -> str:
    """What the scan said."""
    return _said(report["said"]["scan short"])


def plan(report: dict[str, Any]) -> str:
    """What the plans of both configs said: the first as it is, of the second its peak."""
    second = report["said"]["plan long"]
    fits = next(line for line in second["said"] if line.startswith("with "))
    step = next(line for line in second["said"] if " a step, " in line)
    clip = next(line for line in second["said"] if line.startswith("clips of "))
    return (
        _said(report["said"]["plan short"])
        + f"`finetune_long.toml`: {clip}; predicted {step.strip()}; {fits}. All of these are predictions.\n"
    )


def run(report: dict[str, Any]) -> str:
    """What the run came to."""
    about, resumed, counts = report["provenance"], report["resumed"], report["clips"]
    dirty = ", with uncommitted changes" if about["dirty"] else ""
    seconds = {name: report["frames"][name] // report["fps"] for name in STAGES}
    lines = [
        f"`docs/finetuning_report.json`: {about['device']}, {about['threads']} threads, torch {about['torch']}, "
        f"transformers {about['transformers']}, commit {about['commit']}{dirty}. The whole chain took "
        f"{report['seconds'] / 60:.0f} minutes on a machine that did other things as well.",
        "",
        f"| clips: trained on + held out | {' | '.join(f'pieces of {seconds[name]} s' for name in STAGES)} |",
        "| --- | --- | --- |",
    ]
    for file in counts["short"]:
        cells = [" + ".join(map(str, counts[name].get(file, [0, 0]))) for name in STAGES]
        lines.append(f"| {file} | {' | '.join(cells)} |")
    lines.append("")
    for name, stage in STAGES.items():
        steps = report["metrics"][name]
        losses = [row["loss"] for row in steps]
        lines.append(
            f"- **{stage.capitalize()}**: {len(steps)} steps of {report['batch'][name]} clips of "
            f"{report['frames'][name]} frames, {_median(steps):.1f} s a step, loss {fmean(losses[:MEAN]):.2f} → "
            f"{fmean(losses[-MEAN:]):.2f}, means of the first and the last {MEAN} steps."
        )
    least = " and ".join(f"{report['floors'][name]:.2f}" for name in STAGES)
    lines += [
        f"- **The least possible**: pieces of a file share its captions, so that batches have losses of {least} at "
        "least, on average.",
        f"- **Killed and resumed**: SIGKILL after step {resumed['killed_after']}, the last checkpoint at step "
        f"{resumed['checkpoint']}. Of the {resumed['twice']} steps that were taken twice, {resumed['same']} have the "
        "same loss to the bit.",
        "",
        f"![Loss by step of both stages]({PICTURE.parent.name}/{PICTURE.name})",
        "",
        "Dotted: the least possible. Red: killed; yellow: the checkpoint that it went on from.",
        "",
        "| model | held out | text → clip, R@1 | clip → text, R@1 | chance | `cup.mp4`'s ranks by its captions |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, (length, words) in _MODELS.items():
        found = report["scores"][name]
        cells = [f"{found[score]:.0f} %" for score in ("t2v_r1", "v2t_r1")] + [f"{100 / found['clips']:.0f} %"]
        cells.append(", ".join(map(str, found["ranks"]["cup.mp4"])))
        lines.append(f"| {words} | {found['clips']} of {seconds[length]} s | {' | '.join(cells)} |")
    lines.append("")
    searches = [said for name, said in report["said"].items() if name.startswith("search ")]
    return "\n".join(lines) + "\n" + "\n".join(map(_said, searches))


def page(text: str, report: dict[str, Any]) -> str:
    """The page with what is written here in its places."""
    for name, write in (("scan", scan), ("plan", plan), ("run", run)):
        begin = BEGIN.format(name)
        head, rest = text.split(begin)
        text = head + begin + write(report) + END + rest.split(END, 1)[1]
    return text


def draw(report: dict[str, Any], target: Path) -> None:
    """The picture: the loss by step of both stages, the least that it can be, and where the run was killed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.4), layout="constrained")
    widths = [len(report["metrics"][name]) for name in STAGES]
    for axes, (name, stage) in zip(
        figure.subplots(1, 2, width_ratios=[max(width, max(widths) // 2) for width in widths]), STAGES.items(),
        strict=True,
    ):  # fmt: skip
        rows = report["metrics"][name]
        axes.plot([row["step"] for row in rows], [row["loss"] for row in rows], color="#0072b2", lw=1.2)
        axes.axhline(report["floors"][name], color="black", lw=1, ls=":")
        if name == "short":
            axes.axvline(report["resumed"]["killed_after"], color="#c1272d", lw=1)
            axes.axvline(report["resumed"]["checkpoint"], color="#e69f00", lw=1)
        axes.set(title=stage, xlabel="step", ylabel="loss", ylim=(0, None))
    figure.savefig(target, dpi=80)


def _said(said: dict[str, Any]) -> str:
    lines = [line.rstrip() for line in said["said"]]
    return "\n".join(["```text", f"$ {said['command']}", *lines, "```"]) + "\n"


def _median(rows: list[dict[str, Any]]) -> float:
    return sorted(row["seconds"] for row in rows)[len(rows) // 2]


if __name__ == "__main__":
    found = json.loads(REPORT.read_text(encoding="utf-8"))
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
    draw(found, PICTURE)
    sys.stdout.write(f"{PAGE}\n{PICTURE}\n")
