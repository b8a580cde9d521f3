"""The paper's comparison systems (section 6.2): choose frames first, or caption parts and merge the captions."""

from fastvivit.modular.aggregator import SUMMARY, Aggregate, CaptionAggregator
from fastvivit.modular.chat import ChatModel, read_choice
from fastvivit.modular.frames import fit_frames, uniform_segments
from fastvivit.modular.selector import FrameSelector, ModelScorer, Selection

__all__ = [
    "SUMMARY",
    "Aggregate",
    "CaptionAggregator",
    "ChatModel",
    "FrameSelector",
    "ModelScorer",
    "Selection",
    "fit_frames",
    "read_choice",
    "uniform_segments",
]
