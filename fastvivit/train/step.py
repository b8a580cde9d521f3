"""One optimisation step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastvivit.modules.clips import Kept, draw_keep
from fastvivit.tokens import Views
from fastvivit.train.parallel import average_gradients, clip_gradients
from fastvivit.train.schedule import learning_rate
from fastvivit.train.tables import MaskConfig

if TYPE_CHECKING:
    from fastvivit.train.stages.base import Stage


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


def in_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether products are taken in bfloat16: as ``precision`` says, and for "auto" on a GPU."""
    return precision == "bfloat16" or (precision == "auto" and device.type == "cuda")


def autocast(precision: str, device: torch.device, *, cache: bool = True) -> torch.autocast:
    """bfloat16 where ``in_bfloat16``; with ``cache`` a weight is cast once for all that runs inside."""
    return torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16(precision, device), cache_enabled=cache)


def train_step(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    batches: Sequence[dict[str, Any]],
    step: int,
    stage: Stage,
    device: torch.device,
) -> dict[str, float]:
    """Take step ``step`` (from 0) on the stage's batches, one a source; of several ranks each on its own part of them.

    Returns:
        ``loss``, ``lr``, ``grad_norm`` before clipping, and what else the stage's ``losses`` names; the same on every
        rank.

    Raises:
        NonFiniteLoss: the weights may be spoiled then, and must not be saved; on every rank.
    """
    config, ranks = stage.config, stage.ranks
    rate = learning_rate(step, config)
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.zero_grad(set_to_none=True)
    found = stage.backward(model, batches, device)
    loss = found.pop("loss")
    average_gradients(model, ranks)
    norm = clip_gradients(model, config.optimiser.clip, ranks)
    optimiser.step()
    # One transfer, after all work has been queued.
    values = ranks.mean(torch.stack([loss, norm, *found.values()])).tolist()
    if not all(map(math.isfinite, values)):
        raise NonFiniteLoss(
            f"step {step + 1}: the loss is {values[0]} and the gradient's norm {values[1]}; a lower "
            "optimiser.lr or optimiser.clip, or a longer schedule.warmup, may help"
        )
    return {"loss": values[0], "lr": rate, "grad_norm": values[1], **dict(zip(found, values[2:], strict=True))}
