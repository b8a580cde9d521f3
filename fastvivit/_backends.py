"""Choosing an implementation of an op, or saying with every reason why there is none.

An op lists its backends best first. ``auto`` takes the first that is present on this machine, is meant for
the tensors' device, and accepts these inputs; a named backend is taken or refused, never replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from types import ModuleType


class BackendError(RuntimeError):
    """No backend can run, or the named one can't. The message lists every backend with its reason."""


def _never(*_args) -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One implementation of an op.

    Attributes:
        name: what ``backend=`` takes.
        module: imported when the backend first runs; holds ``forward`` and, where there is one, ``backward``.
        absent: says why this machine can't run it, or None.
        refuses: says why it can't take these inputs (metadata only), or None. Gets the op's own arguments.
        auto: device types on which ``backend="auto"`` may pick it; None means any.
    """

    name: str
    module: str
    absent: Callable[[], str | None] = _never
    refuses: Callable[..., str | None] = _never
    auto: tuple[str, ...] | None = None

    def load(self) -> ModuleType:
        return _import(self.module)

    def why_not(self, inputs: tuple) -> str | None:
        return self.absent() or self.refuses(*inputs)


_import = cache(import_module)


@dataclass(frozen=True)
class Op:
    """A named op and its backends, best first."""

    name: str
    backends: tuple[Backend, ...]
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", ("auto", *(b.name for b in self.backends)))

    def check_name(self, backend: str) -> None:
        """Raise ``ValueError`` for a name that no backend of this op has."""
        if backend not in self.names:
            raise ValueError(f"backend: wanted one of {', '.join(map(repr, self.names))}, got {backend!r}")

    def choose(self, backend: str, device: str, *inputs) -> ModuleType:
        """Return the module that will run ``inputs``, or raise ``BackendError`` with all reasons."""
        for candidate in self.backends:
            wanted = (
                backend == candidate.name if backend != "auto" else candidate.auto is None or device in candidate.auto
            )
            if wanted and candidate.why_not(inputs) is None:
                return candidate.load()
        self.check_name(backend)
        raise BackendError(self._no_backend(backend, device, inputs))

    def _no_backend(self, backend: str, device: str, inputs: tuple) -> str:
        head = "no backend can run this" if backend == "auto" else f"backend {backend!r} can't run this"
        lines = []
        for candidate in self.backends:
            reason = candidate.why_not(inputs)
            if reason is None:
                chosen = candidate.auto is None or device in candidate.auto
                reason = "can run" if chosen else f"can run when asked for by name (auto: {', '.join(candidate.auto)})"
            lines.append(f"  {candidate.name}: {reason}")
        return f"{self.name}: {head}\n" + "\n".join(lines)
