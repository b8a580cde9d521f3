"""The two models of the demo, and the searches they are asked to answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastvivit.data import ClipDataset, Entry
from fastvivit.models import ViViTConfig
from fastvivit.modules.dual import VideoTextModel
from fastvivit.pretrained import load_pretrained
from fastvivit.search import Index, Match, embed_files, search
from fastvivit.train import (
    DataConfig,
    Evaluation,
    InitConfig,
    MaskConfig,
    OptimiserConfig,
    RunConfig,
    ScheduleConfig,
    TextConfig,
    TrainConfig,
    evaluate,
    read_metrics,
)
from fastvivit.train.folders import MODEL

SHORT, FRAMES = "video-first", "frame-level"
MODELS = {
    SHORT: "tubelets of 2 frames, all tokens of a clip attend to each other",
    FRAMES: "every frame on its own, then the mean; no sense of time",
}
QUERIES, TOP = 4, 3
# Four directions for the first digit, another one for the second: twelve pairs.
MOTIONS_CHANCE = 100.0 / 12


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One of the two models.

    Attributes:
        model: it.
        config: its run.
        evaluation: its scores on the held-out files.
        metrics: the lines of its ``metrics.jsonl``.
    """

    model: VideoTextModel
    config: TrainConfig
    evaluation: Evaluation
    metrics: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one model found for a query.

    Attributes:
        query: the text, a held-out clip's caption.
        entries: entries of the held-out manifest that were found, best first.
        matches: their scores.
        motions: for each, whether its two motions are the query's, in order.
    """

    query: str
    entries: list[int]
    matches: list[Match]
    motions: list[bool]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """All that the demo found.

    Attributes:
        trained: the models by name.
        searches: their answers by name.
        own: windows of the user's clips, or None.
        dataset: the held-out clips.
    """

    trained: dict[str, Trained]
    searches: dict[str, list[Answer]]
    own: Index | None
    dataset: ClipDataset


def demo_config(kind: str, train: Path, heldout: Path, *, clips: int, steps: int, seed: int) -> TrainConfig:
    """The run of one of ``MODELS``: width, depth, text tower, data and tokens in all are the same for both.

    A frame-level clip has twice as many tokens (tubelets of one frame), so it takes half of the steps.
    """
    shape = {"size": 64, "width": 128, "depth": 4, "heads": 4, "ff": 512, "pos_std": 0.2}
    if kind == FRAMES:
        steps = max(steps // 2, 1)
        model = ViViTConfig(frames=16, tubelet=(1, 16, 16), attention="frame", **shape)
    else:
        model = ViViTConfig(frames=16, tubelet=(2, 16, 16), attention="joint", **shape)
    return TrainConfig(
        steps=steps,
        seed=seed,
        batch_size=min(128, clips),
        dim=128,
        model=model,
        data=DataConfig(train=str(train), heldout=str(heldout), fps=8.0, cache=True),
        init=InitConfig(time_std=1.0),
        text=TextConfig(width=128, depth=2, heads=4, max_length=32),
        optimiser=OptimiserConfig(lr=7e-4, clip=1.0),
        schedule=ScheduleConfig(warmup=min(50, steps // 2)),
        # Frames on their own are dropped whole: the same share, and sequences of one length are faster.
        mask=MaskConfig(ratio=0.75, strategy="frame" if kind == FRAMES else "random"),
        run=RunConfig(log_every=50, save_every=max(steps, 1), keep_last=1),
    )


def run_searches(out: Path, configs: dict[str, TrainConfig], own: Sequence[Path]) -> Outcome:
    """Score the models that were trained in ``out``, and ask both for the same captions of held-out clips.

    Args:
        out: the demo's folder.
        configs: the runs by name.
        own: files of the user's to search, too.
    """
    trained = {}
    for kind, config in configs.items():
        model = load_pretrained(out / kind / MODEL)
        encoder = model.video.config
        dataset = ClipDataset(config.data.heldout, frames=encoder.frames, fps=config.data.fps, size=encoder.size)
        trained[kind] = Trained(
            model=model,
            config=config,
            evaluation=evaluate(model, dataset, batch_size=config.batch_size),
            metrics=read_metrics(out / kind),
        )
    return Outcome(
        trained=trained,
        searches=_ask(trained, dataset.entries),
        own=_search_own(trained[SHORT], own),
        dataset=dataset,
    )


def _ask(trained: dict[str, Trained], entries: Sequence[Entry]) -> dict[str, list[Answer]]:
    files = [entry.video for entry in entries]
    place = {str(file): i for i, file in enumerate(files)}
    asked = range(0, len(entries), max(1, len(entries) // QUERIES))[:QUERIES]
    found: dict[str, list[Answer]] = {}
    for kind, one in trained.items():
        index = embed_files(one.model, files, fps=one.config.data.fps, batch_size=one.config.batch_size)
        found[kind] = [_answer(one.model, index, entries, place, entries[query]) for query in asked]
    return found


def _search_own(trained: Trained, files: Sequence[Path]) -> Index | None:
    """Windows of the user's clips; files that can't be read are left out and said."""
    if not files:
        return None
    fps = trained.config.data.fps
    return embed_files(
        trained.model, files, fps=fps, broken=lambda file, error: print(f"left out: {error}", flush=True)
    )


def motions_found(evaluation: Evaluation, entries: Sequence[Entry]) -> float:
    """Percent of the held-out captions whose best match shows the two motions asked for, in order."""
    best = evaluation.similarity.argmax(1).tolist()
    motions = [entries[entry].extra["motions"] for entry in evaluation.entries]
    right = [motions[found] == motions[own] for found, own in zip(best, evaluation.owners, strict=True)]
    return 100.0 * sum(right) / len(right)


def _answer(
    model: VideoTextModel, index: Index, entries: Sequence[Entry], place: dict[str, int], asked: Entry
) -> Answer:
    query = asked.captions[0]
    with torch.no_grad():
        matches = search(index, model.encode_text([query])[0], TOP)
    found = [place[match.file] for match in matches]
    wanted = asked.extra["motions"]
    return Answer(
        query=query,
        entries=found,
        matches=matches,
        motions=[entries[i].extra["motions"] == wanted for i in found],
    )
