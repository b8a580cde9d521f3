"""Forwards replaced on single modules, never on their class, and put back.

A replaced forward is a ``functools.partial`` in the module's ``__dict__`` and holds what it replaced. So there is no
record beside the model that a deepcopy, a pickle or a move between models could leave behind: the copy's partials
refer to the copy's modules, and either model can be undone by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from torch import nn

_MARK = "fastvivit_before"
# What nn.DataParallel asks of every module. Its replicas copy the __dict__, and with it a forward bound to the module
# that was copied.
_REPLICATE = "_replicate_for_data_parallel"


def class_forward(module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
    """The forward of the module's class."""
    return type(module).forward(module, *args, **kwargs)


def refuse_replica() -> NoReturn:
    """Stands for a replaced module's ``_replicate_for_data_parallel``, and tells that the module is one."""
    raise ValueError(
        "model: wanted DistributedDataParallel, or a model whose forwards fv.restore or VideoCaptioner.remove has put "
        "back, got torch.nn.DataParallel"
    )


def replace(module: nn.Module, function: Callable, *args: Any) -> partial:
    """Make ``module(...)`` run ``function(module, original, *args, ...)``.

    Args:
        module: its ``__dict__`` gets a ``forward``, and a refusal of ``nn.DataParallel``.
        function: of a module's top level, so that the model can be pickled. ``original`` is the forward
            there was before, bound to the module.
        args: whatever the function needs; copied and pickled with the module.

    Returns:
        The new forward.
    """
    before = module.__dict__.get("forward")
    forward = partial(function, module, partial(class_forward, module) if before is None else before, *args)
    setattr(forward, _MARK, (function, before))
    module.__dict__["forward"] = forward
    module.__dict__[_REPLICATE] = refuse_replica
    return forward


def replaced(module: nn.Module) -> partial | None:
    """The forward that ``replace`` gave this module, or None."""
    forward = module.__dict__.get("forward")
    # functools.update_wrapper copies the mark to the wrapper, but not what the wrapper runs.
    ours = isinstance(forward, partial) and forward.func is getattr(forward, _MARK, (None,))[0]
    return forward if ours else None


def undo(model: nn.Module) -> None:
    """Put back every forward that ``replace`` replaced in ``model`` and the modules within.

    Raises ``ValueError`` where someone else has replaced one since, before anything is put back.
    """
    done = [
        (name, module) for name, module in model.named_modules() if module.__dict__.get(_REPLICATE) is refuse_replica
    ]
    for name, module in done:
        if "forward" in module.__dict__ and replaced(module) is None:
            raise ValueError(
                f"model: wanted the forward that fastvivit left in {name or 'the model itself'} "
                f"({type(module).__name__}), got one that replaced it since: take that away first"
            )
    for _, module in done:
        del module.__dict__[_REPLICATE]
        while (forward := replaced(module)) is not None:
            _, before = getattr(forward, _MARK)
            if before is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = before
