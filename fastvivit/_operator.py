"""Registering an op with PyTorch: one schema, one kernel entry, one fake, one gradient formula.

The gradient is an ``autograd.Function`` at the op's Autograd key, which calls the op again below that key. Against
``torch.library.custom_op`` + ``register_autograd`` this halves the cost of a call (docs/performance-notes.md), and
``torch.compile`` still sees one opaque operator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.utils.flop_counter import register_flop_formula

LIBRARY = torch.library.Library("fastvivit", "DEF")
_below_autograd = torch._C._AutoDispatchBelowAutograd
_transforms_active = torch._C._are_functorch_transforms_active


def define(schema: str, kernel: Callable, fake: Callable, flops: Callable | None = None) -> torch._ops.OpOverload:
    """Define ``fastvivit::<schema>`` with its kernel (every real device), fake and FLOP formula; return the overload."""
    name = schema[: schema.index("(")]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("CPU", "CUDA"):
        LIBRARY.impl(name, kernel, key)
    torch.library.register_fake(f"fastvivit::{name}", fake, lib=LIBRARY)
    packet = getattr(torch.ops.fastvivit, name)
    if flops is not None:
        register_flop_formula(packet)(flops)
    return packet.default


def differentiable(overload: torch._ops.OpOverload, function: type[torch.autograd.Function]) -> None:
    """Make ``function`` the gradient formula of ``overload``; without gradients in play the op is called directly."""
    name = overload._schema.name.removeprefix("fastvivit::")

    def autograd(*args):
        if _transforms_active():
            raise RuntimeError(
                f"fastvivit::{name} does not support torch.func transforms (grad, vmap, jvp, ...): its kernels are "
                "opaque to them. Use tensor.backward() or torch.autograd.grad."
            )
        if torch.is_grad_enabled() and any(isinstance(a, torch.Tensor) and a.requires_grad for a in args):
            return function.apply(*args)
        with _below_autograd():
            return overload(*args)

    LIBRARY.impl(name, autograd, "Autograd")


def only_once_differentiable(overload: torch._ops.OpOverload) -> None:
    """Make differentiating ``overload`` (a backward op) an error, where silence would be a wrong number."""
    name = overload._schema.name.removeprefix("fastvivit::")

    class NoDoubleBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            with _below_autograd():
                return overload(*args)

        @staticmethod
        def backward(ctx, *grads):
            raise RuntimeError(f"fastvivit::{name} can't be differentiated: double backward is not supported")

    differentiable(overload, NoDoubleBackward)


def below_autograd(overload: torch._ops.OpOverload, *args):
    """Call ``overload`` from inside an ``autograd.Function.forward``."""
    with _below_autograd():
        return overload(*args)


@contextmanager
def recording_gradients() -> Iterator[None]:
    """Let PyTorch differentiate what runs inside a kernel, where autograd has already been dispatched past."""
    exclude = torch._C._dispatch_tls_local_exclude_set()
    for key in ("AutogradOther", "AutogradCPU", "AutogradCUDA", "AutogradNestedTensor", "ADInplaceOrView"):
        exclude = exclude.remove(getattr(torch._C.DispatchKey, key))
    with torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), exclude), torch.enable_grad():
        yield
