"""Several clips decoded at a time, each in a process of its own that may hang, crash, or be killed at a deadline."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from queue import SimpleQueue

from torch import Tensor

from fastvivit.data.dataset import read_entry
from fastvivit.data.guarded import GuardedReader
from fastvivit.data.manifest import Entry

Read = Callable[[Entry, int, float, int | tuple[int, int]], Tensor]


@contextmanager
def decoding(deadline: float | None, workers: int) -> Iterator[Read]:
    """A ``read_entry`` for so many threads at a time.

    Args:
        deadline: seconds for one clip, after which it is a ``VideoError``; None decodes in this process, for ever.
        workers: threads that will call it; they share the cores.
    """
    if deadline is None:
        yield read_entry
        return
    threads = max(1, (os.cpu_count() or 1) // workers)
    with ExitStack() as stack:
        free: SimpleQueue[GuardedReader] = SimpleQueue()
        for _ in range(workers):
            free.put(stack.enter_context(GuardedReader(deadline)))

        def read(entry: Entry, frames: int, fps: float, size: int | tuple[int, int]) -> Tensor:
            reader = free.get()
            try:
                return read_entry(entry, frames, fps, size, reader=reader, threads=threads)
            finally:
                free.put(reader)

        yield read
