"""What is timed: a case, those who take part in it, and what is claimed of their times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.measure import Spread

OURS = "fastvivit"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line asks of every case.

    Attributes:
        quick: tiny shapes, to prove that the harness works; no claims.
        device: where tensors live.
        compile: whether peers compiled by ``torch.compile`` take part (a compilation takes tens of seconds).
    """

    quick: bool = False
    device: str = "cpu"
    compile: bool = False


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One way of doing the work.

    Attributes:
        call: does it once and returns a tensor, or a sequence of tensors.
        note: what is given to it ready, or what it leaves out.
        same: whether it returns what ours does, and so passes the gate too.
    """

    call: Callable[[], object]
    note: str = ""
    same: bool = True


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A case with its tensors made.

    Attributes:
        contestants: by name; ``OURS`` is among them.
        gate: says what is wrong with the results, or None. Nothing is timed before it has said None.
    """

    contestants: dict[str, Contestant]
    gate: Callable[[], str | None]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A bound that the times should keep, as ``at_least`` 4 times as fast as the fastest of ``peers``.

    Attributes:
        text: in words.
        peers: names; the fastest of those that took part counts.
        at_least: lower bound of peer's time / our time.
        at_most: upper bound of our time / peer's time.
        under: upper bound of our time in seconds, less that of ``minus``.
        minus: the contestant whose time is the work itself, where that is not negligible.
    """

    text: str
    peers: tuple[str, ...] = ()
    at_least: float | None = None
    at_most: float | None = None
    under: float | None = None
    minus: str | None = None

    def judge(self, found: dict[str, Spread]) -> dict[str, object] | None:
        """The claim with its value and whether it is met (None: too noisy to tell); None where its peers are absent."""
        if self.under is not None:
            if self.minus is not None and self.minus not in found:
                return None
            spread = found[OURS] if self.minus is None else found[OURS].beyond(found[self.minus])
            # A few microseconds can't be told in samples that are further apart than that.
            met = None if spread.p90 - spread.p10 > self.under else spread.median < self.under
            return {"text": self.text, "value": spread.median * 1e6, "unit": "µs", "met": met}
        present = [name for name in self.peers if name in found]
        if not present:
            return None
        peer = min(present, key=lambda name: found[name].median)
        speedup = found[peer].over(found[OURS]).median
        if self.at_least is not None:
            value, met = speedup, speedup >= self.at_least
        else:
            value, met = 1 / speedup, 1 / speedup <= self.at_most
        return {"text": self.text, "peer": peer, "value": value, "unit": "x", "met": met}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One shape of one layer.

    Attributes:
        name: unique, "family/what".
        layer: the layer that the shape comes from.
        counts: what the time holds.
        flops: of the work that has to be done, products and sums counted apart.
        bytes: least traffic with memory: every input read once and every output written once.
        build: makes the tensors.
        claims: judged after timing, never in a quick run.
        seconds: time to spend; ``min_rounds`` comes first.
        min_rounds: rounds at least.
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
    peak: dict[str, Callable[[], Callable]] = field(default_factory=dict)
