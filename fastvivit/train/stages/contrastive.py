"""Contrastive training: clips and images against captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastvivit.modules.dual import VideoTextModel
from fastvivit.train.config import TrainConfig
from fastvivit.train.evaluate import Evaluation, evaluate
from fastvivit.train.page import Page
from fastvivit.train.report import best_matches, score_table
from fastvivit.train.stages.base import Stage
from fastvivit.train.start import build_dual, load_dual_start
from fastvivit.train.step import draw_masks

_SEARCHES = 4


class Contrastive(Stage):
    """A dual encoder, symmetric InfoNCE; scored by retrieval. Its stages differ in what they begin with and train."""

    spreads = True

    def __init__(self, config: TrainConfig) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self._start = load_dual_start(config)
        encoder = self._start.video if isinstance(self._start, VideoTextModel) else self._start
        super().__init__(config, config.model if encoder is None else encoder.config)
        self._images = any(dataset.kind == "image" for dataset in self.sources)
        self._clips = any(dataset.kind == "video" for dataset in self.sources)
        if config.stage == "images" and self._clips:
            raise ValueError("data: wanted images alone in stage 'images', got clips")

    def build(self, run: Path) -> VideoTextModel:
        """See ``build_dual``."""
        return build_dual(self.config, self._start, self.captions, images=self._images, clips=self._clips)

    def prepare(self, model: VideoTextModel, run: Path, *, quiet: bool) -> None:
        """Nothing: everything is trained, from its first step on."""

    def losses(
        self, model: VideoTextModel, batches: Sequence[dict[str, Any]], device: torch.device
    ) -> dict[str, Tensor]:
        """The weighted mean of the sources' losses, and ``scale``, which multiplies the cosines.

        With an auxiliary loss also its parts: ``contrastive``, and ``mlm`` or ``captioning``.
        """
        total = sum(source.weight for source in self.config.sources)
        found: dict[str, Tensor] = {}
        for batch in batches:
            share = self.config.sources[batch["source"]].weight / total
            for name, value in self._losses(model, batch, device).items():
                found[name] = found.get(name, 0.0) + share * value
        loss = found.pop("loss")
        return {"loss": loss, "scale": model.scale} | (found if len(found) > 1 else {})

    def _losses(self, model: VideoTextModel, batch: dict[str, Any], device: torch.device) -> dict[str, Tensor]:
        video = batch["video"].to(device, non_blocking=True)
        image = video.dim() == 4
        views = model.video.image.views((1, *video.shape[2:])) if image else model.video.config.views
        keep = draw_masks(batch["mask_seed"], views, self.config.mask)
        keep = None if keep is None else keep.to(device, non_blocking=True)
        seeds, gather = batch["mask_seed"].tolist(), not self.ranks.alone
        return model.losses(video, batch["caption"], keep=keep, text_seeds=seeds, gather=gather)

    def evaluate(self, model: VideoTextModel, *, last: bool) -> Evaluation | None:
        """Retrieval among the held-out clips, unmasked."""
        if self.heldout is None:
            return None
        config = self.config
        share = config.batch_size // self.ranks.size
        return evaluate(model, self.heldout, batch_size=share, workers=config.data.workers, ranks=self.ranks)

    def report(self, page: Page, evaluation: Evaluation, *, drawable: bool) -> None:
        """Scores, and the best matches of some captions."""
        page.heading(f"Scores on {evaluation.scores['clips']:.0f} held-out clips, unmasked")
        score_table(page, {"this run": evaluation})
        if drawable:
            page.heading("Best matches of some held-out captions")
            every = -(-len(evaluation.captions) // _SEARCHES)
            for query in range(0, len(evaluation.captions), every):
                best_matches(page, evaluation, self.heldout, query)
