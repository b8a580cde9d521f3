"""Video to text: gated cross-attention in a frozen language model (paper, section 3.2)."""

from fastvivit.caption.captioner import VideoCaptioner
from fastvivit.caption.gated import GatedCrossAttention
from fastvivit.caption.vision import Vision

__all__ = ["GatedCrossAttention", "VideoCaptioner", "Vision"]
