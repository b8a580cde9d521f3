"""The picture of a sweep: ``python -m benchmarks.sweep_plots RESULTS_sweep.jsonl [--out DIR]``.

In the manner of the paper's figures 2 to 4: what a training step keeps over the length of a clip and over the share of
it that is masked, and the tokens it stands for; a row of panels a model.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from .plots import COLOURS, MARKERS, OUR_COLOUR, _about, _figure, _plain, pictures_of
from .sweep_points import ENCODERS

# The device that section 6.1 of the paper has in mind.
BUDGET = 16e9


def latest(lines: Iterable[dict]) -> list[dict]:
    """The last row of every point that has an encoder, of the setting that the first one has."""
    rows = [line for line in lines if line.get("kind") == "sweep" and not line["error"]]
    if not rows:
        raise ValueError("records: wanted rows of a sweep, got none")
    setting = [rows[0][key] for key in ("dtype", "checkpointing", "clips")]
    rows = [row for row in rows if [row[key] for key in ("dtype", "checkpointing", "clips")] == setting]
    return list({(r["model"], r["encoder"], r["frames"], r["mask"]): r for r in rows}.values())


def draw(lines: Iterable[dict], folder: Path) -> list[Path]:
    """Draw what the records hold into ``folder``; return the files."""
    rows = latest(lines)
    folder.mkdir(parents=True, exist_ok=True)
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, axes = _figure(15.5, 4.6 * len(models) + 0.8, 3, _title(rows[0]), rows=len(models))
    for index, model in enumerate(models):
        _panels(axes[3 * index : 3 * index + 3], model, [row for row in rows if row["model"] == model])
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)
    figure.text(0.005, 0.005, _about(rows[0]), fontsize=7, color="#555555")
    target = folder / "encoders.png"
    figure.savefig(target, dpi=110)
    return [target]


def _title(row: dict) -> str:
    checkpointing = ", checkpointing" * row["checkpointing"]
    return f"What a training step keeps for its backward, batch {row['clips']}, {row['dtype']}{checkpointing}"


def _panels(axes, model: str, rows: list[dict]) -> None:
    masks = sorted({row["mask"] for row in rows})
    lengths = sorted({row["frames"] for row in rows if row["encoder"] != "tubes"} or {r["frames"] for r in rows})
    gib = lambda row: row["saved_bytes"] / 2**30
    whole, longest = [r for r in rows if r["mask"] == masks[0]], [r for r in rows if r["frames"] == lengths[-1]]
    for axis, chosen, x, y in (
        (axes[0], whole, "frames", gib),
        (axes[1], longest, "mask", gib),
        (axes[2], whole, "frames", lambda row: row["tokens"]),
    ):
        _lines(axis, chosen, x, y)
    for axis in (axes[0], axes[2]):
        axis.set_xscale("log", base=2)
        axis.set_xticks(lengths, [str(length) for length in lengths])
        axis.minorticks_off()
        axis.set_xlabel("frames of a clip")
    states = [r["weight_bytes"] + r["gradient_bytes"] + r["optimiser_bytes"] for r in rows if r["encoder"] == "joint"]
    for axis in axes[:2]:
        axis.set(yscale="log", ylabel="GiB")
        _plain(axis.yaxis)
        if states:
            axis.axhline(
                (BUDGET - max(states)) / 2**30,
                color="black",
                lw=1,
                ls=":",
                label="16 GB less weights,\ngradients, AdamW (joint)",
            )
    axes[1].set_xticks(masks)
    axes[1].set_xlabel("masked tokens, %")
    axes[2].set(yscale="log", ylabel="tokens")
    _plain(axes[2].yaxis)
    axes[0].set_title(f"ViT-{model}, {masks[0]} % masked")
    axes[1].set_title(f"ViT-{model}, {lengths[-1]} frames")
    axes[2].set_title(f"tokens of a clip, {masks[0]} % masked")


def _lines(axis, rows: list[dict], x: str, y: Callable[[dict], float]) -> None:
    for index, name in enumerate(ENCODERS):
        found = sorted((row[x], y(row)) for row in rows if row["encoder"] == name)
        if found:
            joint, hidden = name == "joint", name == "frame"
            colour, marker = (OUR_COLOUR, "o") if joint else (COLOURS[index - 1], MARKERS[index - 1])
            # With the same tubelet a frame-level encoder keeps what the joint one does: dashes let that show.
            axis.plot(*zip(*found, strict=True), marker=marker, color=colour, label=name, lw=2.6 if joint else 1.1,
                      ms=7 if joint else 4, zorder=3 if hidden else 2, ls="--" if hidden else "-")  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return pictures_of(argv, "benchmarks.sweep_plots", __doc__.splitlines()[0], "benchmarks.sweep", draw)


if __name__ == "__main__":
    sys.exit(main())
