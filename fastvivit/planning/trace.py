"""A step as a list of its ops: what is alive after each, what it computes and moves.

Blocks of an encoder are equal, so a step of 24 is one of 4 with the middle ones repeated: a trace is cut where blocks
begin, and stretched there. And every number is affine in the clips of each part, so a trace more than there are parts
gives all others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastvivit.planning.ledger import Ledger

# Columns of a segment: the first three add up as the step goes on, the others are of the op itself.
ALIVE, GRADIENTS, OFFLOADED, FLOPS, MOVED, KIND = range(6)
RUNNING = 3
# Kinds of ops.
REST, PRODUCTS, EMBEDDING, ATTENTION, ATTENTION_BACKWARD = range(5)
_FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias"}
_ATTENTION = {"varlen_attention": ATTENTION, "varlen_attention_backward": ATTENTION_BACKWARD}


@dataclass(frozen=True, eq=False)
class Segment:
    """Ops between two marks.

    Attributes:
        name: of the mark they begin with.
        backward: whether they belong to the backward.
        ops: (n, 6) int64; columns as above.
        passing: bytes it leaves behind that go between the forward and the backward: 16-bit copies of weights that
            autocast keeps for as long as it lasts, where the graph does not keep them longer.
    """

    name: str
    backward: bool
    ops: Tensor
    passing: int = 0


@dataclass(frozen=True, eq=False)
class Trace:
    """A step, in the order of its ops."""

    segments: tuple[Segment, ...]

    def stretched(self, first: str, second: str, times: int) -> Trace:
        """The step with the segment ``second`` repeated, as it follows on ``first``, ``times`` more.

        Both are the work of equal blocks, one after the other; what each leaves behind adds up.
        """
        at = next(i for i, segment in enumerate(self.segments) if segment.name == second)
        before = next(segment for segment in self.segments if segment.name == first)
        template = self.segments[at]
        step = template.ops - before.ops
        step[:, RUNNING:] = 0
        more = [replace(template, ops=template.ops + count * step) for count in range(1, times + 1)]
        gained = torch.zeros_like(step[-1:])
        if len(step):
            gained = times * step[-1:]
        after = []
        for segment in self.segments[at + 1 :]:
            ops = segment.ops + gained
            if segment.backward and not template.backward:
                ops[:, ALIVE] -= times * template.passing
            after.append(replace(segment, ops=ops))
        return Trace((*self.segments[: at + 1], *more, *after))

    def ops(self) -> Tensor:
        """All ops, (n, 6)."""
        return torch.cat([segment.ops for segment in self.segments])

    def part(self, *, backward: bool) -> Trace:
        """The forward or the backward alone."""
        return Trace(tuple(segment for segment in self.segments if segment.backward == backward))

    def after(self, name: str) -> Trace:
        """From the mark ``name`` on."""
        at = next(i for i, segment in enumerate(self.segments) if segment.name == name)
        return Trace(self.segments[at:])


@dataclass(frozen=True, eq=False)
class AffineTrace:
    """The same step on any number of clips.

    Args:
        two: on two clips of each part; with one, tables of its lengths are made by other ops.
        three: for each part, on three clips of it and two of the others; the same ops.
    """

    two: Trace
    three: tuple[Trace, ...]

    def __post_init__(self) -> None:
        shapes = [[segment.ops.shape for segment in trace.segments] for trace in (self.two, *self.three)]
        assert all(found == shapes[0] for found in shapes), "two clips and three went through other ops"

    def at(self, *clips: int) -> Trace:
        """On so many clips of each part: exact where every size is affine in them."""
        segments = []
        for base, *others in zip(self.two.segments, *(trace.segments for trace in self.three), strict=True):
            more = (count - 2 for count in clips)
            ops = sum((n * _no_kind(o.ops - base.ops) for n, o in zip(more, others, strict=True)), base.ops)
            segments.append(replace(base, ops=ops))
        return Trace(tuple(segments))

    def grown(self, *clips: int) -> Tensor:
        """(n,) bytes alive after each op that grow with the clips."""
        base = self.two.ops()[:, ALIVE]
        return sum(n * (trace.ops()[:, ALIVE] - base) for n, trace in zip(clips, self.three, strict=True))


def _no_kind(difference: Tensor) -> Tensor:
    difference[:, KIND] = 0
    return difference


class Recorder(Ledger):
    """A ledger that writes every op down, in segments.

    Attributes:
        backward: whether the ops that come belong to the backward; for the caller to set.
        gradients: bytes of gradients of parameters that are alive; for the caller to add to.
        offloaded: bytes that have gone to the host; likewise.
        part: what the marks of the part that goes through begin with; for the caller to set.
        between: whether the forward is over and the backward has not begun; for the caller to set.
    """

    def __init__(self, leave_out, formulas) -> None:
        super().__init__(leave_out, formulas)
        self.backward, self.gradients, self.offloaded = False, 0, 0
        self.between, self.part = False, ""
        self._segments: list[tuple[str, bool, list[list[int]]]] = [("start", False, [])]
        self._passing: dict[int, int] = {}

    def mark(self, name: str) -> None:
        """Begin a segment."""
        self._segments.append((name, self.backward, []))

    def note(self, func: Any, args: tuple, kwargs: dict[str, Any], made: list[Tensor], flops: int) -> None:
        """Write the op down."""
        name = func.overloadpacket.__name__
        kind = REST
        if name in _ATTENTION:
            kind = _ATTENTION[name]
        elif name.startswith("tubelet_embed"):
            kind = EMBEDDING
        elif flops:
            kind = PRODUCTS
        moved = 0 if name in _FREE or not made else _moved(args, kwargs, made)
        row = [self.now, self.gradients, self.offloaded, int(flops), moved, kind]
        self._segments[-1][2].append(row)

    def place(self) -> int:
        """The segment in which a storage is made."""
        return len(self._segments) - 1

    def gone(self, size: int, place: int) -> None:
        """Note what goes between forward and backward with the segment that made it."""
        super().gone(size, place)
        if self.between:
            self._passing[place] = self._passing.get(place, 0) + size

    def trace(self) -> Trace:
        """What has been written down."""
        made = [
            Segment(name, backward, torch.tensor(rows, dtype=torch.int64).view(-1, 6), self._passing.get(at, 0))
            for at, (name, backward, rows) in enumerate(self._segments)
        ]
        return Trace(tuple(made))


def _moved(args: tuple, kwargs: dict[str, Any], made: list[Tensor]) -> int:
    """Bytes that an op reads and writes; a view costs nothing."""
    given = []
    for value in (*args, *kwargs.values()):
        given += [v for v in value if isinstance(v, Tensor)] if isinstance(value, list | tuple) else [value]
    given = [value for value in given if isinstance(value, Tensor)]
    sources = {tensor.untyped_storage()._cdata for tensor in given}
    new = [tensor for tensor in made if tensor.untyped_storage()._cdata not in sources]
    if not new and not any(tensor is source for tensor in made for source in given):
        return 0
    return sum(_bytes(tensor) for tensor in (*given, *made))


def _bytes(tensor: Tensor) -> int:
    # An expanded tensor is read as often as it is asked for, but from a cache.
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
