"""New layers in front of the blocks of a language model that stays what it is.

A block's forward is replaced on that one module (see ``hf/patches``); the new layer belongs to the captioner. So the
model keeps its class, its state dict and its own ``generate``, and answers without a clip exactly as it did before.
What a call's layers see travels beside it, in a thread's own variable.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastvivit.caption.language import find_blocks
from fastvivit.caption.media import Media
from fastvivit.hf.patches import replace, replaced, undo
from fastvivit.modules.offload import HostOffload
from fastvivit.modules.recompute import checkpointed


class Insertion:
    """Ties the new layers of one captioner together: a layer sees the media of its own captioner alone.

    Args:
        layers: the new layers, each ``layer(hidden, media) -> hidden``.
        width: of the hidden states.

    Attributes:
        checkpointing: compute a block and its new layer again in the backward instead of keeping their activations.
        offload: what moves the inputs that are kept then to host memory, or None.
        active: whether the layers are in a language model.
    """

    def __init__(self, layers: nn.ModuleList, width: int) -> None:
        self.layers, self.width = layers, width
        self.checkpointing, self.active = False, False
        self.offload: HostOffload | None = None


class _Here(threading.local):
    def __init__(self) -> None:
        self.seen: tuple[Insertion, Media] | None = None


_here = _Here()


@contextmanager
def seeing(insertion: Insertion, media: Media) -> Iterator[None]:
    """For as long as this lasts, in this thread, the layers of ``insertion`` see ``media``.

    Raises:
        ValueError: layers that have been taken out of their language model.
    """
    if not insertion.active:
        raise ValueError("lm: wanted a language model with the new layers in it, got one after remove()")
    before, _here.seen = _here.seen, (insertion, media)
    try:
        yield
    finally:
        _here.seen = before


def insert(lm: nn.Module, every: int, insertion: Insertion) -> None:
    """Put the layers of ``insertion`` in front of each ``every``-th block.

    Raises:
        ValueError: a model that has such layers already.
    """
    blocks = find_blocks(lm)
    if any(replaced(block) is not None for block in blocks):
        raise ValueError("lm: wanted a language model alone, got one that another VideoCaptioner holds: remove() first")
    for number in range(len(insertion.layers)):
        replace(blocks[every * (number + 1) - 1], _block_forward, insertion, number)
    insertion.active = True


def remove(lm: nn.Module, insertion: Insertion) -> None:
    """Take the layers of ``insert`` away; a second time changes nothing."""
    if insertion.active:
        undo(lm)
        insertion.active = False


def _block_forward(
    block: nn.Module, original: Callable, insertion: Insertion, number: int, /, *args: Any, **kwargs: Any
) -> Any:
    """A block's forward behind its new layer; alone where no clip is looked at."""
    seen = _here.seen
    if seen is None or seen[0] is not insertion:
        return original(*args, **kwargs)
    media, layer = seen[1], insertion.layers[number]
    # Hidden states come first in every model's block, in some by name.
    by_name = not args
    hidden, rest = (kwargs.pop("hidden_states"), ()) if by_name else (args[0], args[1:])
    if hidden.dim() != 3 or hidden.shape[2] != insertion.width:
        raise ValueError(
            f"lm: wanted hidden states (R, n, {insertion.width}) before its blocks, got {tuple(hidden.shape)} in "
            f"{type(block).__name__}"
        )

    def run(hidden: Tensor) -> Any:
        hidden = layer(hidden, media)
        return original(hidden_states=hidden, **kwargs) if by_name else original(hidden, *rest, **kwargs)

    wanted = insertion.checkpointing or getattr(block, "gradient_checkpointing", False)
    if wanted and torch.is_grad_enabled() and layer.training:
        return checkpointed(run, hidden, offload=insertion.offload)
    return run(hidden)
