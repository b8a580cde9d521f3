"""Clocks: the ceilings of a machine, interleaved repeats, spreads."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

import torch

from .peers.conv3d import onednn_product

# A sample shorter than this would time the clock and the scheduler; short calls are repeated within it.
SAMPLE = 0.01
MAX_ROUNDS = 31
# The same for a GPU's own clock, which sees the device alone.
DEVICE_SAMPLE, DEVICE_CALLS = 0.002, 8
# Cycles that the device waits before a timed call, so that the host has enqueued it all by the time it starts.
LEAD_CYCLES = 1_500_000


@dataclass(frozen=True)
class Spread:
    """Samples of one contestant, in seconds a call (or without unit, for ratios), round by round."""

    samples: tuple[float, ...]
    median: float = field(init=False)
    p10: float = field(init=False)
    p90: float = field(init=False)

    def __post_init__(self) -> None:
        ordered = sorted(self.samples)
        for name, value in (
            ("median", median(ordered)),
            ("p10", _at(ordered, 0.1)),
            ("p90", _at(ordered, 0.9)),
        ):
            object.__setattr__(self, name, value)

    def over(self, other: Spread) -> Spread:
        """Ratio to ``other`` within each round: what slows a whole round slows both, and cancels."""
        return Spread(tuple(a / b for a, b in zip(self.samples, other.samples, strict=True)))

    def beyond(self, other: Spread) -> Spread:
        """What is left when the time of ``other`` is taken off, round by round."""
        return Spread(tuple(a - b for a, b in zip(self.samples, other.samples, strict=True)))


def _at(ordered: Sequence[float], share: float) -> float:
    """Linear interpolation between the neighbouring samples."""
    place = share * (len(ordered) - 1)
    below, above = ordered[math.floor(place)], ordered[math.ceil(place)]
    return below + (above - below) * (place % 1)


def sample(call: Callable[[], object], times: int, device: str) -> float:
    """Seconds a call over ``times`` calls. The collector stays out, as in ``timeit``."""
    _wait(device)
    collecting = gc.isenabled()
    gc.disable()
    try:
        started = time.perf_counter()
        for _ in range(times):
            call()
        _wait(device)
        return (time.perf_counter() - started) / times
    finally:
        if collecting:
            gc.enable()


class ColdCalls:
    """Times calls on a GPU by its own events: the second-level cache emptied before each, launches hidden by a wait.

    A call that itself waits for the device can't be hidden so, and is timed with its waiting.
    """

    def __init__(self, device: str) -> None:
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        self._flush = torch.empty(max(2 * cache, 64 << 20), dtype=torch.int8, device=device)

    def sample(self, call: Callable[[], object], times: int, device: str) -> float:
        """Seconds a call over ``times`` calls."""
        events = [tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(times)]
        torch.cuda.synchronize()
        for start, end in events:
            self._flush.zero_()
            torch.cuda._sleep(LEAD_CYCLES)
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return sum(start.elapsed_time(end) for start, end in events) / times / 1e3


def interleaved(
    calls: dict[str, Callable[[], object]], *, seconds: float, min_rounds: int, device: str, clock: str = "wall"
) -> dict[str, Spread]:
    """Time ``calls`` in rounds that sample each once, so that a drift of the machine meets them all.

    Every second round runs backwards, so that nobody always follows the same neighbour's cache contents. Whoever takes
    longer than ``seconds`` for one call is called once, and has that for every round.

    Args:
        calls: by name.
        seconds: what to spend.
        min_rounds: rounds at least, whatever they cost.
        device: waited for around every sample.
        clock: as ``Case.clock``; a CPU has only "wall".
    """
    cold = clock == "device" and device.startswith("cuda")
    take = ColdCalls(device).sample if cold else sample
    times = {}
    for name, call in calls.items():
        estimate = take(call, 1, device)
        # The first call also pays for allocation and first-use choices; a long one is not repeated for that.
        estimate = estimate if estimate > 0.5 else take(call, 1, device)
        if cold:
            count = min(DEVICE_CALLS, max(1, math.ceil(DEVICE_SAMPLE / max(estimate, 1e-7))))
            times[name] = (count, estimate + 1e-3)  # the wait and the flush
        else:
            times[name] = (max(1, math.ceil(SAMPLE / max(estimate, 1e-7))), estimate)
    # A tiny budget asks for few rounds, not for single calls.
    once = {name: estimate for name, (_, estimate) in times.items() if estimate > max(seconds, 1.0)}
    once = {} if len(once) == len(times) else once
    a_round = sum(count * estimate for name, (count, estimate) in times.items() if name not in once)
    rounds = max(min_rounds, min(MAX_ROUNDS, int(seconds / a_round)))
    samples: dict[str, list[float]] = {name: [once[name]] * rounds if name in once else [] for name in calls}
    for turn in range(rounds):
        gc.collect()
        turning = [name for name in calls if name not in once]
        for name in turning if turn % 2 == 0 else reversed(turning):
            samples[name].append(take(calls[name], times[name][0], device))
    return {name: Spread(tuple(found)) for name, found in samples.items()}


@dataclass(frozen=True)
class Ceilings:
    """What the machine reached in this run: bytes/s of a copy, read and written; FLOP/s of a product."""

    copy: float
    product: float

    def seconds(self, flops: int, moved: int) -> float:
        """The least time for the work, by whichever ceiling binds."""
        return max(flops / self.product, moved / self.copy)

    def binding(self, flops: int, moved: int) -> str:
        """Which of them that is."""
        return "product" if flops / self.product >= moved / self.copy else "copy"


def ceilings(device: str, *, quick: bool = False, dtype: torch.dtype = torch.float32) -> Ceilings:
    """Measure them, each by its best sample: a ceiling that a busy machine lowers would flatter all.

    On random data: a GPU draws less power on zeros, and runs faster than it ever will on real data.
    """
    gpu = device.startswith("cuda")
    # Well beyond any cache, or the copy would measure that.
    source = torch.randn((32 if quick else 1024 if gpu else 256) << 18, device=device)
    target = torch.empty_like(source)
    size = 512 if quick else 8192 if gpu else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    calls = {"copy": lambda: target.copy_(source), "mm": lambda: torch.mm(a, b, out=product)}
    onednn = onednn_product(device) if dtype == torch.float32 else None
    if onednn:
        # The higher of the two is the ceiling: torch.mm may be far from it.
        calls["onednn"] = lambda: onednn(a, b, None)
    found = interleaved(
        calls,
        seconds=0.3 if quick else 2.0 if gpu else 3.0,
        min_rounds=3 if quick else 9,
        device=device,
        clock="device",
    )
    return Ceilings(
        copy=2 * source.numel() * source.element_size() / min(found["copy"].samples),
        product=2 * size**3 / min(min(spread.samples) for name, spread in found.items() if name != "copy"),
    )


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
