"""Batches on their way between host and device, copied beside the work where there is a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")


@cache
def _copies(device: torch.device) -> torch.cuda.Stream:
    # One for good: a stream's memory is not given to other streams, so new ones would each hold some.
    return torch.cuda.Stream(device)


class Staging:
    """Copies between host and one device, without waiting on either side.

    On a GPU they run in a stream of their own, from and to pinned memory. Elsewhere they are plain copies.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = _copies(device) if device.type == "cuda" else None

    def ahead(self, items: Iterable[Item], load: Callable[[Item], Any]) -> Iterator[tuple[Item, Any]]:
        """Each item with what ``load`` makes of it by ``to_device``, always one item ahead of the work."""
        before: tuple[Item, Any, torch.cuda.Event | None] | None = None
        for item in items:
            started = (item, *self._start(load, item))
            if before is not None:
                yield self._wait(*before)
            before = started
        if before is not None:
            yield self._wait(*before)

    def to_device(self, value: Any) -> Any:
        """A copy of what has ``pin_memory`` and ``to`` (tensors, ``Tubelets``), of a list of it, or None, as it is."""
        if value is None:
            return None
        if isinstance(value, list | tuple):
            return [self.to_device(one) for one in value]
        if self._stream is not None and value.device.type == "cpu":
            value = value.pin_memory()
        return value.to(self.device, non_blocking=True)

    def to_host(self, x: Tensor) -> Tensor:
        """A copy in (pinned) host memory, there by the time that ``to_device`` reads it."""
        if self._stream is None:
            return x.cpu()
        copy = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            copy.copy_(x, non_blocking=True)
        # Its memory is another's only when the copy has been made.
        x.record_stream(self._stream)
        return copy

    def _start(self, load: Callable[[Item], Any], item: Item) -> tuple[Any, torch.cuda.Event | None]:
        if self._stream is None:
            return load(item), None
        # What was loaded before and has been let go was used by work that is queued by now: waiting for it makes its
        # memory free to be written. The work that comes next is not waited for, and runs beside this copy.
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            return load(item), self._stream.record_event()

    def _wait(self, item: Item, loaded: Any, done: torch.cuda.Event | None) -> tuple[Item, Any]:
        if done is not None:
            torch.cuda.current_stream(self.device).wait_event(done)
        return item, loaded
