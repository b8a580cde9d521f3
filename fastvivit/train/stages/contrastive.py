"""Contrastive training: clips against captions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastvivit.modules.dual import VideoTextModel
from fastvivit.train.build import build_model
from fastvivit.train.config import TrainConfig
from fastvivit.train.evaluate import Evaluation, evaluate
from fastvivit.train.page import Page
from fastvivit.train.report import best_matches, score_table
from fastvivit.train.stages.base import Stage
from fastvivit.train.step import draw_masks

_SEARCHES = 4


class Contrastive(Stage):
    """A dual encoder from scratch, symmetric InfoNCE; scored by retrieval."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config, config.model)

    def build(self, run: Path) -> VideoTextModel:
        """See ``build_model``."""
        return build_model(self.config, self.captions)

    def prepare(self, model: VideoTextModel, run: Path, *, quiet: bool) -> None:
        """Nothing: everything is trained, from its first step on."""

    def losses(self, model: VideoTextModel, batch: dict[str, Any], device: torch.device) -> dict[str, Tensor]:
        """The loss, and ``scale``, which multiplies the cosines.

        With an auxiliary loss also its parts: ``contrastive``, and ``mlm`` or ``captioning``.
        """
        keep = draw_masks(batch["mask_seed"], self.config.model.views, self.config.mask)
        video = batch["video"].to(device, non_blocking=True)
        keep = None if keep is None else keep.to(device, non_blocking=True)
        parts = model.losses(video, batch["caption"], keep=keep, text_seeds=batch["mask_seed"].tolist())
        loss = parts.pop("loss")
        return {"loss": loss, "scale": model.scale} | (parts if len(parts) > 1 else {})

    def evaluate(self, model: VideoTextModel, *, last: bool) -> Evaluation | None:
        """Retrieval among the held-out clips, unmasked."""
        if self.heldout is None:
            return None
        config = self.config
        return evaluate(model, self.heldout, batch_size=config.batch_size, workers=config.data.workers)

    def report(self, page: Page, evaluation: Evaluation, *, drawable: bool) -> None:
        """Scores, and the best matches of some captions."""
        page.heading(f"Scores on {evaluation.scores['clips']:.0f} held-out clips, unmasked")
        score_table(page, {"this run": evaluation})
        if drawable:
            page.heading("Best matches of some held-out captions")
            every = -(-len(evaluation.captions) // _SEARCHES)
            for query in range(0, len(evaluation.captions), every):
                best_matches(page, evaluation, self.heldout, query)
