"""What is timed: a case, those who take part in it, and what is claimed of their times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from .measure import Ceilings, Spread

OURS = "fastvivit"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line asks of every case.

    Attributes:
        quick: tiny shapes, to prove that the harness works; no claims.
        device: where tensors live.
        dtype: of everything that is not pixels or ids: float32 on a CPU, bfloat16 on a GPU, as models run there.
        compile: whether peers compiled by ``torch.compile`` take part (a compilation takes tens of seconds).
    """

    quick: bool = False
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    compile: bool = False

    def generator(self) -> torch.Generator:
        """A seeded one of the device, where hundreds of millions of numbers take no time to draw."""
        return torch.Generator(device=self.device).manual_seed(0)

    @property
    def gpu(self) -> bool:
        """Whether the work runs on a GPU."""
        return self.device.startswith("cuda")


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One way of doing the work.

    Attributes:
        call: does it once and returns a tensor, or a sequence of tensors.
        note: what is given to it ready, or what it leaves out.
        same: whether it returns what ours does, and so passes the gate too.
        flops: of its work, where that is not the case's.
    """

    call: Callable[[], object]
    note: str = ""
    same: bool = True
    flops: int | None = None


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A case with its tensors made.

    Attributes:
        contestants: by name; ``OURS`` is among them.
        gate: says what is wrong with the results, or None. Nothing is timed before it has said None. A message that
            starts with a peer's name and a colon takes that peer out, and the rest is judged again.
        absent: peers that can't take part, each with the reason.
    """

    contestants: dict[str, Contestant]
    gate: Callable[[], str | None]
    absent: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A bound that the times should keep, as ``at_least`` 4 times as fast as the fastest of ``peers``.

    Attributes:
        text: in words.
        who: whose times are judged.
        peers: names; the fastest of those that took part counts.
        at_least: lower bound of peer's time / our time; of the rates, where the peer has FLOPs of its own and
            ``times`` is not set.
        at_most: upper bound of our time / peer's time.
        under: upper bound of our time in seconds, less that of ``minus``.
        rate: lower bound of FLOP/s.
        of_copy: lower bound of the bytes a second, as a share of the copy bandwidth; less the time of ``minus``.
        minus: the contestant whose time is taken off first, where it is not what is judged.
        times: whether times are compared even with a peer that does other work: what leaving work out saves.
    """

    text: str
    who: str = OURS
    peers: tuple[str, ...] = ()
    at_least: float | None = None
    at_most: float | None = None
    under: float | None = None
    rate: float | None = None
    of_copy: float | None = None
    minus: str | None = None
    times: bool = False

    def judge(
        self,
        found: dict[str, Spread],
        case: Case | None = None,
        limits: Ceilings | None = None,
        flops: dict[str, int] | None = None,
    ) -> dict[str, object] | None:
        """The claim with its value and whether it is met (None: too noisy to tell); None where its peers are absent."""
        if self.who not in found or (self.minus is not None and self.minus not in found):
            return None
        ours = found[self.who]
        spread = ours if self.minus is None else ours.beyond(found[self.minus])
        said = {"text": self.text} | ({} if self.who == OURS else {"who": self.who})
        if self.under is not None:
            # A few microseconds can't be told in samples that are further apart than that.
            met = None if spread.p90 - spread.p10 > self.under else spread.median < self.under
            return said | {"value": spread.median * 1e6, "unit": "µs", "met": met}
        if self.rate is not None:
            rate = case.flops / spread.median
            return said | {"value": rate / 1e12, "unit": "TFLOP/s", "met": rate >= self.rate}
        if self.of_copy is not None:
            share = case.bytes / max(spread.median, 1e-12) / limits.copy
            return said | {"value": share, "unit": "of the copy bandwidth", "met": share >= self.of_copy}
        present = [name for name in self.peers if name in found]
        if not present:
            return None
        peer = min(present, key=lambda name: found[name].median)
        speedup = found[peer].over(spread).median
        if flops and peer in flops and not self.times:
            speedup *= case.flops / flops[peer]
        if self.at_least is not None:
            value, met = speedup, speedup >= self.at_least
        else:
            value, met = 1 / speedup, 1 / speedup <= self.at_most
        return said | {"peer": peer, "value": value, "unit": "x", "met": met}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One shape of one layer.

    Attributes:
        name: unique, "family/what".
        layer: the layer that the shape comes from.
        counts: what the time holds.
        flops: of the work that has to be done, products and sums counted apart.
        bytes: least traffic with memory: every input read once and every output written once.
        exponentials: taken by our kernels, which on a GPU cost as much as their products.
        flops_run: by our kernels, where it is more than ``flops``: what a backward computes a second time.
        build: makes the tensors.
        claims: judged after timing, never in a quick run.
        seconds: time to spend; ``min_rounds`` comes first.
        min_rounds: rounds at least.
        clock: "device": what the device is busy for, caches cold, launches hidden (on a GPU; a CPU has one clock).
            "wall": call after call from the host, launches included.
        facts: what plots and pages sort by: "model", "frames", "mask", "tokens", "head_dim", "direction".
        peak: whose peak memory is taken, each in its own process; makes model and inputs, returns the call.
    """

    name: str
    layer: str
    counts: str
    flops: int
    bytes: int
    build: Callable[[], Bench]
    claims: tuple[Claim, ...] = ()
    seconds: float = 2.0
    min_rounds: int = 5
    exponentials: int = 0
    flops_run: int = 0
    clock: str = "device"
    facts: dict[str, object] = field(default_factory=dict)
    peak: dict[str, Callable[[], Callable]] = field(default_factory=dict)
