"""Training: one configuration, one loop, exact resume, a report."""

from fastvivit.modules.auxiliary import AuxiliaryConfig
from fastvivit.train.caption_tables import (
    CaptionConfig,
    CrossConfig,
    LanguageConfig,
    ResamplerConfig,
    VisionConfig,
)
from fastvivit.train.captions import CaptionEvaluation, evaluate_captions
from fastvivit.train.checkpoint import latest_checkpoint
from fastvivit.train.config import TrainConfig
from fastvivit.train.evaluate import Evaluation, evaluate
from fastvivit.train.journal import read_metrics
from fastvivit.train.loop import fit
from fastvivit.train.memory import MemoryConfig
from fastvivit.train.shortage import OutOfMemory
from fastvivit.train.step import NonFiniteLoss
from fastvivit.train.tables import (
    DataConfig,
    InitConfig,
    MaskConfig,
    OptimiserConfig,
    RunConfig,
    ScheduleConfig,
    SourceConfig,
    TextConfig,
    TuningConfig,
)
from fastvivit.train.vision import VisionCache, VisionDataset

__all__ = [
    "AuxiliaryConfig",
    "CaptionConfig",
    "CaptionEvaluation",
    "CrossConfig",
    "DataConfig",
    "Evaluation",
    "InitConfig",
    "LanguageConfig",
    "MaskConfig",
    "MemoryConfig",
    "NonFiniteLoss",
    "OptimiserConfig",
    "OutOfMemory",
    "ResamplerConfig",
    "RunConfig",
    "ScheduleConfig",
    "SourceConfig",
    "TextConfig",
    "TrainConfig",
    "TuningConfig",
    "VisionCache",
    "VisionConfig",
    "VisionDataset",
    "evaluate",
    "evaluate_captions",
    "fit",
    "latest_checkpoint",
    "read_metrics",
]
