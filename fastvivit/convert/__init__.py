"""Weights of other libraries in and out, one file a foreign layout."""

from fastvivit.convert.hf_videomae import from_hf_videomae
from fastvivit.convert.hf_vivit import from_hf_vivit, to_hf_state_dict
from fastvivit.convert.image_vit import from_image_vit
from fastvivit.convert.report import ImportReport

__all__ = ["ImportReport", "from_hf_videomae", "from_hf_vivit", "from_image_vit", "to_hf_state_dict"]
