"""One optimisation step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastvivit.modules.clips import Kept, draw_keep
from fastvivit.modules.dual import VideoTextModel
from fastvivit.tokens import Views
from fastvivit.train.config import MaskConfig, TrainConfig
from fastvivit.train.schedule import learning_rate


class NonFiniteLoss(RuntimeError):
    """The loss or the gradient is NaN or infinite; nothing of that step has been saved."""


def draw_masks(seeds: Tensor, views: Views, config: MaskConfig) -> Kept | None:
    """Tokens that each clip keeps, from its own seed: the same in any batch, process or resumed run.

    Args:
        seeds: (B,) int64, one a clip.
        views: grids of a clip: one (T', H', W'), or one a tube.
        config: how much to drop, and how.

    Returns:
        Ids for the encoder; None where nothing is dropped.
    """
    if config.ratio == 0:
        return None
    drawn = []
    for seed in seeds.tolist():
        generator = torch.Generator().manual_seed(seed)
        drawn.append(draw_keep(1, views, config.ratio, generator=generator, strategy=config.strategy))
    return Kept(torch.cat([one.ids for one in drawn]), drawn[0].split)


def autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    """bfloat16 on a GPU unless the run wants float32; off on a CPU, where it gains nothing."""
    enabled = device.type == "cuda" and config.run.precision == "auto"
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def train_step(
    model: VideoTextModel,
    optimiser: torch.optim.Optimizer,
    batch: dict[str, Any],
    step: int,
    config: TrainConfig,
    device: torch.device,
) -> dict[str, float]:
    """Take step ``step`` (from 0) on a batch of ``fastvivit.data.collate``.

    Returns:
        ``loss``, ``lr``, ``grad_norm`` before clipping, and ``scale``, which multiplies the cosines. With an
        auxiliary loss also its parts: ``contrastive``, and ``mlm`` or ``captioning``.

    Raises:
        NonFiniteLoss: the weights may be spoiled then, and must not be saved.
    """
    rate = learning_rate(step, config)
    for group in optimiser.param_groups:
        group["lr"] = rate
    keep = draw_masks(batch["mask_seed"], config.model.views, config.mask)
    video = batch["video"].to(device, non_blocking=True)
    keep = None if keep is None else keep.to(device, non_blocking=True)
    with autocast(config, device):
        parts = model.losses(video, batch["caption"], keep=keep, text_seeds=batch["mask_seed"].tolist())
    loss = parts.pop("loss")
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimiser.clip)
    optimiser.step()
    # One transfer, after all work has been queued.
    values = torch.stack([loss.detach(), norm, model.scale.detach(), *map(torch.detach, parts.values())]).tolist()
    if not all(map(math.isfinite, values)):
        raise NonFiniteLoss(
            f"step {step + 1}: the loss is {values[0]} and the gradient's norm {values[1]}; a lower "
            "optimiser.lr or optimiser.clip, or a longer schedule.warmup, may help"
        )
    named = {"loss": values[0], "lr": rate, "grad_norm": values[1], "scale": values[2]}
    return named if len(parts) == 1 else named | dict(zip(parts, values[3:], strict=True))
