"""The stages of training: what each has of its own."""

from __future__ import annotations

from fastvivit.train.config import TrainConfig
from fastvivit.train.stages.base import Stage


def make_stage(config: TrainConfig) -> Stage:
    """The stage that ``config.stage`` names, with its data.

    Raises:
        ValueError: bad data, a bad model to start from.
    """
    if config.stage in ("video_to_text", "finetune"):
        from fastvivit.train.stages.video_to_text import VideoToText

        return VideoToText(config)
    from fastvivit.train.stages.contrastive import Contrastive

    return Contrastive(config)


__all__ = ["Stage", "make_stage"]
