"""Adaptation of an encoder: freeze most of it, train a few of its layers or small new modules in it.

Every function here freezes the encoder but for what it says, and returns the parameters that are left to train, in
the order of ``enc.parameters()``. Always trained: the final norm and pooling. Trained but for ``last_layers``: the
3-D patch embedding, new in the video domain (paper, section 4), with its positions, which begin as copies over time
and would keep the encoder blind to order, and the gates of temporal and cross-view attention, which begin shut.
The 2-D image embedding trains with ``images=True`` alone, and learns from images. A block with nothing to train
drops no branch (``drop_path``). Tune before the optimiser is made, and after ``extend_frames``.
"""

from fastvivit.tune.files import load, save
from fastvivit.tune.methods import add_adapters, add_lora, apply, last_layers, merge_lora, temporal_only

__all__ = ["add_adapters", "add_lora", "apply", "last_layers", "load", "merge_lora", "save", "temporal_only"]
