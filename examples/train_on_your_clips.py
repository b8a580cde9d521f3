"""Training: a folder of clips and a manifest, a few steps, a checkpoint, a search.

    python examples/train_on_your_clips.py [FOLDER]

FOLDER holds your videos and ``manifest.jsonl``, a line ``{"video": "a.mp4", "caption": "a dog runs"}`` each.
Without one, clips of moving digits are made first.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

import fastvivit as fv
from fastvivit.data import read_manifest, write_digits
from fastvivit.search import embed_files, search
from fastvivit.train import (
    DataConfig,
    InitConfig,
    OptimiserConfig,
    RunConfig,
    ScheduleConfig,
    TextConfig,
    TrainConfig,
    fit,
    read_metrics,
)


def main(folder: Path | None = None) -> Path:
    """Train on a folder; returns the run's folder."""
    work = Path(tempfile.mkdtemp(prefix="fastvivit-example-"))
    manifest = folder / "manifest.jsonl" if folder else write_digits(work / "clips", 32, seed=0)

    # The same fields can stand in a TOML file: `fastvivit train run.toml`.
    config = TrainConfig(
        steps=30,
        batch_size=8,
        dim=64,
        model=fv.ViViTConfig(frames=16, size=64, width=64, depth=2, heads=2, ff=256),
        text=TextConfig(width=64, depth=1, heads=2, max_length=32),
        data=DataConfig(train=str(manifest), heldout=str(manifest), fps=8.0, cache=True),
        init=InitConfig(time_std=1.0),  # makes the order of things quick to learn
        optimiser=OptimiserConfig(lr=1e-3),
        schedule=ScheduleConfig(warmup=3),
        run=RunConfig(save_every=10, log_every=10),
    )
    # Stopped at any instant, `fit(..., resume=True)` goes on to the same losses.
    run = fit(config, work / "run")
    rows = read_metrics(run)
    print(f"loss {rows[0]['loss']:.2f} → {rows[-1]['loss']:.2f} in {len(rows)} steps; report: {run}/report.html")

    model = fv.load_pretrained(run / "model")
    entries = read_manifest(manifest)
    index = embed_files(model, [entry.video for entry in entries], fps=config.data.fps)
    query = entries[0].captions[0]
    print(f"nearest to “{query}”:")
    with torch.no_grad():
        for match in search(index, model.encode_text([query])[0], top=3):
            print(f"  {match.score:.2f}  {Path(match.file).name}, {match.start:.1f} to {match.end:.1f} s")
    return run


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
