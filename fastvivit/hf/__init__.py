"""transformers models on fastvivit's ops: what ``fv.accelerate`` puts in, and subclasses that have it already.

``patches.py`` replaces the forward of single modules and undoes it, ``call.py`` carries ``mask_ratio`` and ``keep``
from a model's forward to its embeddings and layers, ``embed.py``, ``attention.py`` and ``layers.py`` are what
the modules run instead, and each family of models has a file that says where. transformers is imported when something
here is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["VivitForVideoClassification", "VivitModel"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("fastvivit.hf.models"), name)
    raise AttributeError(f"module 'fastvivit.hf' has no attribute {name!r}")
