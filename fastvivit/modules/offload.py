"""What checkpointed blocks keep waits for the backward in host memory."""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

SMALLEST = 1 << 20  # bytes; below that a transfer costs more than the memory is worth


class HostOffload:
    """Tensors saved for a backward leave the device while the forward goes on, and come back before they are needed.

    On a GPU they are copied to pinned memory on a stream of their own, beside the work. A tensor's memory is free
    again when the tensor after it is saved, so two are on the device at a time. In the backward each that is taken
    brings the one before it on its way. Pinned memory comes from PyTorch's host allocator, which keeps it from step to
    step, in powers of two. On a CPU the copy is a plain one and saves nothing.

    Parameters and tensors of less than 1 MiB stay where they are.
    """

    def __init__(self) -> None:
        self._lanes: dict[torch.device, Lane] = {}

    def __reduce__(self) -> tuple:
        # Streams can be neither copied nor pickled, and a copy of a model needs its own.
        return HostOffload, ()

    def saving(self) -> AbstractContextManager:
        """For as long as this lasts, in this thread, what autograd saves is moved."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack)

    def _pack(self, x: Tensor) -> Tensor | _Moved:
        owner = x._base if x._is_view() else x
        if x.nbytes < SMALLEST or isinstance(owner, nn.Parameter):
            return x
        lane = self._lanes.get(x.device)
        if lane is None:
            lane = self._lanes[x.device] = _CudaLane(x.device) if x.is_cuda else Lane(x.device)
        return _Moved(x.detach().contiguous(), lane)


def offloading(offload: HostOffload | None) -> AbstractContextManager:
    """``offload.saving()``, or nothing for None."""
    return nullcontext() if offload is None else offload.saving()


class _Moved:
    """One saved tensor: in host memory, on the device, or in both and on its way between them.

    Attributes:
        there: its copy in host memory.
        here: the tensor on its device, or None.
        copied: after which ``there`` (on the way out) or ``here`` (on the way back) holds it.
    """

    def __init__(self, x: Tensor, lane: Lane) -> None:
        self.here = None
        self.lane, self.there = lane, lane.host(x)
        self.copied = lane.copy(self.there, x)
        self.here = x
        self.before = lane.newest
        lane.newest = weakref.ref(self)
        before = None if self.before is None else self.before()
        if before is not None:
            before.leave()

    def leave(self) -> None:
        """Give up the memory on the device; work that is queued from here on may have it."""
        if self.here is not None:
            self.lane.wait(self.copied)
            self.here = None

    def fetch(self) -> None:
        """Start on the way back."""
        if self.here is None:
            self.here = torch.empty(self.there.shape, dtype=self.there.dtype, device=self.lane.device)
            self.copied = self.lane.copy(self.here, self.there)

    def take(self) -> Tensor:
        """The tensor, for work that is queued from here on; a second time it comes from the host again."""
        self.fetch()
        self.lane.wait(self.copied)
        x, self.here = self.here, None
        before = None if self.before is None else self.before()
        if before is not None:
            before.fetch()
        return x

    def __del__(self) -> None:
        # Fetched and never taken: nobody may have that memory before the copy into it is over.
        self.leave()


def _unpack(packed: Tensor | _Moved) -> Tensor:
    return packed.take() if isinstance(packed, _Moved) else packed


class Lane:
    """Copies between a CPU's memory and itself, done when they are asked for.

    Attributes:
        newest: the tensor that was saved last, if it is still wanted.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.newest: weakref.ref[_Moved] | None = None

    def host(self, x: Tensor) -> Tensor:
        """Host memory for ``x``."""
        return torch.empty(x.shape, dtype=x.dtype)

    def copy(self, to: Tensor, x: Tensor) -> torch.cuda.Event | None:
        """Copy behind the work that is queued; what to wait for."""
        to.copy_(x)

    def wait(self, copied: torch.cuda.Event | None) -> None:
        """Keep the work that is queued from here on behind a copy."""


class _CudaLane(Lane):
    """Copies on a stream of their own; neither they nor the waits for them stop the host."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.stream = torch.cuda.Stream(device)

    def host(self, x: Tensor) -> Tensor:
        return torch.empty(x.shape, dtype=x.dtype, pin_memory=True)

    def copy(self, to: Tensor, x: Tensor) -> torch.cuda.Event:
        # Also when it copies to the device: the memory was another tensor's until the work queued so far is done.
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            to.copy_(x, non_blocking=True)
            return self.stream.record_event()

    def wait(self, copied: torch.cuda.Event) -> None:
        torch.cuda.current_stream(self.device).wait_event(copied)
