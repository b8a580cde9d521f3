"""Scores of a captioner on held-out clips: its loss, and what it writes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch

from fastvivit import metrics
from fastvivit.caption import VideoCaptioner, Vision
from fastvivit.data import ClipDataset
from fastvivit.data.groups import clips_of
from fastvivit.train.evaluate import heldout_batches
from fastvivit.train.progress import progress
from fastvivit.train.step import draw_masks
from fastvivit.train.tables import MaskConfig


@dataclass(frozen=True, kw_only=True)
class CaptionEvaluation:
    """Scores, and the texts they were taken from.

    Attributes:
        scores: ``loss`` by token over the first caption of each clip; ``clips`` and ``broken``; where texts were
            written ``described``, and of ``fastvivit.metrics.captions`` ``cider_d``, ``rouge_l_coco``,
            ``rouge_l_f1`` and ``bleu_1`` to ``bleu_4``.
        entries: entry of the data set of each text, the first of those of the same clip.
        texts: what the model wrote.
        references: the captions of those clips.
    """

    scores: dict[str, float]
    entries: list[int]
    texts: list[str]
    references: list[list[str]]


def see(model: VideoCaptioner, batch: dict[str, Any], mask: MaskConfig, device: torch.device) -> Vision:
    """What a captioner sees of a batch: read from the disk already, or encoded now, under each clip's own mask."""
    video = batch["video"]
    if isinstance(video, Vision):
        return video.to(device, non_blocking=True)
    video = [clip.to(device) for clip in video] if isinstance(video, list) else video.to(device, non_blocking=True)
    keep = draw_masks(batch["mask_seed"], model.video.config.views, mask)
    return model.encode_video(video, keep=None if keep is None else keep.to(device, non_blocking=True))


@torch.no_grad()
def evaluate_captions(
    model: VideoCaptioner,
    dataset: ClipDataset,
    *,
    batch_size: int,
    mask: MaskConfig | None = None,
    prompt: str = "",
    describe: int = 0,
    max_new_tokens: int = 32,
    workers: int = 0,
    quiet: bool = True,
) -> CaptionEvaluation:
    """Score a captioner; it is left in the mode it was in. Greedy texts, so the same every time.

    Entries of the same part of the same file are one clip, and the captions of all are its references.

    Args:
        model: it.
        dataset: clips, as a ClipDataset or a VisionDataset, at the epoch it stands at.
        batch_size: clips at a time.
        mask: which tokens of a decoded clip are dropped; None is nothing.
        prompt: what stands before every text.
        describe: most clips to write a text for, evenly spread; 0 takes the loss alone.
        max_new_tokens: most tokens of a text.
        workers: processes that decode.
        quiet: show no bar.

    Raises:
        ValueError: a number out of range; no clip can be read.
    """
    if describe < 0:
        raise ValueError(f"describe: wanted at least 0, got {describe}")
    device, mask = next(model.layers.parameters()).device, MaskConfig(ratio=0.0) if mask is None else mask
    own = clips_of(dataset.entries)
    shown_of = set(list(own)[:: -(-len(own) // describe)]) if describe else set()
    training, total, tokens, clips = model.training, 0.0, 0, 0
    entries: list[int] = []
    texts: list[str] = []
    model.eval()
    try:
        with progress(len(own), "held-out clips", "clip", quiet=quiet) as advance:
            for batch, good in heldout_batches(dataset, batch_size, workers, wanted=list(own)):
                advance(len(batch["index"]))
                if not good:
                    continue
                found = batch["index"].tolist()
                vision = see(model, batch, mask, device)
                vision = Vision(vision.tokens[good], vision.mask[good])
                captions = [own[found[row]].captions[0] for row in good]
                count = sum(model.texts.targets([prompt] * len(good), captions, device, ended=True).counts)
                total += float(model(vision, captions, prompts=prompt)) * count
                tokens, clips = tokens + count, clips + len(good)
                chosen = [place for place, row in enumerate(good) if found[row] in shown_of]
                if chosen:
                    shown = Vision(vision.tokens[chosen], vision.mask[chosen])
                    texts += model.generate(shown, prompt, max_new_tokens)
                    entries += [found[good[place]] for place in chosen]
    finally:
        model.train(training)
    references = [list(own[entry].captions) for entry in entries]
    scores = {"loss": total / tokens, "clips": float(clips), "broken": float(len(own) - clips)}
    if texts:
        scores |= {"described": float(len(texts))} | _text_scores(texts, references)
    return CaptionEvaluation(scores=scores, entries=entries, texts=texts, references=references)


def _text_scores(texts: list[str], references: list[list[str]]) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of few clips; the report says it beside the score
        found = metrics.captions(texts, references, tokenize=True)
    return {name: value for name, value in found.items() if isinstance(value, float)}
