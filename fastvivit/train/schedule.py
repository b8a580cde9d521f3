"""The learning rate of every step."""

from __future__ import annotations

import math

from fastvivit.train.config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then half a cosine down to ``schedule.final`` of the highest rate.

    ``lr · (step + 1) / warmup`` while ``step < warmup``, then ``lr · (final + (1 - final) · ½ (1 + cos π
    p))`` with ``p = (step - warmup) / (steps - warmup)``.

    Args:
        step: counts from 0.
        config: the run.

    Returns:
        The rate of this step, above 0.
    """
    highest, warmup = config.optimiser.lr, config.schedule.warmup
    if step < warmup:
        return highest * (step + 1) / warmup
    progress = min((step - warmup) / (config.steps - warmup), 1.0)
    return highest * (config.schedule.final + (1 - config.schedule.final) * 0.5 * (1 + math.cos(math.pi * progress)))
