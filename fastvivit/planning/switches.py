"""Which switches to turn, what each saves and costs, and which together make a step fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from fastvivit.planning.devices import Device
from fastvivit.planning.memory import memory_of
from fastvivit.planning.seconds import seconds_of
from fastvivit.planning.sizes import show_bytes
from fastvivit.planning.step import Step

# Beside what PyTorch allocates: the CUDA context with its loaded kernels, and what its allocator holds in pieces too
# small to use. Assumptions.
CONTEXT, FRAGMENTED = 500 * 10**6, 0.04
_LARGEST = 1 << 17
# What people choose for a long clip (paper, section 6.1).
_LAYERS, _MASK = 4, 0.75


@dataclass(frozen=True, kw_only=True)
class Switch:
    """One setting turned.

    Attributes:
        field: of a training config, or what else is to be done.
        value: its new value.
        learns_the_same: whether losses and gradients stay what they are, to rounding.
        saves: bytes.
        costs: seconds a step, predicted; below 0 where it is faster.
        total: bytes of the step with it.
        fits: whether the step fits then.
        step: that step.
    """

    field: str
    value: str
    learns_the_same: bool
    saves: int
    costs: float
    total: int
    fits: bool
    step: Step

    def __str__(self) -> str:
        return f"{self.field} = {self.value}" if self.value else self.field


def needed(step: Step, device: Device | None) -> int:
    """Bytes a device must have for ``step``: its peak, and what goes beside it."""
    total = memory_of(step, device).total
    return total if device is None else int(total * (1 + FRAGMENTED)) + CONTEXT


def largest(step: Step, name: str, fits: Callable[[Step], bool], most: int = _LARGEST) -> int:
    """The largest ``name`` ("batch" or "chunk") up to ``most`` with which the step fits; 0 where 1 does not."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(replace(step, **{name: middle})) else (low, middle - 1)
    return low


def switches(step: Step, device: Device, memory: int) -> tuple[Switch, ...]:
    """Every switch that is not turned yet and saves something: those that leave the result as it is come first."""
    before, seconds = memory_of(step, device).total, seconds_of(step, device).total
    found = []
    for field, value, same, changed in _candidates(step, device, memory):
        total = memory_of(changed, device).total
        if total < before:
            found.append(
                Switch(
                    field=field,
                    value=value,
                    learns_the_same=same,
                    saves=before - total,
                    costs=seconds_of(changed, device).total - seconds,
                    total=total,
                    fits=needed(changed, device) <= memory,
                    step=changed,
                )
            )
    return tuple(sorted(found, key=lambda s: (not s.learns_the_same, not s.fits, s.costs > 0.01 * seconds, -s.saves)))


def remedy(step: Step, device: Device, memory: int) -> tuple[Switch, ...]:
    """Switches that make a step fit together, none of them needless; those that change what is learned come last.

    Empty where it fits already, and where nothing helps.
    """
    turned: list[Switch] = []
    now = step
    while needed(now, device) > memory:
        offered = [s for s in switches(now, device, memory) if s.saves > 0.01 * (needed(now, device) - memory)]
        if not offered:
            return ()
        same = [s for s in offered if s.learns_the_same] or offered
        # What fits at once at the least cost, or else what saves most.
        fitting = [s for s in same if s.fits]
        best = min(fitting, key=lambda s: s.costs) if fitting else max(same, key=lambda s: s.saves)
        turned.append(best)
        now = best.step
    return _without_the_needless(step, turned, device, memory)


def _without_the_needless(step: Step, turned: list[Switch], device: Device, memory: int) -> tuple[Switch, ...]:
    kept = list(turned)
    for switch in turned[:-1]:
        fewer = [other for other in kept if other is not switch]
        if needed(_with(step, fewer), device) <= memory:
            kept = fewer
    return tuple(kept)


def _with(step: Step, turned: list[Switch]) -> Step:
    for switch in turned:
        step = replace(step, **switch_fields(switch))
    return step


def switch_fields(switch: Switch) -> dict[str, object]:
    """Fields of ``Step`` that a switch sets."""
    name = {"memory.chunk": "chunk", "memory.prefix": "prefix", "memory.checkpointing": "checkpointing"} | {
        "memory.offload": "offload", "optimiser.states": "states", "mask.ratio": "mask_ratio", "tuning": "tuning",
        "packed shards": "pixels", "clips from pinned host memory": "batch_on",
    }  # fmt: skip
    field = name[switch.field]
    return {field: getattr(switch.step, field)} | ({"checkpointing": "full"} if field == "offload" else {})


def _candidates(step: Step, device: Device, memory: int):
    """Field, value, whether what is learned stays the same, and the step."""
    if step.pixels == "clips" and step.mask_ratio:
        yield "packed shards", "", True, replace(step, pixels="tubelets")
    if step.batch_on == "device" and step.chunked:
        yield "clips from pinned host memory", "", True, replace(step, batch_on="host")
    if step.passes > 1:
        most = largest(replace(step, chunk=1), "chunk", lambda s: needed(s, device) <= memory, step.passes - 1)
        chunk = 1 << (most.bit_length() - 1) if most else 1
        yield "memory.chunk", str(chunk), True, replace(step, chunk=chunk)
    if step.stored and step.prefix == "device":
        yield "memory.prefix", '"host"', True, replace(step, prefix="host")
    if step.checkpointing == "none":
        yield "memory.checkpointing", '"selective"', True, replace(step, checkpointing="selective")
    if step.checkpointing != "full":
        yield "memory.checkpointing", '"full"', True, replace(step, checkpointing="full")
    if not step.offload:
        yield "memory.offload", "true", True, replace(step, checkpointing="full", offload=True)
    if step.states == "float32":
        yield "optimiser.states", '"8bit"', False, replace(step, states="8bit")
    if step.mask_ratio < _MASK:
        yield "mask.ratio", str(_MASK), False, replace(step, mask_ratio=_MASK)
    if step.tuning != f"last_{_LAYERS}" and step.config.depth > _LAYERS and step.method != "last":
        yield "tuning", f'"last_{_LAYERS}"', False, replace(step, tuning=f"last_{_LAYERS}")


def advice(step: Step, device: Device, memory: int) -> list[str]:
    """Lines for someone whose step ran out of ``memory``: what to turn, in order, and what it brings."""
    together = remedy(step, device, memory)
    before, seconds = memory_of(step, device).total, seconds_of(step, device).total
    lines = [f"the step is predicted to need {show_bytes(before)} of {show_bytes(memory)}"]
    if together:
        now = _with(step, list(together))
        slower = seconds_of(now, device).total / seconds - 1
        total = show_bytes(memory_of(now, device).total)
        lines.append(f"to fit: {', '.join(map(str, together))}: {total}, {100 * slower:+.0f} % time a step (predicted)")
    for switch in switches(step, device, memory):
        note = "" if switch.learns_the_same else "; it changes what is learned"
        share = 100 * switch.costs / seconds
        lines.append(f"{switch}: saves {show_bytes(switch.saves)}, {share:+.0f} % time a step{note}")
    return lines
