"""Forwards replaced on single modules, never on their class, and put back.

A replaced forward is a ``functools.partial`` in the module's ``__dict__`` and holds what it replaced. So there is no
record beside the model that a deepcopy, a pickle or a move between models could leave behind: the copy's partials
refer to the copy's modules, and either model can be undone by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

_MARK = "fastvivit_before"


def class_forward(module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
    """The forward of the module's class."""
    return type(module).forward(module, *args, **kwargs)


def replace(module: nn.Module, function: Callable, *args: Any) -> partial:
    """Make ``module(...)`` run ``function(module, original, *args, ...)``.

    Args:
        module: its ``__dict__`` gets a ``forward``.
        function: of a module's top level, so that the model can be pickled. ``original`` is the forward
            there was before, bound to the module.
        args: whatever the function needs; copied and pickled with the module.

    Returns:
        The new forward.
    """
    before = module.__dict__.get("forward")
    forward = partial(function, module, partial(class_forward, module) if before is None else before, *args)
    setattr(forward, _MARK, before)
    module.__dict__["forward"] = forward
    return forward


def replaced(module: nn.Module) -> partial | None:
    """The forward that ``replace`` gave this module, or None."""
    forward = module.__dict__.get("forward")
    return forward if isinstance(forward, partial) and hasattr(forward, _MARK) else None


def undo(model: nn.Module) -> None:
    """Put back every forward that ``replace`` replaced in ``model`` and the modules within."""
    for module in model.modules():
        while (forward := replaced(module)) is not None:
            before = getattr(forward, _MARK)
            if before is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = before
