"""The model that ``--model`` names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from fastvivit.caption import VideoCaptioner
from fastvivit.caption.files import WEIGHTS as LAYERS
from fastvivit.caption.quiet import no_bars
from fastvivit.modular import ChatModel
from fastvivit.modules.dual import VideoTextModel
from fastvivit.train.captioner import load_found
from fastvivit.train.folders import Found, find_model


@dataclass(frozen=True, kw_only=True)
class Known:
    """What a model's run says of it.

    Attributes:
        fps: pictures per second that it was trained with; None where no run is known.
        prompt: what stood before every caption.
    """

    fps: float | None
    prompt: str


def load_model(folder: Path) -> tuple[VideoTextModel, float | None]:
    """A dual encoder, and the pictures per second that it was trained with, where that is known.

    It is in eval mode, on a GPU where there is one.

    Args:
        folder: a run (its final model, or its latest checkpoint), a checkpoint, or a folder of
            ``save_pretrained``.

    Raises:
        ValueError: no model there, or one without a text tower.
    """
    found = find_model(folder)
    if (found.place / LAYERS).is_file():  # said before a language model is loaded
        raise ValueError(
            f"model: wanted one with a text tower, got a VideoCaptioner in {found.place}, which writes texts and has "
            "no vectors for them: fastvivit caption"
        )
    model = load_found(found)
    if not isinstance(model, VideoTextModel):
        raise ValueError(f"model: wanted one with a text tower, got a {type(model).__name__} in {found.place}")
    return _placed(model), _known(found).fps


def load_captioner(folder: Path) -> tuple[VideoCaptioner, Known]:
    """A captioner, and what its run says of it; otherwise as ``load_model``.

    Raises:
        ValueError: no model there, or one that writes no texts.
    """
    found = find_model(folder)
    model = load_found(found)
    if not isinstance(model, VideoCaptioner):
        raise ValueError(
            f"model: wanted a VideoCaptioner, got a {type(model).__name__} in {found.place}; a training run of stage "
            "'video_to_text' that starts from it makes one"
        )
    return _placed(model), _known(found)


def load_chat(folder: Path, max_new_tokens: int = 128) -> ChatModel:
    """A transformers chat model, on a GPU where there is one.

    Raises:
        ValueError: no such folder, or a tokenizer without a chat template.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not folder.is_dir():
        raise ValueError(f"llm: wanted the folder of a transformers model, no such folder: {folder}")
    with no_bars():
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return ChatModel(_placed(model), tokenizer, max_new_tokens)


def clip_fps(given: float | None, known: float | None) -> float:
    """The rate to cut windows at. Raises ``ValueError`` where neither the user nor the run says it."""
    if given is None and known is None:
        raise ValueError("fps: wanted --fps, because this model's folder does not say what it was trained with")
    return given if given is not None else known


def _known(found: Found) -> Known:
    settings = found.settings
    return Known(fps=settings.get("data", {}).get("fps"), prompt=settings.get("captions", {}).get("prompt") or "")


def _placed(model: torch.nn.Module) -> torch.nn.Module:
    return model.to("cuda" if torch.cuda.is_available() else "cpu")
