"""Runs the commands of docs/finetuning.md on real clips: ``python docs/run_finetuning.py VIDEOS IMAGE TEXT OUT``.

VIDEOS is a folder of videos with their ``captions.jsonl``, IMAGE and TEXT are folders of an image ViT and of a text
encoder of transformers, OUT a new folder. What came out is kept as ``docs/finetuning_report.json``; then
``python docs/make_finetuning.py`` writes it into the page.
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
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
REPORT = HERE / "finetuning_report.json"
FPS, SIZE, LEFT_OUT, MOST = 8, 112, "cup", 6
FRAMES, BATCH = {"short": 16, "long": 64}, {"short": 8, "long": 6}
# What the run has other than the files in examples/: eight clips and two cores are not a data set and a GPU.
SHARED = [f"data.fps={FPS}", "data.workers=1", "optimiser.lr=1e-4", "schedule.warmup=5"]
OVERRIDES = {
    "short": [*SHARED, f"model.size={SIZE}", "batch_size=8", "memory.chunk=4", "steps=80", "run.save_every=20",
              "run.eval_every=40"],
    "long": [*SHARED, "batch_size=6", "memory.chunk=2", "steps=24", "run.save_every=10", "run.eval_every=12"],
}  # fmt: skip
KILLED = 30  # steps after which the run is killed, between two checkpoints
QUERIES = ("a cartoon rabbit on a green hillside", "the earth at night, lit by cities", "a hand tilts a black bottle")
_KEPT = ("step", "loss", "seconds", "eval_t2v_r1", "eval_v2t_r1", "data_wait", "clips_per_second")


class Chain:
    """Commands run one after the other in a folder, and what they said.

    Args:
        folder: where they run.

    Attributes:
        said: by name of what was run: command, lines and seconds.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: dict[str, dict[str, Any]] = {}
        self._environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}

    def start(self, *words: str) -> subprocess.Popen:
        """Begin a command of fastvivit."""
        return subprocess.Popen(
            [sys.executable, "-m", "fastvivit", *words],
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, name: str, *words: str, codes: tuple[int, ...] = (0,)) -> None:
        """Run it to its end, and keep what it said."""
        began, process = time.monotonic(), self.start(*words)
        text = process.communicate()[0]
        sys.stdout.write(f"$ fastvivit {' '.join(words)}\n{text}")
        if process.returncode not in codes:
            raise SystemExit(f"it ended with {process.returncode}")
        command = " ".join(f'"{word}"' if " " in word else word for word in words)
        seconds = round(time.monotonic() - began, 1)
        self.said[name] = {"command": f"fastvivit {command}", "said": text.splitlines(), "seconds": seconds}

    def scores(self, name: str, manifest: str, model: str) -> dict[str, Any]:
        """Retrieval of a model on a manifest: how many clips, R@1 both ways, the ranks of each file's captions."""
        said = self.folder / f"{name}.predictions.jsonl"
        self.run(f"evaluate {name}", "evaluate", manifest, "--model", model, "--task", "retrieval", "--fps", str(FPS),
                 "--predictions", said.name, "--json")  # fmt: skip
        found = json.loads("\n".join(self.said.pop(f"evaluate {name}")["said"]))["scores"]["dual encoder"]
        ranks: dict[str, list[int]] = {}
        for row in _rows(said):
            ranks.setdefault(Path(row["video"]).name, []).append(row["rank"])
        return {"clips": int(found["clips"]), "t2v_r1": found["t2v_r1"], "v2t_r1": found["v2t_r1"], "ranks": ranks}


def split(folder: Path) -> dict[str, dict[str, list[int]]]:
    """Hold out a stretch of each file: its middle long piece, or where that is all of it, its middle short one.

    No piece that is trained on shares a moment with one that is scored, in either stage, but for the second stage's
    pieces of files that have but one. Of one file nothing is trained on.

    Returns:
        For each length and file, how many pieces are (trained on, held out).
    """
    from fastvivit.data import write_manifest

    files = {name: _by_file(folder / f"{name}.jsonl") for name in FRAMES}
    counts: dict[str, dict[str, list[int]]] = {}
    for name, found in files.items():
        train, heldout, counts[name] = [], [], {}
        for file, pieces in found.items():
            long = files["long"][file]
            whole = len(long) == 1
            apart = (pieces if whole else long)[len(pieces if whole else long) // 2]
            inside = [piece for piece in pieces if _share(piece, apart)]
            rest = [piece for piece in pieces if not _share(piece, apart)]
            scored = inside[len(inside) // 2 :][:1]
            if file.startswith(LEFT_OUT):
                rest = []
            elif len(pieces) == 1:
                rest, scored = pieces, []
            rest = [rest[number * len(rest) // MOST] for number in range(MOST)] if len(rest) > MOST else rest
            train, heldout = train + rest, heldout + scored
            counts[name][file] = [len(rest), len(scored)]
        write_manifest(folder / f"train_{name}.jsonl", train)
        write_manifest(folder / f"heldout_{name}.jsonl", heldout)
    return counts


def _by_file(manifest: Path) -> dict[str, list[Any]]:
    from fastvivit.data import read_manifest

    files: dict[str, list] = {}
    for entry in read_manifest(manifest):
        files.setdefault(entry.video.name, []).append(entry)
    return files


def _share(one: Any, other: Any) -> bool:
    """Whether two pieces of a file share a moment."""
    return one.start < (other.end or math.inf) and other.start < (one.end or math.inf)


def floor(counts: list[int], batch: int) -> float:
    """The least mean loss of random batches, in which pieces of a file share its captions: ln of how many they are."""
    owners = [owner for owner, count in enumerate(counts) for _ in range(count)]
    draw, losses = random.Random(0), []
    for _ in range(2000):
        chosen = draw.sample(owners, batch)
        losses.append(sum(math.log(chosen.count(owner)) for owner in chosen) / batch)
    return sum(losses) / len(losses)


def killed_and_resumed(chain: Chain, words: list[str]) -> dict[str, Any]:
    """Train, kill -9 between two checkpoints, resume; how the steps that were taken twice compare."""
    run = chain.folder / "runs" / "short"
    process = chain.start(*words)
    while process.poll() is None and len(_steps(run)) < KILLED:
        time.sleep(0.05)
    if process.poll() is not None:
        raise SystemExit(process.communicate()[0])
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = {row["step"]: row["loss"] for row in _steps(run)}
    last = max(int(path.name.split("-")[-1]) for path in (run / "checkpoints").iterdir())
    chain.run("train short", *words, "--resume")
    again = {row["step"]: row["loss"] for row in _steps(run)}
    twice = [step for step in first if step > last]
    same = sum(first[step] == again[step] for step in twice)
    return {"killed_after": max(first), "checkpoint": last, "twice": len(twice), "same": same}


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _steps(run: Path) -> list[dict[str, Any]]:
    from fastvivit.train import read_metrics

    return read_metrics(run)


def prepare(videos: Path, image: Path, text: Path, out: Path) -> None:
    """A folder as the page begins with: videos, one of them damaged, a CSV of captions, models, the two configs."""
    (out / "videos").mkdir(parents=True)
    lines = _rows(videos / "captions.jsonl")
    for name in sorted({line["video"] for line in lines}):
        shutil.copyfile(videos / name, out / "videos" / name)
    whole = (out / "videos" / "world.mp4").read_bytes()
    (out / "videos" / "broken.mp4").write_bytes(whole[: len(whole) // 8])
    with (out / "captions.csv").open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["file", "caption"])
        table.writerows([line["video"], line["caption"]] for line in lines)
    for name, folder in (("dinov2_small", image), ("minilm", text)):
        (out / name).symlink_to(folder)
    for name in ("image_to_video", "finetune_long"):
        shutil.copyfile(ROOT / "examples" / f"{name}.toml", out / f"{name}.toml")


def write_untrained(folder: Path) -> None:
    """What the first stage begins with."""
    import torch

    import fastvivit as fv
    from fastvivit.train import TrainConfig
    from fastvivit.train.stages import make_stage

    config = TrainConfig.from_toml(folder / "image_to_video.toml", OVERRIDES["short"])
    torch.manual_seed(config.seed)
    fv.save_pretrained(make_stage(config).build(folder / "runs"), folder / "untrained")


def write_stretched(folder: Path) -> None:
    """The first stage's model with positions for the long clips, trained no further."""
    import fastvivit as fv

    model = fv.load_pretrained(folder / "runs" / "short" / "model")
    model.video.extend_frames(FRAMES["long"])
    fv.save_pretrained(model, folder / "stretched")


def experiment(videos: Path, image: Path, text: Path, out: Path) -> dict[str, Any]:
    """Run the page's commands on the clips; the report."""
    from benchmarks.provenance import provenance

    about = provenance("cpu", quick=False)
    prepare(videos, image, text, out)
    chain, began, scores = Chain(out), time.monotonic(), {}
    changes = {name: [word for change in OVERRIDES[name] for word in ("--override", change)] for name in FRAMES}
    for name, frames in FRAMES.items():
        chain.run(f"scan {name}", "data", "scan", "videos", "--captions", "captions.csv", "--segments",
                  str(frames // FPS), "--out", f"{name}.jsonl")  # fmt: skip
    counts = split(out)
    for name, frames in FRAMES.items():
        chain.run(f"pack {name}", "data", "pack", f"train_{name}.jsonl", "--out", f"packed/{name}", "--frames",
                  str(frames), "--fps", str(FPS), "--size", str(SIZE), "--tubelet", "2,14,14")  # fmt: skip
    chain.run("plan short", "plan", "image_to_video.toml", "--device", "rtx4090", codes=(0, 1))
    write_untrained(out)
    scores["untrained"] = chain.scores("untrained", "heldout_short.jsonl", "untrained")
    resumed = killed_and_resumed(chain, ["train", "image_to_video.toml", "--out", "runs/short", *changes["short"]])
    scores["short"] = chain.scores("short", "heldout_short.jsonl", "runs/short")
    chain.run("plan long", "plan", "finetune_long.toml", "--size", "224", "--device", "rtx4090", codes=(0, 1))
    write_stretched(out)
    scores["stretched"] = chain.scores("stretched", "heldout_long.jsonl", "stretched")
    chain.run("train long", "train", "finetune_long.toml", "--out", "runs/long", *changes["long"])
    scores["long"] = chain.scores("long", "heldout_long.jsonl", "runs/long")
    chain.run("embed", "embed", "videos", "--model", "runs/long", "--out", "vectors.safetensors")
    for query in QUERIES:
        chain.run(f"search {query}", "search", query, "--model", "runs/long", "--index", "vectors.safetensors",
                  "--top", "3")  # fmt: skip
    return {
        "provenance": about,
        "seconds": round(time.monotonic() - began),
        "clips": counts,
        "frames": FRAMES,
        "size": SIZE,
        "fps": FPS,
        "batch": BATCH,
        "overrides": OVERRIDES,
        "resumed": resumed,
        "scores": scores,
        "floors": {name: floor([train for train, _ in counts[name].values()], BATCH[name]) for name in counts},
        "metrics": {
            name: [{key: row[key] for key in _KEPT if key in row} for row in _steps(out / "runs" / name)]
            for name in FRAMES
        },
        "said": chain.said,
    }


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    found = experiment(*(Path(argument).absolute() for argument in sys.argv[1:]))
    REPORT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
