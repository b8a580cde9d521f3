"""The peak of a step in bytes, by part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import prod

from fastvivit.planning.devices import Device
from fastvivit.planning.simulate import DIM, simulate
from fastvivit.planning.step import Step
from fastvivit.planning.trace import ALIVE, GRADIENTS

# Bytes an element of AdamW's two moments; the 8-bit ones have a float32 scale for every 256.
STATE_BYTES = {"float32": 8.0, "8bit": 2 * (1 + 4 / 256)}
ITEM = {"bfloat16": 2, "float32": 4}
# Of a row that waits between passes: its place and its sequence.
INDEX = 16


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes at the moment of a step at which most is alive; the parts add up to ``total``.

    Attributes:
        weights: float32, of both encoders.
        gradients: those that are there at that moment; in one pass most come later, in the room that activations
            have left.
        optimiser: AdamW's two moments of what is trained.
        activations: what grows with the clips of a pass: kept for the backward, and the op's own inputs and outputs.
        batch: uint8 pixels on the device, and ids of kept tokens.
        prefix: outputs of frozen blocks between the two passes of a step in chunks.
        casts: 16-bit copies of weights, and what else of the step does not grow with its clips.
        kernels: what kernels and cuBLAS take inside themselves.
    """

    weights: int
    gradients: int
    optimiser: int
    activations: int
    batch: int
    prefix: int
    casts: int
    kernels: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, declared.name) for declared in fields(self))

    @property
    def workspace(self) -> int:
        """``casts`` and ``kernels``."""
        return self.casts + self.kernels


def memory_of(step: Step, device: Device | None) -> Memory:
    """The peak of ``step``.

    Args:
        step: the step.
        device: where; None counts what PyTorch allocates by op and no more, as a ledger of a run on a CPU does.
    """
    if not step.chunked:
        return _at_peak(step, device, None)
    last, found = len(step.each) - 1, []
    for index, one in enumerate(step.each):
        if index == last and step.parts:
            found.append(_at_peak(step, device, index, very_last=True))
        if index < last or one.chunked:
            found.append(_at_peak(step, device, index))
    return max(found, key=lambda memory: memory.total)


def _at_peak(step: Step, device: Device | None, only: int | None, *, very_last: bool = False) -> Memory:
    """Where most is alive in a pass: of all parts at once, or in the chunks of one.

    The very last chunk of a step has its backward first: it finds no gradients, and the prefix of all others waits.
    """
    found, taken = simulate(step, only), step.each if only is None else step.each[only : only + 1]
    clips = [one.passes for one in taken]
    ops, grown = found.trace.at(*clips).ops(), found.trace.grown(*clips)
    if not very_last and only is not None and _stored(step, only):
        start = len(ops) - len(found.trace.two.after(f"video {step.first_trained}").ops())
        ops, grown = ops[start:], grown[start:]
    later = only is not None and not very_last
    at = int((ops[:, ALIVE] - ops[:, GRADIENTS] if later else ops[:, ALIVE]).argmax())
    gradients = int(ops[at, GRADIENTS])
    return Memory(
        weights=4 * found.parameters,
        gradients=4 * found.trainable if later else gradients,
        optimiser=int(STATE_BYTES[step.states] * found.trainable),
        activations=int(grown[at]),
        batch=_batch(step, only),
        prefix=_waiting(step, only, very_last),
        casts=int(ops[at, ALIVE]) - gradients - int(grown[at]),
        kernels=0 if device is None else kernels(step, taken, device),
    )


def _stored(step: Step, index: int) -> bool:
    """Whether the second pass of a part goes on from what was stored."""
    return step.stored and step.each[index].ahead > 0


def _waiting(step: Step, only: int | None, very_last: bool) -> int:
    """Bytes that wait for their second pass when the first chunk of a part has it, or the very last one of all."""
    if only is None or not step.stored:
        return 0
    chunks = [one.passes * _row_bytes(one) * _stored(step, i) for i, one in enumerate(step.each)]
    if step.prefix == "host":
        # The chunk that is fetched while this one is worked on.
        return 0 if very_last else chunks[only]
    first = 0 if very_last else only
    waiting = sum(one.batch * _row_bytes(one) for i, one in enumerate(step.each) if i >= first and _stored(step, i))
    # The last chunk goes at once, and is not stored; the rows of another are in the store, and were counted above.
    return max(waiting - chunks[-1] - (0 if very_last else chunks[only]), 0)


def _row_bytes(one: Step) -> int:
    return one.rows * (one.config.width * ITEM[one.precision] + INDEX)


def pixel_bytes(one: Step) -> int:
    """uint8 pixels of a clip, or of its kept tubelets."""
    config = one.config
    if one.pixels == "tubelets" and one.mask_ratio:
        return one.tokens * config.channels * prod(config.tubelet[one.images :])
    frames = 1 if one.images else config.frames
    return config.channels * frames * prod(config.size)


def _batch(step: Step, only: int | None) -> int:
    each = step.each
    sizes = [pixel_bytes(one) + (8 * one.tokens if one.mask_ratio else 0) for one in each]
    if only is None or step.batch_on == "device":
        return sum(one.batch * size for one, size in zip(each, sizes, strict=True))
    # From the host a pass's clips come while the one before is worked on.
    here = min(2 * each[only].passes, each[only].batch) * sizes[only]
    if only + 1 == len(each):
        return here
    return max(here, each[only].passes * sizes[only] + each[only + 1].passes * sizes[only + 1])


def kernels(step: Step, taken: Sequence[Step], device: Device) -> int:
    """What GPU kernels and cuBLAS take inside themselves, all of it as if at once.

    Two float32 a row and head of the attention's backward (log-sum-exp in base 2, row sums); an int64 a token in the
    embedding; a cuBLAS workspace for each of the two threads that forward and backward run in; and of the loss the
    whole batch's vectors and cosines, with their gradients, in float32.
    """
    # The table has an entry of 24 bytes for every 128 rows, as queries and as keys: kilobytes, and left out.
    inside = max(one.passes * (2 * 4 * step.config.heads * one.rows + 8 * one.tokens) for one in taken)
    loss = sum(4 * (4 * DIM * one.batch + 3 * one.batch**2) for one in step.each) if step.text is not None else 0
    return int(inside + 2 * device.blas + loss)
