"""Nothing is timed before its result is right: the budget of the op tests, and one for whole encoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .case import OURS, Contestant

# Relative RMS error above which a result is not rounding but another function.
SANE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def tensors(result: object) -> list[Tensor]:
    """What a contestant returned, as a list."""
    return [result] if isinstance(result, Tensor) else list(result)


def against(golden: Callable[[], object], contestants: dict[str, Contestant]) -> Callable[[], str | None]:
    """The gate of an op: every contestant that does the same work within 2 × PyTorch's own error + rounding.

    Args:
        golden: the results in float64.
        contestants: ours, and at least one peer with ``same``; the first of them is PyTorch's own error.

    Returns:
        A function that says what is wrong, or None.
    """

    kept: list[list[Tensor]] = []  # asked again without a peer, the definition is not worked out anew

    def gate() -> str | None:
        if not kept:
            kept.append([t.detach().double() for t in tensors(golden())])
        wanted = kept[0]
        for name, contestant in contestants.items():
            # Those that do other work have nothing to be compared with, but must run.
            if not contestant.same and isinstance(found := _result(contestant), str):
                return f"{name}: {found}"
        alike = {name: c for name, c in contestants.items() if c.same}
        first = next(name for name in alike if name != OURS)
        own = _result(alike[first])
        if isinstance(own, str):
            return f"{first}: {own}"
        for name, contestant in alike.items():
            got = own if name == first else _result(contestant)
            wrong = got if isinstance(got, str) else _beyond_budget(got, wanted, own)
            if wrong:
                return f"{name}: {wrong}"
        return None

    return gate


def _result(contestant: Contestant) -> list[Tensor] | str:
    """What its call returns, or in one line what it raises: a peer may refuse these inputs, and that is its reason."""
    try:
        found = [t.detach() for t in tensors(contestant.call())]
        if any(t.is_cuda for t in found):
            torch.cuda.synchronize()
        return found
    except Exception as error:
        return f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]


def _beyond_budget(got: Sequence[Tensor], golden: Sequence[Tensor], own: Sequence[Tensor]) -> str | None:
    if len(got) != len(golden):
        return f"{len(got)} results, wanted {len(golden)}"
    for i, (found, wanted, theirs) in enumerate(zip(got, golden, own, strict=True)):
        wrong = far_apart(found, wanted, SANE[found.dtype])
        if wrong:
            return f"result {i}: {wrong}"
        error, own_error = ((t.double() - wanted).abs().max() for t in (found, theirs))
        budget = 2 * own_error + 4 * torch.finfo(found.dtype).eps * wanted.abs().max()
        # Written this way round, NaN fails.
        if not error <= budget:
            return f"result {i}: error {error:.2e}, budget {budget:.2e}"
    return None


def far_apart(got: Tensor, wanted: Tensor, limit: float) -> str | None:
    """Say where shapes differ or the relative RMS error is above ``limit``, or None."""
    if got.shape != wanted.shape:
        return f"shape {tuple(got.shape)}, wanted {tuple(wanted.shape)}"
    wanted = wanted.double()
    error = (got.double() - wanted).square().mean().sqrt() / wanted.square().mean().sqrt().clamp(min=1e-30)
    return None if error <= limit else f"relative RMS error {error:.2e}, wanted at most {limit:.0e}"


def with_gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor
) -> Callable[[], list[Tensor]]:
    """A call of ``function(*inputs)`` and its backward: the output, and gradients of inputs that need one."""
    wanted = [t for t in inputs if t.requires_grad]

    def call() -> list[Tensor]:
        with torch.enable_grad():
            out = function(*inputs)
        return [out.detach(), *torch.autograd.grad(out, wanted, grad.view(out.shape))]

    return call


def backward_only(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor
) -> Callable[[], list[Tensor]]:
    """A call of the backward alone: the forward runs once, at the first call, and its graph is kept."""
    wanted, kept = [t for t in inputs if t.requires_grad], []

    def call() -> list[Tensor]:
        if not kept:
            with torch.enable_grad():
                kept.append(function(*inputs))
        return list(torch.autograd.grad(kept[0], wanted, grad.view(kept[0].shape), retain_graph=True))

    return call


def wrapped(direction: str) -> Callable[..., Callable[[], object]]:
    """``(function, inputs, grad) → call`` of a direction: "forward", "backward" or "forward + backward"."""
    if direction == "forward":
        return lambda function, inputs, grad: lambda: function(*inputs)
    return {"backward": backward_only, "forward + backward": with_gradients}[direction]
