"""Writes a run on real clips into docs/finetuning.md: ``python docs/make_finetuning.py [VIDEOS IMAGE TEXT OUT]``.

VIDEOS is a folder of videos with their ``captions.jsonl``, IMAGE and TEXT are folders of an image ViT and a text
encoder of transformers. With them the commands of the page are run, in the new folder OUT, on pieces of the videos;
what came out is kept as ``docs/finetuning_report.json`` with a picture. Without, the page is written anew from these.
A test binds the two.
"""

from __future__ import annotations

import csv
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PAGE, REPORT, PICTURE = HERE / "finetuning.md", HERE / "finetuning_report.json", HERE / "pictures" / "finetuning.png"
BEGIN, END = "<!-- written by make_finetuning.py: {} -->\n", "<!-- end -->\n"
FPS, LEFT_OUT, MOST = 8, "cup", 6
# What the miniature has other than the files in examples/: eight clips and two cores are not a data set and a GPU.
SHARED = ["batch_size=8", "data.fps=8", "data.workers=1", "optimiser.lr=1e-4", "schedule.warmup=5"]
SHORT = [*SHARED, "model.size=112", "memory.chunk=4", "steps=80", "run.save_every=20", "run.eval_every=40"]
LONG = [*SHARED, "memory.chunk=2", "steps=24", "run.save_every=10", "run.eval_every=12", "batch_size=6"]
KILLED = 30  # steps after which the run is killed, between two checkpoints
QUERIES = ("a cartoon rabbit on a green hillside", "the earth at night, lit by cities", "a hand tilts a black bottle")


class Chain:
    """Commands run one after the other in a folder, and what they said."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.said = folder, {}
        self.environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}

    def start(self, *words: str) -> subprocess.Popen:
        """Begin a command of fastvivit."""
        return subprocess.Popen(
            [sys.executable, "-m", "fastvivit", *words],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, name: str, *words: str, codes: tuple[int, ...] = (0,)) -> str:
        """Run it to its end, and keep what it said."""
        began, process = time.monotonic(), self.start(*words)
        text = process.communicate()[0]
        sys.stdout.write(f"$ fastvivit {' '.join(words)}\n{text}")
        if process.returncode not in codes:
            raise SystemExit(f"it ended with {process.returncode}")
        command = " ".join(f'"{word}"' if " " in word else word for word in words)
        seconds = time.monotonic() - began
        self.said[name] = {"command": f"fastvivit {command}", "said": text.splitlines(), "seconds": seconds}
        return text

    def scores(self, manifest: str, model: str) -> dict[str, float]:
        """Retrieval of a model on a manifest."""
        arguments = ["--model", model, "--task", "retrieval", "--fps", str(FPS), "--json"]
        return json.loads(self.run(f"evaluate {model}", "evaluate", manifest, *arguments))["scores"]["dual encoder"]


def split(manifest: Path, train: Path, heldout: Path) -> dict[str, list[int]]:
    """The middle piece of each file is held out, and all of one file; (train, held out) of each."""
    from fastvivit.data import read_manifest, write_manifest

    files: dict[str, list] = {}
    for entry in read_manifest(manifest):
        files.setdefault(entry.video.name, []).append(entry)
    taken: dict[str, tuple[list, list]] = {}
    for name, pieces in files.items():
        middle = len(pieces) // 2
        rest = pieces[:middle] + pieces[middle + 1 :]
        if name.startswith(LEFT_OUT):
            taken[name] = [], [pieces[middle]]
        elif len(pieces) == 1:
            taken[name] = pieces, []
        else:
            even = [rest[number * len(rest) // MOST] for number in range(MOST)] if len(rest) > MOST else rest
            taken[name] = even, [pieces[middle]]
    write_manifest(train, [entry for pieces, _ in taken.values() for entry in pieces])
    write_manifest(heldout, [entry for _, pieces in taken.values() for entry in pieces])
    return {name: [len(part) for part in parts] for name, parts in taken.items()}


def floor(counts: list[int], batch: int) -> float:
    """The least mean loss of random batches in which pieces of a file carry the same words."""
    owners = [owner for owner, count in enumerate(counts) for _ in range(count)]
    draw, losses = random.Random(0), []
    for _ in range(2000):
        chosen = draw.sample(owners, batch)
        losses.append(sum(math.log(chosen.count(owner)) for owner in chosen) / batch)
    return sum(losses) / len(losses)


def killed_and_resumed(chain: Chain, words: list[str]) -> dict[str, object]:
    """Train, kill -9 between two checkpoints, resume; how the steps that were taken twice compare."""
    run = chain.folder / "runs" / "short"
    process = chain.start(*words)
    while process.poll() is None and _steps(run) < KILLED:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    first = {row["step"]: row["loss"] for row in _rows(run)}
    saved = sorted(path.name for path in (run / "checkpoints").iterdir())
    chain.run("train short", *words, "--resume")
    again = {row["step"]: row["loss"] for row in _rows(run)}
    last = max(int(name.split("-")[-1]) for name in saved)
    twice = [step for step in first if step > last]
    same = all(first[step] == again[step] for step in first)
    return {"killed_after": max(first), "checkpoint": last, "twice": len(twice), "same": same}


def _rows(run: Path) -> list[dict]:
    from fastvivit.train import read_metrics

    return read_metrics(run)


def _steps(run: Path) -> int:
    return len(_rows(run))


def write_baselines(folder: Path) -> None:
    """What the first stage begins with, and the first stage's encoder stretched and not trained on."""
    import torch

    import fastvivit as fv
    from fastvivit.train import TrainConfig
    from fastvivit.train.stages import make_stage

    os.chdir(folder)
    torch.manual_seed(0)
    stage = make_stage(TrainConfig.from_toml(folder / "image_to_video.toml", SHORT))
    fv.save_pretrained(stage.build(folder / "runs"), folder / "untrained")


def write_stretched(folder: Path) -> None:
    """The first stage's model with positions for 64 frames."""
    import fastvivit as fv

    model = fv.load_pretrained(folder / "runs" / "short" / "model")
    model.video.extend_frames(64)
    fv.save_pretrained(model, folder / "stretched")


def experiment(videos: Path, image: Path, text: Path, out: Path) -> dict:
    """Run the page's commands on the clips."""
    import torch

    from benchmarks.provenance import provenance

    out.mkdir(parents=True)
    shutil.copytree(videos, out / "videos", ignore=shutil.ignore_patterns("*.md", "captions.jsonl"))
    for name, folder in (("dinov2_small", image), ("minilm", text)):
        (out / name).symlink_to(folder.resolve())
    for name in ("image_to_video", "finetune_long"):
        shutil.copy(ROOT / "examples" / f"{name}.toml", out)
    with (out / "captions.csv").open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["file", "caption"])
        lines = (videos / "captions.jsonl").read_text(encoding="utf-8").splitlines()
        table.writerows([row["video"], row["caption"]] for row in map(json.loads, lines))
    (out / "videos" / "broken.mp4").write_bytes((out / "videos" / "world.mp4").read_bytes()[:200_000])
    chain, began = Chain(out), time.monotonic()
    counts = {}
    for name, seconds in (("short", 16 // FPS), ("long", 64 // FPS)):
        chain.run(f"scan {name}", "data", "scan", "videos", "--captions", "captions.csv", "--segments", str(seconds),
                  "--out", f"{name}.jsonl")  # fmt: skip
        counts[name] = split(out / f"{name}.jsonl", out / f"train_{name}.jsonl", out / f"heldout_{name}.jsonl")
        chain.run(f"pack {name}", "data", "pack", f"train_{name}.jsonl", "--out", f"packed/{name}", "--frames",
                  str(seconds * FPS), "--fps", str(FPS), "--size", "112", "--tubelet", "2,14,14")  # fmt: skip
    chain.run("plan", "plan", "image_to_video.toml", "--device", "rtx4090", codes=(0, 1))
    write_baselines(out)
    scores = {"begun": chain.scores("heldout_short.jsonl", "untrained")}
    changes = [word for change in SHORT for word in ("--override", change)]
    resumed = killed_and_resumed(chain, ["train", "image_to_video.toml", "--out", "runs/short", *changes])
    scores["short"] = chain.scores("heldout_short.jsonl", "runs/short")
    write_stretched(out)
    scores["stretched"] = chain.scores("heldout_long.jsonl", "stretched")
    changes = [word for change in LONG for word in ("--override", change)]
    chain.run("train long", "train", "finetune_long.toml", "--out", "runs/long", *changes)
    scores["long"] = chain.scores("heldout_long.jsonl", "runs/long")
    chain.run("embed", "embed", "videos", "--model", "runs/long", "--out", "vectors.safetensors")
    for query in QUERIES:
        chain.run(f"search {query}", "search", query, "--model", "runs/long", "--index", "vectors.safetensors",
                  "--top", "3")  # fmt: skip
    chosen = ("step", "loss", "seconds", "eval_t2v_r1", "eval_v2t_r1", "data_wait", "clips_per_second")
    metrics = {
        name: [{key: row[key] for key in chosen if key in row} for row in _rows(out / "runs" / name)]
        for name in ("short", "long")
    }
    floors = {
        name: floor([train for train, _ in counts[name].values()], 8 if name == "short" else 6) for name in counts
    }
    return {
        "provenance": provenance("cpu", quick=False),
        "seconds": time.monotonic() - began,
        "clips": counts,
        "overrides": {"short": SHORT, "long": LONG},
        "resumed": resumed,
        "scores": scores,
        "floors": floors,
        "metrics": metrics,
        "said": chain.said,
    }


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.path.insert(0, str(ROOT))
        report = experiment(*(Path(argument).absolute() for argument in sys.argv[1:]))
        REPORT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
