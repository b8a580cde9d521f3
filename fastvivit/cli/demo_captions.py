"""The demo's captioners: both of its encoders, each with a small language model, and how right they are."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastvivit import metrics
from fastvivit.caption import VideoCaptioner, Vision
from fastvivit.cli.demo_runs import MOTIONS_CHANCE
from fastvivit.data import ClipDataset
from fastvivit.data.digits import MOTIONS, WORDS
from fastvivit.pretrained import load_pretrained
from fastvivit.train import (
    CaptionConfig,
    CrossConfig,
    LanguageConfig,
    MaskConfig,
    OptimiserConfig,
    ResamplerConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
    VisionConfig,
    fit,
    read_metrics,
)
from fastvivit.train.evaluate import heldout_batches
from fastvivit.train.folders import MODEL

CAPTIONERS = {"video-first": "video-first-captions", "frame-level": "frame-level-captions"}
TEXT_SCORES = ("cider_d", "rouge_l_coco", "bleu_4")
_NEW_TOKENS = 24  # a caption has 15 words and a comma
# By counting: ordered pairs of different motions (12), of different digits (90); two of ten digits are 20 % of two.
_CHANCE = {
    "twin": 50.0,
    "motions": MOTIONS_CHANCE,
    "digits": 100.0 / 10,
    "named": 100.0 * 2 / 10,
    "exact": 100.0 / (12 * 90),
}


@dataclass(frozen=True, kw_only=True)
class Captioned:
    """What one captioner makes of the held-out clips, unmasked.

    Attributes:
        config: its run.
        metrics: the lines of its ``metrics.jsonl``.
        texts: what it writes.
        scores: see ``score_texts``, and ``twin``: percent of clips whose own caption it finds likelier than that of
            the twin, which has the same pictures in another order; a tie is a miss.
    """

    config: TrainConfig
    metrics: list[dict[str, Any]]
    texts: list[str]
    scores: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class CaptionOutcome:
    """All that the demo of captions found.

    Attributes:
        encoders: runs of the encoders by name.
        encoder_metrics: the lines of their ``metrics.jsonl``.
        captioners: by the same names.
        chance: scores of guessing; of texts those of another held-out clip's caption.
        dataset: the held-out clips.
        seconds: what all of it took.
    """

    encoders: dict[str, TrainConfig]
    encoder_metrics: dict[str, list[dict[str, Any]]]
    captioners: dict[str, Captioned]
    chance: dict[str, float]
    dataset: ClipDataset
    seconds: float


def caption_config(encoder: TrainConfig, start: Path, *, steps: int) -> TrainConfig:
    """The run that gives an encoder words, the same for both encoders.

    Args:
        encoder: its run.
        start: the folder of that run.
        steps: optimisation steps.
    """
    return TrainConfig(
        stage="video_to_text",
        start=str(start),
        steps=steps,
        seed=encoder.seed,
        batch_size=encoder.batch_size,
        data=encoder.data,
        language=LanguageConfig(
            width=128,
            depth=2,
            heads=4,
            pretrain_steps=min(200, steps),
            resampler=ResamplerConfig(use=False),
            # An average over time, as in the paper, blurs motions: fewer are right after as many steps.
            cross=CrossConfig(over_time=False),
        ),
        vision=VisionConfig(cache=True, masks=2, dtype="float16"),
        captions=CaptionConfig(prompt="", describe=0),
        optimiser=OptimiserConfig(lr=2e-3, clip=1.0),
        schedule=ScheduleConfig(warmup=min(50, steps // 2)),
        # Whole frames where frames are encoded on their own, as in the run before.
        mask=MaskConfig(ratio=0.5, strategy=encoder.mask.strategy),
        run=RunConfig(log_every=100, eval_every=50, save_every=max(steps, 1), keep_last=1),
    )


def run_captions(out: Path, encoders: dict[str, TrainConfig], steps: int, began: float) -> CaptionOutcome:
    """Give the encoders that were trained in ``out`` words, and compare what they write with the true captions.

    Args:
        out: the demo's folder.
        encoders: their runs by name.
        steps: training steps of a captioner.
        began: when the demo did, by ``time.monotonic``.
    """
    captioners = {}
    for number, (kind, encoder) in enumerate(encoders.items(), 4):
        print(f"{number}/6  giving the {kind} model words: a language model that reads what it sees", flush=True)
        config = caption_config(encoder, out / kind, steps=steps)
        folder = fit(config, out / CAPTIONERS[kind], name=CAPTIONERS[kind])
        dataset = ClipDataset(
            encoder.data.heldout, frames=encoder.model.frames, fps=encoder.data.fps, size=encoder.model.size
        )
        captioners[kind] = _describe(load_pretrained(folder / MODEL), dataset, config, read_metrics(folder))
    print("6/6  writing the report", flush=True)
    captions = [entry.captions[0] for entry in dataset.entries]
    # Half of them on is another pair of clips, never a twin.
    others = [captions[(i + len(captions) // 2) % len(captions)] for i in range(len(captions))]
    return CaptionOutcome(
        encoders=encoders,
        encoder_metrics={kind: read_metrics(out / kind) for kind in encoders},
        captioners=captioners,
        chance={name: value for name, value in score_texts(others, captions).items() if name in TEXT_SCORES} | _CHANCE,
        dataset=dataset,
        seconds=time.monotonic() - began,
    )


def score_texts(texts: Sequence[str], captions: Sequence[str]) -> dict[str, float]:
    """How right texts are about moving digits.

    Args:
        texts: one a clip.
        captions: the true ones.

    Returns:
        In percent: ``motions``, both right and in order; ``digits``, those that are right and in their place;
        ``named``, those that are named at all; ``exact``, the same words from first to last. And ``cider_d``,
        ``rouge_l_coco`` and ``bleu_4`` of ``fastvivit.metrics.captions``.
    """
    pairs = [(_words(text), _words(caption)) for text, caption in zip(texts, captions, strict=True)]
    motions = [_only(said, MOTIONS) == _only(true, MOTIONS) for said, true in pairs]
    digits = [(_only(said, WORDS), _only(true, WORDS)) for said, true in pairs]
    placed = sum(one == other for said, true in digits for one, other in zip(said, true, strict=False))
    named = sum(digit in said for said, true in digits for digit in true)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of few clips
        found = metrics.captions(texts, [[caption] for caption in captions], tokenize=True)
    return {
        "motions": 100.0 * sum(motions) / len(pairs),
        "digits": 100.0 * placed / (2 * len(pairs)),
        "named": 100.0 * named / (2 * len(pairs)),
        "exact": 100.0 * sum(said == true for said, true in pairs) / len(pairs),
        **{name: float(found[name]) for name in TEXT_SCORES},
    }


@torch.no_grad()
def _describe(
    model: VideoCaptioner, dataset: ClipDataset, config: TrainConfig, rows: list[dict[str, Any]]
) -> Captioned:
    captions = [entry.captions[0] for entry in dataset.entries]
    twins = dataset.twin_indices()
    texts: list[str] = []
    right = 0
    for batch, _ in heldout_batches(dataset, config.batch_size):
        vision: Vision = model.encode_video(batch["video"])
        own = batch["index"].tolist()
        texts += model.generate(vision, config.captions.prompt, _NEW_TOKENS)
        options = [[captions[i], captions[twins[i]]] for i in own]
        likely = model.score(vision, config.captions.prompt, options)
        right += int((likely[:, 0] > likely[:, 1]).sum())
    scores = {"twin": 100.0 * right / len(captions)} | score_texts(texts, captions)
    return Captioned(config=config, metrics=rows, texts=texts, scores=scores)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def _only(words: Sequence[str], wanted: Sequence[str]) -> list[str]:
    return [word for word in words if word in wanted]
