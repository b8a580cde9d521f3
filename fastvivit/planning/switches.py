"""Which switches to turn, what each saves and costs, and which together make a step fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from fastvivit.planning.devices import Device
from fastvivit.planning.memory import memory_of
from fastvivit.planning.seconds import seconds_of
from fastvivit.planning.step import Step, set_each

# Beside what PyTorch allocates: the CUDA context with its loaded kernels, and what its allocator holds in pieces too
# small to use. Assumptions.
CONTEXT, FRAGMENTED = 500 * 10**6, 0.04
_LARGEST = 1 << 17
# What people choose for a long clip (paper, section 6.1).
_LAYERS, _MASK = 4, 0.75
_CHANGES = "changes what is learned"


@dataclass(frozen=True, kw_only=True)
class Switch:
    """One setting turned.

    Attributes:
        field: of a training config, or what else is to be done.
        value: its new value, as TOML has it; empty where there is no field.
        note: what it changes of what is learned; empty where losses and gradients stay what they are, to rounding.
        saves: bytes.
        costs: seconds a step, predicted; below 0 where it is faster.
        total: bytes of the step with it.
        fits: whether the step fits then.
        changes: of the planned step.
    """

    field: str
    value: str
    note: str
    saves: int
    costs: float
    total: int
    fits: bool
    changes: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.field} = {self.value}" if self.value else self.field


def needed(step: Step, device: Device | None) -> int:
    """Bytes a device must have for ``step``: its peak, and what goes beside it."""
    total = memory_of(step, device).total
    return total if device is None else int(total * (1 + FRAGMENTED)) + CONTEXT


def largest(step: Step, name: str, fits: Callable[[Step], bool], most: int = _LARGEST) -> int:
    """The largest ``name`` ("batch" or "chunk") up to ``most`` with which the step fits; 0 where the least does not."""
    low = least = max(len(step.parts) - 1, 0) if name == "batch" else 0
    high = most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(replace(step, **{name: middle})) else (low, middle - 1)
    return low if low > least else 0


def switches(step: Step, device: Device, memory: int) -> tuple[Switch, ...]:
    """Every switch that is not turned yet and saves something: those that leave the result as it is come first."""
    before, seconds = memory_of(step, device).total, seconds_of(step, device).total
    found = []
    for field, value, note, changes in _candidates(step, device, memory):
        changed = replace(step, **changes)
        total = memory_of(changed, device).total
        if total < before:
            found.append(
                Switch(
                    field=field,
                    value=value,
                    note=note,
                    saves=before - total,
                    costs=seconds_of(changed, device).total - seconds,
                    total=total,
                    fits=needed(changed, device) <= memory,
                    changes=changes,
                )
            )
    return tuple(sorted(found, key=lambda s: (bool(s.note), not s.fits, s.costs > 0.01 * seconds, -s.saves)))


def remedy(step: Step, device: Device, memory: int) -> tuple[Switch, ...]:
    """Switches that make a step fit together, none of them needless; those that change what is learned come last.

    Empty where it fits already, and where nothing helps.
    """
    turned: list[Switch] = []
    now = step
    while (over := needed(now, device) - memory) > 0:
        # A switch that saves next to nothing would be turned for show.
        offered = [s for s in switches(now, device, memory) if s.saves > 0.01 * over]
        if not offered:
            return ()
        offered = [s for s in offered if not s.note] or offered
        fitting = [s for s in offered if s.fits]
        best = min(fitting, key=lambda s: s.costs) if fitting else max(offered, key=lambda s: s.saves)
        turned.append(best)
        now = replace(now, **best.changes)
    for switch in turned[:-1]:
        fewer = [other for other in turned if other is not switch]
        if needed(turned_by(step, fewer), device) <= memory:
            turned = fewer
    return tuple(turned)


def turned_by(step: Step, turned: Iterable[Switch]) -> Step:
    """The step with switches turned."""
    for switch in turned:
        step = replace(step, **switch.changes)
    return step


def _candidates(step: Step, device: Device, memory: int) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Field, value, what it changes of what is learned, and what changes of the step."""
    if any(one.pixels == "clips" and one.mask_ratio for one in step.each):
        yield "packed shards (fastvivit data pack)", "", "", set_each(step, pixels="tubelets")
    if step.batch_on == "device" and step.chunked:
        yield "clips from pinned host memory", "", "", {"batch_on": "host"}
    if step.narrower:
        most = largest(step, "chunk", lambda s: needed(s, device) <= memory, step.narrower)
        chunk = 1 << (most.bit_length() - 1) if most else 1
        yield "memory.chunk", str(chunk), "", {"chunk": chunk}
    if step.stored and step.prefix == "device":
        yield "memory.prefix", '"host"', "", {"prefix": "host"}
    if step.checkpointing == "none":
        yield "memory.checkpointing", '"selective"', "", {"checkpointing": "selective"}
    if step.checkpointing != "full":
        yield "memory.checkpointing", '"full"', "", {"checkpointing": "full"}
    elif not step.offload:
        yield "memory.offload", "true", "", {"offload": True}
    if step.states == "float32":
        yield "optimiser.states", '"8bit"', "rounds the moments", {"states": "8bit"}
    if not step.parts and step.mask_ratio < _MASK:
        yield "mask.ratio", str(_MASK), _CHANGES, {"mask_ratio": _MASK}
    clips = [part for part in step.parts if not part.images]
    if any(part.mask_ratio < _MASK for part in clips):
        masked = [part if part.images else replace(part, mask_ratio=max(part.mask_ratio, _MASK)) for part in step.parts]
        yield "mask_ratio of clips", str(_MASK), _CHANGES, {"parts": tuple(masked)}
    if step.method != "last" and step.config.depth > _LAYERS:
        yield "tuning.method", '"last_layers"', _CHANGES, {"tuning": f"last_{_LAYERS}"}
