"""A dual encoder over a batch in chunks, twice: without a graph, and again with one, on the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastvivit._autocast import autocast_dtype
from fastvivit._staging import Staging
from fastvivit.modules.clips import Keep, Kept
from fastvivit.modules.dual import VideoTextModel
from fastvivit.modules.passes import Begun, EncoderOutput
from fastvivit.modules.tubelets import Tubelets

PREFIXES = ("device", "host", "off")


class Encoded(NamedTuple):
    """Unit vectors (b, dim) of clips and captions, and what the video encoder made, where that is at hand."""

    video: Tensor
    text: Tensor
    out: EncoderOutput | None


@dataclass(eq=False)
class Chunk:
    """Some clips of a part with their captions, and what is kept of them between the passes.

    Attributes:
        part: which part of the batch they are of.
        rows: which clips of it.
        video: of the part, wherever it is.
        keep: of the part.
        texts: these clips' captions.
        prefix: blocks that run in the first pass alone.
        begun: what these blocks made.
        pooled: (b, D) of a video encoder that isn't trained.
        features: (b, Dt) of a text tower that isn't trained.
        random: states of the random numbers before the clips were encoded, and before the captions were.
    """

    part: int
    rows: slice
    video: Tensor | list[Tensor] | Tubelets
    keep: Keep
    texts: list[str]
    prefix: int
    begun: Begun | None = None
    pooled: Tensor | None = None
    features: Tensor | None = None
    random: tuple[Any, Any] | None = None


class TwoPasses:
    """How a model encodes a chunk in the first pass, and in the second.

    Args:
        model: the dual encoder.
        prefix: where the outputs of blocks are kept that need not run again: "device", "host", or "off", nowhere.
    """

    def __init__(self, model: VideoTextModel, prefix: str) -> None:
        self.model, self.prefix, self.device = model, prefix, model.logit_scale.device
        self.staging = Staging(self.device)
        self._trains = {tower: _trains(tower) for tower in (model.video, model.text)}

    def chunks(self, part: int, video: Any, texts: Sequence[str], keep: Keep, size: int) -> list[Chunk]:
        """A part of the batch, ``size`` clips at a time."""
        blocks = 0
        # Of an encoder that isn't trained at all the pooled vectors are kept, unless something reads its tokens.
        if self.prefix != "off" and (self._trains[self.model.video] or self.model.auxiliary is not None):
            blocks = self.model.video.frozen_blocks(images=_still(video))
        return [
            Chunk(part, slice(first, first + size), video, keep, list(texts[first : first + size]), blocks)
            for first in range(0, len(texts), size)
        ]

    def clips(self, chunk: Chunk) -> tuple[Any, Any]:
        """Video and ids of a chunk, on the device."""
        return tuple(map(self.staging.to_device, (chunk.video[chunk.rows], _rows_of(chunk.keep, chunk.rows))))

    def first(self, chunk: Chunk, clips: tuple[Any, Any], *, graph: bool) -> Encoded:
        """Encode a chunk; with ``graph`` at once as the second pass would, and then nothing of it is kept."""
        model, (video, keep) = self.model, clips
        with torch.set_grad_enabled(graph):
            if chunk.prefix:
                with torch.no_grad():
                    begun = _narrow(model.video.begin(video, keep=keep, upto=chunk.prefix))
                if not graph:
                    chunk.begun = begun
                    if self.prefix == "host":
                        chunk.begun = replace(begun, x=self.staging.to_host(begun.x))
                before_video = random_state(self.device)
                out = model.video.finish(begun)
            else:
                before_video = random_state(self.device)
                out = model.video(video, keep=keep)
            before_text = random_state(self.device)
            features = model.text(chunk.texts)
            found = Encoded(model.project_video(out), model.project_text(features), out)
        chunk.random = before_video, before_text
        if not self._trains[model.video] and model.auxiliary is None:
            chunk.pooled = out.pooled
        if not self._trains[model.text]:
            chunk.features = features
        return found

    def kept(self, chunk: Chunk) -> Any:
        """What the second pass begins with, on the device."""
        if chunk.pooled is not None:
            return None
        if chunk.begun is not None:
            return self.staging.to_device(chunk.begun.x)
        return self.clips(chunk)

    def second(self, chunk: Chunk, kept: Any) -> Encoded:
        """Encode a chunk again, with a graph, and let go of what was kept for that."""
        model, (before_video, before_text), out = self.model, chunk.random, None
        if chunk.pooled is None:
            set_random_state(self.device, before_video)
            if chunk.begun is not None:
                out = model.video.finish(replace(chunk.begun, x=kept))
            else:
                out = model.video(kept[0], keep=kept[1])
        video = model.project_video(chunk.pooled if out is None else out)
        features = chunk.features
        if features is None:
            set_random_state(self.device, before_text)
            features = model.text(chunk.texts)
        chunk.begun = chunk.pooled = chunk.features = None
        return Encoded(video, model.project_text(features), out)


def random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """States of the random numbers of the CPU and of ``device``."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def set_random_state(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    """Go on from states that ``random_state`` found."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _still(video: Any) -> bool:
    return len(video.size) == 2 if isinstance(video, Tubelets) else isinstance(video, Tensor) and video.dim() == 4


def _narrow(begun: Begun) -> Begun:
    """With float32 rows as autocast has them, so that both passes go on from what can be kept."""
    dtype = autocast_dtype(begun.x)
    return begun if dtype is None or begun.x.dtype != torch.float32 else replace(begun, x=begun.x.to(dtype))


def _rows_of(keep: Keep, rows: slice) -> Keep:
    return replace(keep, ids=keep.ids[rows]) if isinstance(keep, Kept) else keep if keep is None else keep[rows]
