"""What a captioner is asked, checked before anything is computed of it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastvivit.caption.vision import Vision
from fastvivit.modules.tubelets import Tubelets


def strings(name: str, value: Sequence[str]) -> list[str]:
    """A list of strings; ``ValueError`` for anything else, or none."""
    if isinstance(value, str) or not value or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{name}: wanted a list of strings, at least one, got {value!r}")
    return list(value)


def count_clips(video: Tensor | Sequence[Tensor] | Tubelets | Vision) -> int:
    """Clips of a batch; ``ValueError`` for what has no length."""
    if not isinstance(video, Tensor | Tubelets | Vision | list | tuple) or (
        isinstance(video, Tensor) and video.dim() == 0
    ):
        raise ValueError(f"video: wanted clips as ViViT takes them, or a Vision, got {type(video).__name__}")
    return len(video)


def one_a_clip(name: str, value: str | Sequence[str], clips: int) -> list[str]:
    """One prompt a clip, from one for all or as many; ``ValueError`` for another number."""
    if isinstance(value, str):
        return [value] * clips
    found = strings(name, value)
    if len(found) != clips:
        raise ValueError(f"{name}: wanted a string, or {clips} of them, one a clip, got {len(found)}")
    return found


def require_tokens(name: str, texts: Sequence[str], counts: Sequence[int]) -> None:
    """Raise ``ValueError`` for a text of no token."""
    for text, count in zip(texts, counts, strict=True):
        if not count:
            raise ValueError(f"{name}: wanted strings of at least one token, got {text!r}")
