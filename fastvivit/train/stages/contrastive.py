"""Contrastive training: clips and images against captions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastvivit.contrastive import ContrastivePart, chunked_backward, contrastive_losses
from fastvivit.modules.dual import VideoTextModel
from fastvivit.modules.tubelets import Tubelets
from fastvivit.modules.vivit import ViViT
from fastvivit.pretrained import load_pretrained, save_pretrained
from fastvivit.train.config import TrainConfig
from fastvivit.train.evaluate import Evaluation, evaluate
from fastvivit.train.page import Page
from fastvivit.train.report import best_matches, score_table
from fastvivit.train.stages.base import Stage
from fastvivit.train.start import begin_from_images, build_dual, load_dual_start
from fastvivit.train.step import draw_masks
from fastvivit.train.words import unread

_SEARCHES = 4


class Contrastive(Stage):
    """A dual encoder, symmetric InfoNCE; scored by retrieval. Its stages differ in what they begin with and train."""

    headline = ("t2v_r1", True)
    spreads = True

    def __init__(self, config: TrainConfig) -> None:
        if config.start is None and config.tuning.method != "all":  # what is frozen would stay as it was drawn
            raise ValueError(f"tuning.method: wanted 'all' for an encoder from scratch, got {config.tuning.method!r}")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.seed)  # and leave a GPU's, the caller's, alone
            self._start = load_dual_start(config)
        encoder = self._start.video if isinstance(self._start, VideoTextModel) else self._start
        super().__init__(config, config.model if encoder is None else encoder.config)
        if encoder is not None and encoder.imported is not None:
            self.remarks += [f"start: {note}" for note in encoder.imported.notes]
        self._images = any(dataset.kind == "image" for dataset in self.sources)
        self._clips = any(dataset.kind == "video" for dataset in self.sources)
        if config.stage == "images" and self._clips:
            raise ValueError("data: wanted images alone in stage 'images', got clips")
        if self.heldout is not None:
            self._require_path(self.heldout.kind, encoder)

    def _require_path(self, kind: str, encoder: ViViT | None) -> None:
        """Refuse to score what the encoder has no trained path for, at the first step instead of the first scores."""
        if kind == "video" and not self._clips and (encoder is None or self.config.stage == "images"):
            raise ValueError("data.heldout: wanted images, as what is trained on, got clips")
        if kind == "image" and not self._images and (encoder is None or encoder.image is None):
            raise ValueError("data.heldout: wanted clips, as what is trained on, got images")

    def build(self, run: Path) -> VideoTextModel:
        """See ``build_dual``."""
        captions = self.captions
        model = build_dual(self.config, self._start, captions, images=self._images, clips=self._clips)
        self.remarks += unread(model.text, captions)
        return model

    def prepare(self, model: VideoTextModel, run: Path, *, quiet: bool) -> None:
        """Nothing: everything is trained, from its first step on."""

    def losses(
        self, model: VideoTextModel, batches: Sequence[dict[str, Any]], device: torch.device
    ) -> dict[str, Tensor]:
        """The weighted mean of the sources' losses, and ``scale``, which multiplies the cosines.

        With an auxiliary loss also its parts: ``contrastive``, and ``mlm`` or ``captioning``. Of several sources the
        loss of each, too: ``loss_0``, ``loss_1``, …
        """
        gather = not self.ranks.alone
        found = contrastive_losses(model, self._parts(model, batches), loss=self.config.loss, gather=gather)
        return self._noted(found, model)

    def backward(
        self, model: VideoTextModel, batches: Sequence[dict[str, Any]], device: torch.device
    ) -> dict[str, Tensor]:
        """See ``Stage``; with ``memory.chunk`` in the memory of a chunk."""
        config = self.config
        if not config.memory.chunk:
            return super().backward(model, batches, device)
        parts = self._parts(model, batches)
        with self.autocast(device):
            found = chunked_backward(
                model,
                parts,
                chunk=self._chunks(model, parts),
                loss=config.loss,
                gather=not self.ranks.alone,
                prefix=config.memory.prefix,
            )
            return self._noted(found, model)

    def _noted(self, found: dict[str, Tensor], model: VideoTextModel) -> dict[str, Tensor]:
        """What the journal is told; the contrastive part is the loss itself where there is no other."""
        if model.auxiliary is None:
            del found["contrastive"]
        return {"loss": found.pop("loss"), "scale": model.scale.detach()} | found

    def _parts(self, model: VideoTextModel, batches: Sequence[dict[str, Any]]) -> list[ContrastivePart]:
        """The batches with the masks that their samples drew."""
        parts = []
        for batch in batches:
            video, keep = batch["video"], None
            if not isinstance(video, Tubelets):
                views, mask = model.video.config.views, self.config.masks[batch["source"]]
                if _still(video):  # there is one time slot, so that tubes are random and frames are all there is
                    views, mask = model.video.image.views((1, *video.shape[2:])), replace(mask, strategy="random")
                keep = draw_masks(batch["mask_seed"], views, mask)
            parts.append(
                ContrastivePart(
                    video,
                    batch["caption"],
                    keep=keep,
                    weight=self.config.sources[batch["source"]].weight,
                    text_seeds=batch["mask_seed"].tolist(),
                )
            )
        return parts

    def _chunks(self, model: VideoTextModel, parts: Sequence[ContrastivePart]) -> list[int]:
        """``memory.chunk`` samples a pass; of images beside clips, as many as come to the clips' kept tokens."""
        chunk = self.config.memory.chunk
        clips = [_tokens(model, part) for part in parts if not _still(part.video)]
        return [
            chunk * max(max(clips) // _tokens(model, part), 1) if clips and _still(part.video) else chunk
            for part in parts
        ]

    def evaluate(self, model: VideoTextModel, *, last: bool) -> Evaluation | None:
        """Retrieval among the held-out clips, unmasked."""
        if self.heldout is None:
            return None
        config = self.config
        share = config.batch_size // self.ranks.size
        if config.memory.chunk:
            share = min(share, config.memory.chunk)  # a large batch fits because it is never alive at once
        device = model.logit_scale.device
        return evaluate(
            model,
            self.heldout,
            batch_size=share,
            workers=config.data.workers,
            ranks=self.ranks,
            context=lambda: self.autocast(device),
        )

    def finish(self, folder: Path) -> None:
        """After images alone the path for clips begins as theirs: the model encodes clips, also away from its run."""
        if self.config.stage == "images":
            model = load_pretrained(folder)
            begin_from_images(model.video, "average", 0.0)
            save_pretrained(model, folder)

    def report(self, page: Page, evaluation: Evaluation, *, drawable: bool) -> None:
        """Scores, and the best matches of some captions."""
        page.heading(f"Scores on {evaluation.scores['clips']:.0f} held-out clips, unmasked")
        score_table(page, {"this run": evaluation})
        if drawable:
            page.heading("Best matches of some held-out captions")
            every = -(-len(evaluation.captions) // _SEARCHES)
            for query in range(0, len(evaluation.captions), every):
                best_matches(page, evaluation, self.heldout, query)


def _tokens(model: VideoTextModel, part: ContrastivePart) -> int:
    """Tokens that the encoder takes of a sample, the most of a part."""
    video, keep = part.video, part.keep
    if isinstance(video, Tubelets):
        return max(video.counts)
    if keep is not None:
        return keep.ids.shape[1]
    views = model.video.image.views((1, *video.shape[2:])) if _still(video) else model.video.config.views
    return sum(map(math.prod, views))


def _still(video: Tensor | list[Tensor] | Tubelets) -> bool:
    """Whether these are images."""
    if isinstance(video, Tubelets):
        return len(video.size) == 2
    return isinstance(video, Tensor) and video.dim() == 4
