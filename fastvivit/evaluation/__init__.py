"""The paper's evaluation set-ups over manifests, and its systems compared on the same clips (section 6)."""

from fastvivit.evaluation.clips import Clip, Reading, read_clips
from fastvivit.evaluation.compare import (
    Comparison,
    captioning,
    compare,
    multiple_choice,
    summarise,
)
from fastvivit.evaluation.retrieval import retrieval
from fastvivit.evaluation.setups import SETUPS, Setup
from fastvivit.evaluation.systems import Aggregated, Asking, Direct, Selected, System, as_system

__all__ = [
    "SETUPS",
    "Aggregated",
    "Asking",
    "Clip",
    "Comparison",
    "Direct",
    "Reading",
    "Selected",
    "Setup",
    "System",
    "as_system",
    "captioning",
    "compare",
    "multiple_choice",
    "read_clips",
    "retrieval",
    "summarise",
]
