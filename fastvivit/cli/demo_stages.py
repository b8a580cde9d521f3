"""The paper's stages in the demo: images alone, clips beside images, then clips of four times the length."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastvivit.cli.demo_folder import VIDEOS
from fastvivit.cli.demo_runs import SHORT, motions_found
from fastvivit.data import ClipDataset, write_stills, write_walks
from fastvivit.data.walks import WALKS
from fastvivit.modules.dual import VideoTextModel
from fastvivit.pretrained import load_pretrained
from fastvivit.train import (
    Evaluation,
    MaskConfig,
    MemoryConfig,
    SourceConfig,
    TrainConfig,
    TuningConfig,
    evaluate,
    read_metrics,
)
from fastvivit.train.folders import MODEL

IMAGES, LONG = "images", "long"
STAGES = {
    IMAGES: "digits that stand still, the whole batch its own negatives",
    LONG: "64 frames, starting from the video-first model of 16",
}
SHORT_FRAMES, LONG_FRAMES = 16, 64
# Of the four ways that a digit goes, in order.
WALK_CHANCE = 100.0 / len(WALKS)
_FPS = 8.0
_TUNED = 3  # of four layers: the first stays what short clips have made of it


@dataclass(frozen=True, kw_only=True)
class Files:
    """Manifests of the demo's stages.

    Attributes:
        stills: digits that stand still, to train on.
        stills_heldout: one of each digit.
        long: clips of 64 frames to train on.
        long_heldout: others.
    """

    stills: Path
    stills_heldout: Path
    long: Path
    long_heldout: Path


@dataclass(frozen=True, kw_only=True)
class View:
    """What a model makes of the long clips.

    Attributes:
        name: the model and what it is shown of a clip.
        evaluation: its scores.
        motions: percent of the captions whose best match moves as asked, in all four parts.
    """

    name: str
    evaluation: Evaluation
    motions: float


@dataclass(frozen=True, kw_only=True)
class LongOutcome:
    """How the model of 16 frames and that of 64 do on clips of 64.

    Attributes:
        views: of both, the best last.
        dataset: the held-out clips, 64 frames each.
        config: the run of the last stage.
        metrics: the lines of its ``metrics.jsonl``.
    """

    views: list[View]
    dataset: ClipDataset
    config: TrainConfig
    metrics: list[dict[str, Any]]


def write_stage_files(out: Path, clips: int, seed: int) -> Files:
    """Images, half as many as the demo has ``clips``, and long clips, three tenths."""
    began, videos = time.monotonic(), out / VIDEOS
    images, long, heldout = clips // 2, max(clips * 3 // 20, 4) * 2, min(max(clips // 16, 2), 64) * 2
    files = Files(
        stills=write_stills(videos / "stills", images, seed=seed),
        stills_heldout=write_stills(videos / "stills-heldout", 10, seed=seed, split="heldout"),
        long=write_walks(videos / "long", long, seed=seed),
        long_heldout=write_walks(videos / "long-heldout", heldout, seed=seed, split="heldout"),
    )
    seconds = time.monotonic() - began
    print(f"     wrote {images + 10} images and {long + heldout} clips of {LONG_FRAMES} frames in {seconds:.0f} s")
    return files


def stage_configs(out: Path, short: TrainConfig, files: Files, *, clips: int) -> dict[str, TrainConfig]:
    """The runs of the three stages by name, each of which starts from the folder of the one before.

    Args:
        out: the demo's folder, in which they are.
        short: the run that would train the model of short clips from scratch.
        files: of the stages.
        clips: training clips of the demo.
    """
    train, stills = short.data.train, min(128, clips // 2)
    rest = {"seed": short.seed, "dim": short.dim, "text": short.text, "optimiser": short.optimiser}

    def lasting(steps: int) -> dict[str, Any]:
        schedule = replace(short.schedule, warmup=min(short.schedule.warmup, steps // 6))
        return {"steps": steps, "schedule": schedule, "run": replace(short.run, save_every=steps)}

    return {
        IMAGES: TrainConfig(
            stage="images",
            model=short.model,
            batch_size=stills,
            data=replace(short.data, train=str(files.stills), heldout=str(files.stills_heldout)),
            mask=MaskConfig(ratio=0.0),
            **lasting(max(short.steps * 3 // 20, 1)),
            **rest,
        ),
        SHORT: TrainConfig(
            stage="image_to_video",
            start=str(out / IMAGES),
            batch_size=short.batch_size + stills // 4,
            data=replace(
                short.data,
                train=None,
                sources=(
                    SourceConfig(path=train, batch=short.batch_size),
                    SourceConfig(path=str(files.stills), batch=stills // 4, weight=0.2, mask_ratio=0.0),
                ),
            ),
            init=short.init,
            mask=short.mask,
            **lasting(short.steps),
            **rest,
        ),
        LONG: TrainConfig(
            stage="short_to_long",
            start=str(out / SHORT),
            frames=LONG_FRAMES,
            batch_size=min(64, clips // 8),
            data=replace(short.data, train=str(files.long), heldout=str(files.long_heldout)),
            tuning=TuningConfig(method="last_layers", layers=_TUNED),
            mask=short.mask,
            memory=MemoryConfig(chunk=16),
            **lasting(max(short.steps // 4, 1)),
            **rest,
        ),
    }


def view_long(out: Path, config: TrainConfig) -> LongOutcome:
    """Score the models of short and of long clips, which were trained in ``out``, on long ones.

    Args:
        out: the demo's folder.
        config: the run of the last stage.
    """
    short, long = (load_pretrained(out / name / MODEL) for name in (SHORT, LONG))
    views, dataset = [], _long_clips(config, LONG_FRAMES, _FPS)

    def view(name: str, model: VideoTextModel, clips: ClipDataset) -> None:
        found = evaluate(model, clips, batch_size=config.memory.chunk)
        views.append(View(name=name, evaluation=found, motions=motions_found(found, clips.entries)))

    ratio = LONG_FRAMES // SHORT_FRAMES
    view("16-frame model, first 16 frames", short, _long_clips(config, SHORT_FRAMES, _FPS))
    view(f"16-frame model, every {ratio}th frame", short, _long_clips(config, SHORT_FRAMES, _FPS / ratio))
    short.video.extend_frames(LONG_FRAMES)
    view("stretched to 64 frames, not trained", short, dataset)
    view("after short_to_long, 64 frames", long, dataset)
    return LongOutcome(views=views, dataset=dataset, config=config, metrics=read_metrics(out / LONG))


def _long_clips(config: TrainConfig, frames: int, fps: float) -> ClipDataset:
    return ClipDataset(config.data.heldout, frames=frames, fps=fps, size=64)
