"""The peak of a step in bytes, by part."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import prod

from torch import Tensor

from fastvivit.planning.devices import Device
from fastvivit.planning.simulate import DIM, Simulated, encoder_config, simulate
from fastvivit.planning.step import Step
from fastvivit.planning.trace import ALIVE, GRADIENTS, Trace

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
    found, clips = simulate(step), step.passes
    now, more = (_pass(found.trace.at(count), step).ops() for count in (clips, clips + 1))
    at = int(_beside(now, step).argmax())
    grown = clips * int(more[at, ALIVE] - now[at, ALIVE])
    gradients = int(now[at, GRADIENTS])
    casts = int(now[at, ALIVE]) - gradients - grown
    row = found.rows * (step.config.width * ITEM[step.precision] + INDEX)
    # The last chunk goes at once, and is not stored; the rows of another are in the store, and were counted above.
    waiting = step.batch - 2 * clips if step.prefix == "device" else clips
    return Memory(
        weights=4 * found.parameters,
        gradients=4 * found.trainable if step.chunked else gradients,
        optimiser=int(STATE_BYTES[step.states] * found.trainable),
        activations=grown,
        batch=_batch(step, found),
        prefix=step.stored * max(waiting, 0) * row,
        casts=casts,
        kernels=0 if device is None else kernels(step, found, device),
    )


def _beside(ops: Tensor, step: Step) -> Tensor:
    """(n,) bytes alive beside gradients that are there from an earlier pass."""
    return ops[:, ALIVE] - ops[:, GRADIENTS] if step.chunked else ops[:, ALIVE]


def _pass(trace: Trace, step: Step) -> Trace:
    """What the second pass goes through."""
    return trace.after(f"video {step.first_trained}") if step.stored else trace


def pixel_bytes(step: Step, found: Simulated) -> int:
    """uint8 pixels of a clip, or of its kept tubelets."""
    config = encoder_config(step)
    if step.pixels == "tubelets" and step.mask_ratio:
        return found.tokens * config.channels * prod(config.tubelet)
    frames = 1 if step.images else config.frames
    return config.channels * frames * prod(config.size)


def _batch(step: Step, found: Simulated) -> int:
    # From the host a pass's clips come while the one before is worked on.
    clips = step.batch if step.batch_on == "device" else min(2 * step.passes, step.batch)
    ids = 8 * found.tokens if step.mask_ratio else 0
    return clips * (pixel_bytes(step, found) + ids)


def kernels(step: Step, found: Simulated, device: Device) -> int:
    """What GPU kernels and cuBLAS take inside themselves, all of it as if at once.

    Two float32 a row and head of the attention's backward (log-sum-exp in base 2, row sums); an int64 a token in the
    embedding; a cuBLAS workspace for each of the two threads that forward and backward run in; and of the loss the
    whole batch's vectors and cosines, with their gradients, in float32.
    """
    rows = found.rows * step.passes
    # The table has an entry of 24 bytes for every 128 rows, as queries and as keys: kilobytes, and left out.
    attention = 2 * 4 * step.config.heads * rows
    loss = 4 * (4 * DIM * step.batch + 3 * step.batch**2) if step.text is not None else 0
    return int(attention + 8 * found.tokens * step.passes + 2 * device.blas + loss)
