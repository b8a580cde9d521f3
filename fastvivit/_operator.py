"""Registering an op with PyTorch: one schema, one kernel entry, one fake, one gradient formula.

The gradient is an ``autograd.Function`` at the op's Autograd key, which calls the op again below that key.
That leaves out the Python layers that ``torch.library.custom_op`` + ``register_autograd`` put around each call,
and ``torch.compile`` still sees one opaque operator.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.util import find_spec

import torch

LIBRARY = torch.library.Library("fastvivit", "DEF")
_below_autograd = torch._C._AutoDispatchBelowAutograd
_grad_enabled = torch.is_grad_enabled
_transforms_active = torch._C._are_functorch_transforms_active


def define(schema: str, kernel: Callable, fake: Callable, flops: Callable | None = None) -> torch._ops.OpOverload:
    """Define ``fastvivit::<schema>`` with its kernel (of every device), fake and FLOP formula."""
    name = schema[: schema.index("(")]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("CPU", "CUDA"):
        LIBRARY.impl(name, kernel, key)
    torch.library.register_fake(f"fastvivit::{name}", fake, lib=LIBRARY)
    packet = getattr(torch.ops.fastvivit, name)
    if flops is not None:
        _register_flops(packet, flops)
    return packet.default


def differentiable(overload: torch._ops.OpOverload, function: type[torch.autograd.Function]) -> None:
    """Make ``function`` the gradient formula of ``overload``, for calls in which a gradient is wanted."""
    name = overload._schema.name.removeprefix("fastvivit::")
    tensors = [i for i, a in enumerate(overload._schema.arguments) if "Tensor" in str(a.type)]

    def autograd(*args):
        if _transforms_active():
            raise RuntimeError(
                f"fastvivit::{name} does not support torch.func transforms (grad, jvp, ...): its kernels are "
                "opaque to them. Use tensor.backward() or torch.autograd.grad."
            )
        if _grad_enabled():
            for i in tensors:
                if args[i] is not None and args[i].requires_grad:
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
    """Let PyTorch differentiate what runs inside a kernel, where dispatch has already passed autograd."""
    exclude = torch._C._dispatch_tls_local_exclude_set()
    for key in ("AutogradOther", "AutogradCPU", "AutogradCUDA", "AutogradNestedTensor", "ADInplaceOrView"):
        exclude = exclude.remove(getattr(torch._C.DispatchKey, key))
    with (
        torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), exclude),
        torch.enable_grad(),
    ):
        yield


class _FlopCounterImport(MetaPathFinder):
    """Registers FLOP formulas when ``torch.utils.flop_counter`` is first imported.

    Importing it ourselves would import triton (0.4 s) and, where there is none, log a warning about it.
    """

    name = "torch.utils.flop_counter"

    def __init__(self) -> None:
        self.formulas: list[tuple] = []

    def find_spec(self, fullname, path, target=None):
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            for packet, formula in self.formulas:
                module.register_flop_formula(packet)(formula)

        spec.loader.exec_module = exec_module
        return spec


_flop_counter_import = _FlopCounterImport()
if _FlopCounterImport.name not in sys.modules:
    sys.meta_path.insert(0, _flop_counter_import)


def _register_flops(packet: torch._ops.OpOverloadPacket, formula: Callable) -> None:
    module = sys.modules.get(_FlopCounterImport.name)
    if module is None:
        _flop_counter_import.formulas.append((packet, formula))
    else:
        module.register_flop_formula(packet)(formula)
