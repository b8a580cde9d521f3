"""Several clips decoded at a time, each in a process of its own that may hang, crash, or be killed at a deadline."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from queue import SimpleQueue
from typing import NamedTuple

from torch import Tensor

from fastvivit.data.dataset import read_entry
from fastvivit.data.entry import Entry
from fastvivit.data.guarded import GuardedReader
from fastvivit.data.video import available_cores

Read = Callable[[Entry, int, float, int | tuple[int, int]], Tensor]


class Decoder(NamedTuple):
    """How clips are decoded.

    Attributes:
        read: a ``read_entry`` for so many threads at a time.
        interrupt: from another thread: make what is being read now fail, where a process of its own reads it.
    """

    read: Read
    interrupt: Callable[[], None]


@contextmanager
def decoding(deadline: float | None, workers: int) -> Iterator[Decoder]:
    """What decodes clips.

    Args:
        deadline: seconds for one clip, after which it is a ``VideoError``; None decodes in this process, for ever.
        workers: threads that will call it; they share the cores.
    """
    if deadline is None:
        yield Decoder(read_entry, lambda: None)
        return
    threads = max(1, available_cores() // workers)
    with ExitStack() as stack:
        free: SimpleQueue[GuardedReader] = SimpleQueue()
        readers = [stack.enter_context(GuardedReader(deadline)) for _ in range(workers)]
        for reader in readers:
            free.put(reader)

        def read(entry: Entry, frames: int, fps: float, size: int | tuple[int, int]) -> Tensor:
            reader = free.get()
            try:
                return read_entry(entry, frames, fps, size, reader=reader, threads=threads)
            finally:
                free.put(reader)

        def interrupt() -> None:
            for reader in readers:
                reader.interrupt()

        yield Decoder(read, interrupt)
