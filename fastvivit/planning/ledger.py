"""What a step allocates and computes, op by op, without running it: under fake tensors, which carry shapes alone.

Every storage is counted once, whoever shares it, at its own size. What is counted is what PyTorch's autograd and ours
ask for; what an op takes inside itself, and what an allocator adds to it, is not.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, shape_wrapper


class Ledger(TorchDispatchMode):
    """FLOPs of the ops that run in it, and bytes of the storages they made: alive ``now``, and at the ``peak``.

    PyTorch's own ``FlopCounterMode`` leaves cycles behind in which activations outlive their use.

    Args:
        leave_out: tensors whose storages, and views of them, are not counted; nor are those on "meta".
        formulas: of FLOPs by op, from shapes, before those that ops have registered.
    """

    def __init__(self, leave_out: Iterable[Tensor], formulas: dict[object, Callable]) -> None:
        super().__init__()
        self.now = self.peak = self.flops = 0
        self._known = weakref.WeakSet(t.untyped_storage() for t in leave_out)
        self._formulas = flop_registry | {op: shape_wrapper(formula) for op, formula in formulas.items()}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:  # asked of fakes as often as all ops together
            return args[0].fake_device
        result = func(*args, **kwargs)
        formula = self._formulas.get(func.overloadpacket)
        flops = 0 if formula is None else formula(*args, **kwargs, out_val=result)
        self.flops += flops
        made = [tensor for tensor in tree_leaves(result) if isinstance(tensor, Tensor) and not tensor.is_meta]
        for tensor in made:
            self._count(tensor.untyped_storage())
        self.peak = max(self.peak, self.now)
        self.note(func, args, kwargs, made, flops)
        return result

    def note(self, func: Any, args: tuple, kwargs: dict[str, Any], made: list[Tensor], flops: int) -> None:
        """Called after every op; a subclass may write it down."""

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._known:
            self._known.add(storage)
            self.now += storage.nbytes()
            weakref.finalize(storage, self.gone, storage.nbytes(), self.place()).atexit = False

    def place(self) -> int:
        """Called for every storage that is made; what it returns comes back when the storage goes."""
        return 0

    def gone(self, size: int, place: int) -> None:
        """A storage of ``size`` bytes has gone."""
        self.now -= size


@contextmanager
def saved_storages(leave_out: Iterable[Tensor]):
    """Collect what is saved for a backward: bytes by the address of the storage, without those of ``leave_out``.

    The graph that is built inside has to outlive the reading, or an address may come back as another storage.
    """
    known = {_address(t) for t in leave_out}
    found: dict[int, int] = {}

    def pack(saved: Tensor) -> Tensor:
        if _address(saved) not in known:
            found[_address(saved)] = saved.untyped_storage().nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        yield found


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
