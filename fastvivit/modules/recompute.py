"""Memory for time: what a layer keeps for its backward, and what it computes again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fastvivit._autocast import autocast_dtype
from fastvivit.modules.offload import HostOffload, offloading

POLICIES = ("full", "selective")


def require_policy(policy: str, offload: bool) -> None:
    """Raise ``ValueError`` for an unknown policy, or one that keeps nothing to offload."""
    if policy not in POLICIES:
        raise ValueError(f"policy: wanted one of {', '.join(map(repr, POLICIES))}, got {policy!r}")
    if offload and policy != "full":
        raise ValueError(f"offload: wanted policy 'full' beside it, got {policy!r}")


def checkpointed(function: Callable[..., Any], *args: Any, offload: HostOffload | None = None) -> Any:
    """``function(*args)``, of which the tensors among ``args`` alone are kept, and all else is computed again."""
    with offloading(offload):
        return checkpoint(function, *args, use_reentrant=False)


def through(layer: Callable[[Tensor], Tensor], cheap: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``layer(cheap(x))``, for whose backward ``x`` is kept, and ``cheap(x)`` computed again.

    The same numbers as without it, to the bit. ``torch.utils.checkpoint`` with a policy does the same to a whole
    block, but has to see every op go by, and keeps the result of a block's last product, which no backward needs.
    Compiled, it is ``layer(cheap(x))``: the compiler weighs by itself what to compute again.

    Args:
        layer: a linear layer, or one that adds to it.
        cheap: a norm, an activation, a move of rows: without randomness, and its backward may want ``x``, not its
            result.
        x: (M, K).

    Returns:
        (M, D).
    """
    if torch.compiler.is_compiling():
        return layer(cheap(x))
    source, settings = x.detach(), _autocast_of(x)

    def again() -> Tensor:
        with torch.no_grad(), torch.autocast(x_device, **settings):
            return _narrow(cheap(source))

    x_device = x.device.type
    if not _widens(x):
        rows = _narrow(cheap(x))
    else:
        wide = x.float()
        with remade(wide, source.float):
            rows = _narrow(cheap(wide))
    with remade(rows, again):
        return layer(rows)


def _autocast_of(x: Tensor) -> dict[str, Any]:
    kind = x.device.type
    return {
        "enabled": torch.is_autocast_enabled(kind),
        "dtype": torch.get_autocast_dtype(kind),
        "cache_enabled": torch.is_autocast_cache_enabled(),
    }


def _narrow(rows: Tensor) -> Tensor:
    """As autocast gives them to a product: cast within the product, the copy it keeps would be a stranger."""
    dtype = autocast_dtype(rows)
    return rows if dtype is None or rows.dtype == torch.float64 else rows.to(dtype)


def _widens(x: Tensor) -> bool:
    """Whether a norm casts its input to float32 by itself, and keeps that instead: under autocast on a GPU."""
    return x.is_cuda and x.dtype in (torch.bfloat16, torch.float16) and autocast_dtype(x) is not None


def remade(tensor: Tensor, make: Callable[[], Tensor]) -> AbstractContextManager:
    """Within, ``tensor`` is saved for a backward as the function that makes it again."""
    address, shape = tensor.untyped_storage()._cdata, tensor.shape

    def pack(saved: Tensor) -> Tensor | Callable[[], Tensor]:
        own = saved.untyped_storage()._cdata == address and saved.shape == shape
        return make if own else saved

    def unpack(packed: Tensor | Callable[[], Tensor]) -> Tensor:
        return packed if isinstance(packed, Tensor) else packed()

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)
