"""Registering an op with PyTorch: one schema, one kernel entry, one fake, one gradient formula.

The gradient is an ``autograd.Function`` at the op's Autograd key, which calls the op again below that key.
That leaves out the Python layers that ``torch.library.custom_op`` + ``register_autograd`` put around each call,
and ``torch.compile`` still sees one opaque operator. A plain eager call leaves out the dispatcher as well: it passes
twice through Python, at 7 microseconds a time.
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
_compiling = torch.compiler.is_compiling
_WATCHERS = (
    torch._C._len_torch_dispatch_stack,
    torch._C._len_torch_function_stack,
    torch._C._autograd._profiler_enabled,
    torch._C._get_tracing_state,
    _transforms_active,
)
_PLAIN = (torch.Tensor, torch.nn.Parameter)


class Operator:
    """``fastvivit::name``, called from Python. Eager calls that nothing watches go straight to its kernel."""

    __slots__ = ("function", "kernel", "overload", "where")

    def __init__(self, overload: torch._ops.OpOverload, kernel: Callable) -> None:
        self.overload, self.kernel = overload, kernel
        self.function: type[torch.autograd.Function] | None = None
        self.where = [i for i, a in enumerate(overload._schema.arguments) if "Tensor" in str(a.type)]

    def __call__(self, *args):
        if _compiling() or self._seen(args):
            return self.overload(*args)
        if self.function is not None and _grad_enabled():
            for i in self.where:
                if args[i] is not None and args[i].requires_grad:
                    return self.function.apply(*args)
        with _below_autograd():
            return self.kernel(*args)

    def below_autograd(self, *args):
        """Call it from inside its ``autograd.Function.forward``."""
        with _below_autograd():
            if _compiling() or self._seen(args):
                return self.overload(*args)
            return self.kernel(*args)

    def _seen(self, args: tuple) -> bool:
        """Whether anyone must see the call go by: a mode, a profiler, a tracer, a transform, a tensor's own class."""
        for watching in _WATCHERS:
            if watching():
                return True
        for i in self.where:
            t = args[i]
            if t is not None and (type(t) not in _PLAIN or not (t.is_cpu or t.is_cuda)):
                return True
        return False


def define(schema: str, kernel: Callable, fake: Callable, flops: Callable | None = None) -> Operator:
    """Define ``fastvivit::<schema>`` with its kernel (of every device), fake and FLOP formula."""
    name = schema[: schema.index("(")]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("CPU", "CUDA"):
        LIBRARY.impl(name, kernel, key)
    torch.library.register_fake(f"fastvivit::{name}", fake, lib=LIBRARY)
    packet = getattr(torch.ops.fastvivit, name)
    if flops is not None:
        _register_flops(packet, flops)
    return Operator(packet.default, kernel)


def differentiable(operator: Operator, function: type[torch.autograd.Function]) -> None:
    """Make ``function`` the gradient formula of ``operator``, for calls in which a gradient is wanted."""
    overload, tensors = operator.overload, operator.where
    name = overload._schema.name.removeprefix("fastvivit::")
    operator.function = function

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


def only_once_differentiable(operator: Operator) -> None:
    """Make differentiating ``operator`` (a backward op) an error, where silence would be a wrong number."""
    name = operator.overload._schema.name.removeprefix("fastvivit::")

    class NoDoubleBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            return operator.below_autograd(*args)

        @staticmethod
        def backward(ctx, *grads):
            raise RuntimeError(f"fastvivit::{name} can't be differentiated: double backward is not supported")

    differentiable(operator, NoDoubleBackward)


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
