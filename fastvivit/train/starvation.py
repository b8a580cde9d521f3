"""Whether a run waits for its data, for which part of reading it, and what would help."""

from __future__ import annotations

import os

from fastvivit.train.meter import Window

LIMIT, STEPS = 0.1, 50
# Above this the processes that decode have no time left; below it, the way from them to the device is what takes it.
_FULL = 0.7


def remedy(wait: float, busy: float, workers: int, cores: int) -> str:
    """One line: which part of the data is too slow, and what to do.

    Args:
        wait: share of the steps' time spent waiting for data.
        busy: share of it in which the loader's processes were reading clips.
        workers: those processes; 0 is the training process itself.
        cores: of the CPU.
    """
    waits = f"data: {wait:.0%} of the time is spent waiting for clips"
    pack = "read the clips from packed shards (fastvivit data pack)"
    more = max(1, cores - 1)
    if workers == 0:
        helps = f"set data.workers={more} or {pack}" if cores > 1 else pack
        return f"{waits}; decoding in the training process is the bottleneck: {helps}"
    if busy < _FULL:
        return (
            f"{waits}, while {workers} workers are busy {busy:.0%} of it; handing batches over (copies between "
            f"processes, pinning) is the bottleneck: {pack}, of which a masked step reads the kept tokens alone"
        )
    helps = f"set data.workers={more} or {pack}" if workers < more else pack
    return f"{waits}; decoding is the bottleneck, workers = {workers} on {cores} cores, all busy: {helps}"


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Starvation:
    """Says when data starve the device: once, and again when it has become twice as bad.

    Args:
        workers: of the loader.
        cores: of the CPU.
        cached: whether clips stay in memory, so that only the first epoch waits for them.
        steps: over which waiting is averaged.
        limit: share of the time that may be spent waiting.
    """

    def __init__(
        self, workers: int, cores: int, *, cached: bool = False, steps: int = STEPS, limit: float = LIMIT
    ) -> None:
        self._workers, self._cores, self._steps, self._limit = workers, cores, steps, limit
        self._cached = cached
        self._window = Window(steps)
        # Of the first batches everyone has to wait for the first decoded clips.
        self._cold = 2 + 2 * workers

    def note(self, row: dict[str, float]) -> str | None:
        """Take a step's line; what to tell the user, if anything is new."""
        if self._cached and row["epoch"] == 0:
            return None
        if self._cold:
            self._cold -= 1
            return None
        self._window.add(row)
        wait = self._window.mean("data_wait")
        if len(self._window) < self._steps or wait <= self._limit:
            return None
        self._limit = 2 * wait
        return remedy(wait, self._window.mean("data_busy"), self._workers, self._cores)
