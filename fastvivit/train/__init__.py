"""Training: one configuration, one loop, exact resume, a report."""

from fastvivit.modules.auxiliary import AuxiliaryConfig
from fastvivit.train.checkpoint import latest_checkpoint
from fastvivit.train.config import (
    DataConfig,
    InitConfig,
    MaskConfig,
    OptimiserConfig,
    RunConfig,
    ScheduleConfig,
    TextConfig,
    TrainConfig,
)
from fastvivit.train.evaluate import Evaluation, evaluate
from fastvivit.train.journal import read_metrics
from fastvivit.train.loop import fit
from fastvivit.train.step import NonFiniteLoss

__all__ = [
    "AuxiliaryConfig",
    "DataConfig",
    "Evaluation",
    "InitConfig",
    "MaskConfig",
    "NonFiniteLoss",
    "OptimiserConfig",
    "RunConfig",
    "ScheduleConfig",
    "TextConfig",
    "TrainConfig",
    "evaluate",
    "fit",
    "latest_checkpoint",
    "read_metrics",
]
