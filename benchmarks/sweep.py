"""Memory and time of a training step of every encoder of the paper, over masks, frames and model sizes.

    python -m benchmarks.sweep [--models B L] [--frames 16 128 256] [--masks 0 25 50 75] [--encoders joint ...]
                               [--dtype bfloat16] [--checkpointing] [--measure-under S] [--save] [--plot]

What a step keeps for its backward, its peak and its FLOPs are accounted for exactly, by fake tensors. Its time is
predicted from the ceilings of the device, and measured, with its peak, where the prediction is short enough: each row
says which. The figures that the paper plots, in figures 2 to 4.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from pathlib import Path

import torch

from .accounting import account
from .measure import Ceilings, ceilings
from .provenance import RESULTS, provenance, results_file
from .sweep_measure import measure, memory_bytes
from .sweep_points import FAMILIES, FRAMES, MASKS, MODELS, Point, points

UNDER = 10.0
QUICK_FRAMES = (16, 32)
COLUMNS = "encoder           mask  tokens      kept      peak  TFLOP f    f + b  time of a step"


def row_of(point: Point, limits: Ceilings | None, device: str, under: float) -> dict[str, object]:
    """A row: the account, the prediction, and what was measured.

    Args:
        point: which step.
        limits: ceilings of the device in this dtype; None predicts and measures nothing.
        device: where it would run.
        under: measure where the prediction is below so many seconds.
    """
    row: dict[str, object] = {"kind": "sweep", **point.facts(), "error": None}
    try:
        config = point.config()
    except ValueError as error:
        return row | {"error": str(error)}
    found = account(
        config,
        point.mask_ratio,
        clips=point.clips,
        dtype=point.torch_dtype,
        device=device,
        checkpointing=point.checkpointing,
    )
    row |= dataclasses.asdict(found)
    # Gradients in the dtype of the weights, and AdamW's two moments.
    row |= {"gradient_bytes": found.weight_bytes, "optimiser_bytes": 2 * found.weight_bytes}
    row |= {"predicted_seconds": None, "bound": None, "seconds": None, "measured_peak_bytes": None}
    if limits is None:
        return row | {"not_measured": "accounted for only"}
    # Weights are read by the forward and by the backward, which writes gradients; what is kept is written and read.
    moved = 3 * found.weight_bytes + 2 * (found.saved_bytes + found.clip_bytes)
    row["predicted_seconds"] = limits.seconds(found.flops_step, moved)
    row["bound"] = limits.binding(found.flops_step, moved)
    needs = found.weight_bytes + found.clip_bytes + found.peak_bytes
    if row["predicted_seconds"] > under:
        return row | {"not_measured": f"predicted beyond {under:g} s"}
    if needs > 0.9 * memory_bytes(device):
        return row | {"not_measured": f"needs {size(needs)}"}
    return row | {"not_measured": None} | measure(point, device)


def line_of(row: dict[str, object]) -> str:
    """A row for people."""
    head = f"{row['encoder']:<15} {row['mask']:>4} %"
    if row["error"]:
        return f"{head}  none: {row['error']}"
    if row["seconds"]:
        time = f"{row['seconds']['median']:.3g} s"
        if row["measured_peak_bytes"]:
            time += f", peak {size(row['measured_peak_bytes'])}"
    else:
        time = "" if row["predicted_seconds"] is None else f"at least {row['predicted_seconds']:,.3g} s"
    if row["not_measured"]:
        time = f"{time}  ({row['not_measured']})".strip()
    numbers = f"{row['tokens']:>7,} {size(row['saved_bytes']):>9} {size(row['peak_bytes']):>9}"
    return f"{head} {numbers} {row['flops_forward'] / 1e12:>8.3g} {row['flops_step'] / 1e12:>8.3g}  {time}"


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def heading(row: dict[str, object]) -> str:
    """What rows of one model and one length have in common."""
    return f"\nViT-{row['model']}, {row['frames']} frames, {row['clips']} clip{'s' * (row['clips'] > 1)}\n{COLUMNS}"


def states(row: dict[str, object]) -> str:
    """What a step needs beside its peak."""
    parts = (f"{name} {size(row[f'{name}_bytes'])}" for name in ("weight", "gradient", "optimiser", "clip"))
    return f"  {row['encoder']}: {row['parameters'] / 1e6:.1f} M parameters; bytes of " + ", ".join(parts)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.sweep", description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), metavar="B|L")
    parser.add_argument("--frames", nargs="+", type=int, help=f"default: {' '.join(map(str, FRAMES))}")
    parser.add_argument("--masks", nargs="+", type=int, default=list(MASKS), help="percent")
    parser.add_argument("--encoders", nargs="+", choices=FAMILIES, default=list(FAMILIES), metavar="ENCODER")
    parser.add_argument("--clips", type=int, default=1, help="in the batch")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: float32 on a CPU, bfloat16 on a GPU")
    parser.add_argument("--checkpointing", action="store_true", help="blocks keep their inputs alone")
    parser.add_argument(
        "--measure-under",
        type=float,
        metavar="S",
        help=f"run steps that are predicted to take less; 0 only accounts, and times nothing at all; default {UNDER:g} "
        "on a CPU, all that fit on a GPU",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--save", nargs="*", metavar="DIR", help=f"append to <date>_<device>_<commit>_sweep.jsonl there ({RESULTS})"
    )
    parser.add_argument("--plot", nargs="?", const="", metavar="DIR", help="draw this run's picture there")
    parser.add_argument("--quick", action="store_true", help="tiny models: proves that the harness works")
    parser.add_argument("--commit", help="which one this is, in a copy without its history")
    given = parser.parse_args(argv)
    if given.save is not None and given.quick:
        parser.error("--save keeps results, and --quick gives none")
    if not all(0 <= mask < 100 for mask in given.masks):
        parser.error(f"--masks: wanted percents from 0 to 99, got {given.masks}")
    gpu = given.device.startswith("cuda")
    given.dtype = given.dtype or ("bfloat16" if gpu else "float32")
    given.frames = given.frames or list(QUICK_FRAMES if given.quick else FRAMES)
    if given.measure_under is None:
        given.measure_under = math.inf if gpu else UNDER
    return given


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    given = parse(argv)
    if given.plot is not None:
        # Before minutes of measuring rather than after them.
        from . import sweep_plots
    dtype, device = getattr(torch, given.dtype), given.device
    run = provenance(device, quick=given.quick, dtype=dtype, named=given.commit)
    # A CPU trains in float32: 16 bits are accounted for there, as on a GPU, and not run.
    limits = None
    if given.measure_under and (device.startswith("cuda") or dtype == torch.float32):
        limits = ceilings(device, quick=given.quick, dtype=dtype)
    files = []
    if given.save is not None:
        files = [results_file(run, Path(folder)) for folder in given.save or [RESULTS]]
        files = [file.with_name(f"{file.stem}_sweep.jsonl") for file in files]
    rows: list[dict[str, object]] = []

    def keep(row: dict[str, object]) -> None:
        line = json.dumps(row | run, ensure_ascii=False)
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a", encoding="utf-8") as target:
                target.write(line + "\n")

    print(f"{run['device']}, {run['threads']} threads, torch {run['torch']}, fastvivit {run['commit']}")
    print(f"{given.dtype}{', checkpointing' * given.checkpointing}; kept: saved for the backward; peak: with gradients")
    if limits:
        print(f"copy {limits.copy / 1e9:.1f} GB/s, {given.dtype} product {limits.product / 1e9:.0f} GFLOP/s")
        found = {"copy_bytes_per_s": limits.copy, "product_flop_per_s": limits.product}
        keep({"kind": "sweep_ceilings"} | found)
    settings = {"clips": given.clips, "dtype": given.dtype}
    settings |= {"checkpointing": given.checkpointing, "quick": given.quick}
    for point in points(given.encoders, given.models, given.frames, given.masks, **settings):
        row = row_of(point, limits, device, given.measure_under)
        if not rows or (rows[-1]["model"], rows[-1]["frames"]) != (row["model"], row["frames"]):
            print(heading(row))
        print(line_of(row), flush=True)
        rows.append(row)
        keep(row)
    print("\nbeside the peak, which has the gradients in it:")
    for row in {(r["model"], r["encoder"]): r for r in rows if not r["error"]}.values():
        print(f"ViT-{row['model']}{states(row)}")
    for file in files:
        print(f"written to {file}")
    if given.plot is not None:
        for picture in sweep_plots.draw([row | run for row in rows], Path(given.plot or RESULTS / "plots")):
            print(f"drawn: {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
