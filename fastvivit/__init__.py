"""fastvivit: encoders for long video on packed tokens, and the kernels that carry them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from fastvivit import functional, metrics
from fastvivit._backends import BackendError
from fastvivit.models import ViViTConfig
from fastvivit.modules.auxiliary import AuxiliaryConfig
from fastvivit.modules.cross import AttentionPool
from fastvivit.modules.dual import VideoTextModel
from fastvivit.modules.perceiver import PerceiverResampler
from fastvivit.modules.pooling import temporal_mean
from fastvivit.modules.text import TextTower
from fastvivit.modules.tubelets import Tubelets
from fastvivit.modules.vivit import EncoderOutput, ViViT
from fastvivit.tubes import Tube

__version__ = "0.1.0"

__all__ = [
    "AttentionPool",
    "AuxiliaryConfig",
    "BackendError",
    "EncoderOutput",
    "ImportReport",
    "PerceiverResampler",
    "Plan",
    "TextTower",
    "Tube",
    "Tubelets",
    "VideoCaptioner",
    "VideoTextModel",
    "ViViT",
    "ViViTConfig",
    "Vision",
    "accelerate",
    "contrastive",
    "data",
    "evaluation",
    "from_hf_videomae",
    "from_hf_vivit",
    "from_image_vit",
    "functional",
    "hf",
    "load_pretrained",
    "metrics",
    "modular",
    "plan",
    "restore",
    "save_pretrained",
    "temporal_mean",
    "train",
    "tune",
]

# Loaded when first used: `import fastvivit` needs torch and nothing else.
_LAZY = {name: f"fastvivit.{name}" for name in ("contrastive", "data", "evaluation", "hf", "modular", "train", "tune")}
_LAZY_NAMES = dict.fromkeys(
    ("ImportReport", "from_hf_videomae", "from_hf_vivit", "from_image_vit"), "fastvivit.convert"
)
_LAZY_NAMES |= dict.fromkeys(("accelerate", "restore"), "fastvivit.hf.accelerate")
_LAZY_NAMES |= dict.fromkeys(("VideoCaptioner", "Vision"), "fastvivit.caption")
_LAZY_NAMES |= {"plan": "fastvivit.planning", "Plan": "fastvivit.planning"}
_LAZY_NAMES |= {"load_pretrained": "fastvivit.pretrained", "save_pretrained": "fastvivit.pretrained"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return import_module(_LAZY[name])
    if name in _LAZY_NAMES:
        return getattr(import_module(_LAZY_NAMES[name]), name)
    raise AttributeError(f"module 'fastvivit' has no attribute {name!r}")
