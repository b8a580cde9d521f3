"""One call of an accelerated model: what its forward was asked to drop, where embeddings and layers can see it.

transformers' own forwards pass no ``keep`` down, so it travels beside them, in a thread's own variable that a model
sets for the time of its forward. Gradient checkpointing runs a layer again after that, maybe after another forward:
the function it is given is made to bring its own call back.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import fastvivit.functional as F
from fastvivit.hf.patches import replace, replaced
from fastvivit.ops.tubelet_embed.geometry import Size3

_DOC = """{doc}

Beside its own arguments, as ``fv.accelerate`` made it:

Args:
    mask_ratio: share of each clip's tokens to drop before the patch product, in eval too: ``0 <= ratio < 1``.
    keep: the tokens to keep instead: (B, K) int64 ids on the (T', H', W') grid, row-major, or a list of B tensors
        of K ids each. A CLS token is not counted, and always kept. Draw them with ``F.random_keep`` where you want
        to know which were kept.
    generator: source of randomness for ``mask_ratio``.
"""

# What an accelerated forward takes beside its own arguments, with the defaults.
ARGUMENTS = (("mask_ratio", 0.0), ("keep", None), ("generator", None))


class Link:
    """Ties the modules of one accelerated model together: a module only sees calls of its own model."""


@dataclass(eq=False)
class Masking:
    """What a forward was asked to drop; shared by the models within the one that was called."""

    mask_ratio: float = 0.0
    keep: Tensor | None = None
    generator: torch.Generator | None = None
    used: bool = False

    @property
    def asked(self) -> bool:
        """Whether anything is to be dropped."""
        return self.keep is not None or self.mask_ratio != 0


@dataclass(eq=False)
class Call:
    """One running forward.

    Attributes:
        link: of the model that runs.
        masking: what was asked for.
        attentions: whether attention probabilities are wanted, which only the original attention has.
        grid: (T', H', W') of the clips, once the embeddings have seen them.
        keep: (B, K) ids that the embeddings kept, or None for all. Layers that need them must get them as an
            argument from the forward that calls them: a checkpoint wrapper that is not transformers' own runs
            a layer again without its call.
    """

    link: Link
    masking: Masking
    attentions: bool = False
    grid: Size3 | None = None
    keep: Tensor | None = None


class _Here(threading.local):
    def __init__(self) -> None:
        # In each thread's own dict from the start: torch.compile guards on what it holds before the first call.
        self.call: Call | None = None


_here = _Here()


def current(link: Link) -> Call | None:
    """The running call of this link's model, or None: the module was called by itself."""
    call = _here.call
    return call if call is not None and call.link is link else None


def choose(link: Link, batch: int, grid: Size3, device: torch.device) -> Tensor | None:
    """Ids to keep of this call's clips, (B, K) int64, or None for all; embeddings ask once, when they know the grid.

    Args:
        link: of the embeddings' model.
        batch: B clips.
        grid: (T', H', W').
        device: where the ids are needed.

    Raises:
        ValueError: a ``keep`` for another number of clips, a ``mask_ratio`` out of its range.
    """
    call = current(link)
    if call is None:
        return None
    masking = call.masking
    masking.used, call.grid, call.keep = True, grid, masking.keep
    if masking.keep is not None:
        if masking.keep.shape[0] != batch:
            raise ValueError(f"keep: wanted {batch} rows, one a clip, got shape {tuple(masking.keep.shape)}")
        call.keep = masking.keep.to(device)
    elif masking.mask_ratio:
        tokens = grid[0] * grid[1] * grid[2]
        call.keep = F.random_keep(batch, tokens, masking.mask_ratio, generator=masking.generator, device=device)
    return call.keep


def host(model: nn.Module, link: Link, layers: Sequence[nn.Module] = ()) -> None:
    """Give a model's forward ``mask_ratio``, ``keep`` and ``generator``.

    Args:
        model: a module whose own forward leads to the embeddings.
        link: of the accelerated model.
        layers: modules within that may checkpoint gradients.
    """
    forward = replace(model, model_forward, link, tuple(layers), _place(type(model).forward, "output_attentions"))
    forward.__signature__ = _signature(type(model).forward)
    forward.__doc__ = _DOC.format(doc=inspect.getdoc(type(model).forward) or "")


def taken(model: nn.Module) -> str | None:
    """The first of the names in ``ARGUMENTS`` that the forward of a model's class has already, or None."""
    own = inspect.signature(type(model).forward).parameters
    return next((name for name, _ in ARGUMENTS if name in own), None)


def link_of(model: nn.Module) -> Link | None:
    """The link a model's forward has from an earlier ``host``."""
    forward = replaced(model)
    return next((arg for arg in forward.args if isinstance(arg, Link)), None) if forward else None


def model_forward(
    model: nn.Module,
    original: Callable,
    link: Link,
    layers: tuple[nn.Module, ...],
    place: int | None,
    /,
    *args: Any,
    mask_ratio: float = 0.0,
    keep: Tensor | Sequence[Tensor] | None = None,
    generator: torch.Generator | None = None,
    **kwargs: Any,
) -> Any:
    """A model's forward within a call that says what to drop; a model within takes the outer one's call over."""
    before, outer = _here.call, current(link)
    masking = Masking(mask_ratio, _stacked(keep), generator)
    if masking.keep is not None and mask_ratio:
        raise ValueError(f"mask_ratio: wanted 0 beside keep, got {mask_ratio}")
    if not masking.asked and outer is not None:
        masking = outer.masking
    by_position = args[place] if place is not None and place < len(args) else None
    attentions = kwargs.get("output_attentions", by_position)
    if attentions is None:
        attentions = getattr(getattr(model, "config", None), "output_attentions", False)
    call = Call(link, masking, bool(attentions))
    # Compiled, a checkpoint is traced while its call runs, and must not write to a thread's variable.
    carried = [] if torch.compiler.is_compiling() else layers
    carried = [layer for layer in carried if layer.training and layer.gradient_checkpointing]
    checkpoints = [layer.__dict__.get("_gradient_checkpointing_func") for layer in carried]
    for layer, checkpoint in zip(carried, checkpoints, strict=True):
        layer.__dict__["_gradient_checkpointing_func"] = partial(_checkpointed, call, checkpoint)
    _here.call = call
    try:
        out = original(*args, **kwargs)
    finally:
        _here.call = before
        for layer, checkpoint in zip(carried, checkpoints, strict=True):
            layer.__dict__["_gradient_checkpointing_func"] = checkpoint
    if masking.asked and not masking.used:
        raise ValueError("mask_ratio, keep: wanted pixels to drop tokens of, but this call embedded none")
    return out


def _checkpointed(call: Call, checkpoint: Callable, function: Callable, /, *args: Any, **kwargs: Any) -> Any:
    return checkpoint(partial(_within, call, function), *args, **kwargs)


def _within(call: Call, function: Callable, /, *args: Any, **kwargs: Any) -> Any:
    before = _here.call
    _here.call = call
    try:
        return function(*args, **kwargs)
    finally:
        _here.call = before


def _stacked(keep: Tensor | Sequence[Tensor] | None) -> Tensor | None:
    """``keep`` as one (B, K) tensor."""
    if isinstance(keep, list | tuple):
        if not keep or not all(isinstance(ids, Tensor) and ids.dim() == 1 for ids in keep):
            raise ValueError("keep: wanted (B, K) ids, or a list of B tensors (K,), got another list")
        lengths = [ids.shape[0] for ids in keep]
        if len(set(lengths)) > 1:
            raise ValueError(
                f"keep: wanted equally many ids for each clip, got {lengths}; transformers models have one length a "
                "batch, fv.ViViT packs clips of any"
            )
        keep = torch.stack(list(keep))
    if keep is None:
        return None
    if not isinstance(keep, Tensor) or keep.dim() != 2 or keep.dtype != torch.int64:
        got = f"{keep.dtype} {tuple(keep.shape)}" if isinstance(keep, Tensor) else type(keep).__name__
        raise ValueError(f"keep: wanted (B, K) int64 ids, or a list of B tensors of them, got {got}")
    return keep


def _signature(forward: Callable) -> inspect.Signature:
    """A forward's signature without ``self``, with the new arguments."""
    old = list(inspect.signature(forward).parameters.values())[1:]
    new = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default) for name, default in ARGUMENTS]
    rest = [parameter for parameter in old if parameter.kind is inspect.Parameter.VAR_KEYWORD]
    return inspect.Signature([parameter for parameter in old if parameter not in rest] + new + rest)


def _place(forward: Callable, name: str) -> int | None:
    """Where an argument of a forward stands among those that may come by position, without ``self``; or None."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [parameter.name for parameter in inspect.signature(forward).parameters.values() if parameter.kind in kinds]
    return names.index(name) - 1 if name in names else None
