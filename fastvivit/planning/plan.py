"""``fastvivit.plan``: what a training step will need and take, before anything runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from fastvivit.models import ViViTConfig, plain
from fastvivit.modules.dual import VideoTextModel
from fastvivit.modules.vivit import ViViT
from fastvivit.planning.devices import Device, device_named
from fastvivit.planning.memory import Memory, memory_of
from fastvivit.planning.seconds import Seconds, model_flops, seconds_of
from fastvivit.planning.simulate import simulate
from fastvivit.planning.sizes import parse_bytes, show_bytes, show_change
from fastvivit.planning.step import Step, set_each, text_of
from fastvivit.planning.switches import Switch, largest, needed, remedy, switches, turned_by
from fastvivit.planning.texts import TextSize

if TYPE_CHECKING:
    from fastvivit.train import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A prediction, none of it measured. ``str(plan)`` is what ``fastvivit plan`` prints.

    Attributes:
        step: what was planned.
        device: on what.
        gpu_memory: bytes that may be used.
        memory: the peak by part, bytes.
        needed: bytes of the peak and of what goes beside it (context, fragments).
        seconds: of a step, by part.
        flops: that a step's mathematics needs; nothing twice.
        parameters: of both encoders.
        trainable: of them.
        tokens: kept of a clip; of a mixed batch, of each part.
        largest_batch: most clips a step that fit with the same settings, the shares of a mixed batch too; 0 where one
            does not.
        largest_chunk: most clips a pass with which the batch fits; 0 where one does not.
        switches: what can be turned, best first.
        remedy: switches that together make it fit; empty where it does, or where nothing helps.
        steps: of the run, for ``days``; None where it was not said.
        notes: what the plan takes for granted, or leaves out.
    """

    step: Step
    device: Device
    gpu_memory: int
    memory: Memory
    needed: int
    seconds: Seconds
    flops: int
    parameters: int
    trainable: int
    tokens: int | tuple[int, ...]
    largest_batch: int
    largest_chunk: int
    switches: tuple[Switch, ...]
    remedy: tuple[Switch, ...]
    steps: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the step is predicted to fit ``gpu_memory``."""
        return self.needed <= self.gpu_memory

    @property
    def step_seconds(self) -> float:
        """Of a whole step."""
        return self.seconds.total

    @property
    def clips_per_second(self) -> float:
        """Clips a second; of a mixed batch, samples."""
        return self.step.batch / self.step_seconds

    @property
    def mfu(self) -> float:
        """Share of the device's published rate of matrix products that the model's own FLOPs come to."""
        rate = self.device.half if self.step.precision == "bfloat16" else self.device.ieee
        return self.flops / (self.step_seconds * rate)

    @property
    def days(self) -> float | None:
        """Of ``steps`` steps."""
        return None if self.steps is None else self.steps * self.step_seconds / 86400

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values; bytes and seconds."""
        found = {declared.name: getattr(self, declared.name) for declared in fields(self)}
        found |= {"step": asdict(self.step), "device": self.device.name}
        found["memory"] = asdict(self.memory) | {"total": self.memory.total}
        found["seconds"] = asdict(self.seconds) | {"total": self.seconds.total, "bound": self.seconds.bound}
        for name in ("switches", "remedy"):
            found[name] = [asdict(switch) for switch in found[name]]
        more = ("fits", "step_seconds", "clips_per_second", "mfu", "days")
        return plain(found | {name: getattr(self, name) for name in more})

    def __str__(self) -> str:
        from fastvivit.planning.table import table

        return table(self)


def plan(
    config: ViViTConfig | TrainConfig,
    *,
    frames: int | None = None,
    size: int | tuple[int, int] | None = None,
    mask_ratio: float | None = None,
    tuning: str | None = None,
    batch: int | None = None,
    chunk: int | None = None,
    prefix: str | None = None,
    checkpointing: str | None = None,
    offload: bool | None = None,
    states: str | None = None,
    precision: str | None = None,
    text: str | TextSize | None = None,
    images: bool | None = None,
    pixels: str | None = None,
    batch_on: str | None = None,
    device: str = "h100",
    gpu_memory: str | float | None = None,
    steps: int | None = None,
    model: ViViT | VideoTextModel | None = None,
) -> Plan:
    """Predict memory and time of a contrastive training step, the largest batch that fits, and what to turn.

    Memory is accounted for: the library's own code runs under fake tensors, which carry shapes and no numbers. Time
    is a roofline over the device's published ceilings and assumed efficiencies. Nothing is measured and no device is
    needed.

    Args:
        config: an encoder, or a whole training config, whose fields then stand for arguments that are None. Of several
            ``data.sources`` each is a part of the step; a source that is not there yet is planned for as clips.
        frames: of a clip; None is the config's.
        size: of a frame, an int or (H, W); None is the config's.
        mask_ratio: share of the tokens that are dropped, of every part; None is 0.
        tuning: what of the encoder is trained: "all" (None), "last_<k>" blocks, "adapters" or "adapters_<width>",
            "lora" or "lora_<rank>", "temporal".
        batch: clips a step; None is 8. The parts of a mixed one keep their shares.
        chunk: clips a pass, as ``memory.chunk``; 0 or None is the whole batch.
        prefix: "device" (None), "host" or "off": where frozen blocks' outputs wait, as ``memory.prefix``.
        checkpointing: "none" (None), "selective" or "full", as ``memory.checkpointing``.
        offload: as ``memory.offload``; None is False.
        states: AdamW's moments, "float32" (None) or "8bit", as ``optimiser.states``.
        precision: "bfloat16" (None), which is autocast over float32 weights, or "float32".
        text: the text tower: "bert-medium" (None), "bert-base", "none" for the encoder alone, or a ``TextSize``.
        images: a batch of images through the 2-D path instead of clips; None is False.
        pixels: "clips" (None), or "tubelets", the kept ones alone, as packed shards give them.
        batch_on: "device" (None), or "host": a chunk's clips come when they are needed, as those of a training config.
        device: a name: "a100", "a100-40gb", "h100", "h200", "b200", "rtx4090".
        gpu_memory: bytes that may be used, a number or "16GB"; None is all of the device's.
        steps: of the run, for ``Plan.days``; None is the training config's.
        model: what a training config trains or starts from, where that is at hand; None reads its ``start``.

    Returns:
        The plan.

    Raises:
        ValueError: a wrong value, or a training config of a stage that is not contrastive.
    """
    given: dict[str, Any] = {
        "mask_ratio": mask_ratio, "tuning": tuning, "batch": batch, "chunk": chunk, "prefix": prefix,
        "checkpointing": checkpointing, "offload": offload, "states": states, "precision": precision,
        "images": images, "pixels": pixels, "batch_on": batch_on,
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    if isinstance(config, ViViTConfig):
        encoder, notes, settings = config, (), {"text": text_of("bert-medium" if text is None else text)}
    else:
        from fastvivit.planning.from_training import settings_of

        settings, notes = settings_of(config, model)
        encoder = settings.pop("config")
        steps = config.steps if steps is None else steps
        if text is not None:
            settings["text"] = text_of(text)
    changes = {name: value for name, value in (("frames", frames), ("size", size)) if value is not None}
    step = Step(config=encoder.replace(**changes), **settings)
    each = {name: given.pop(name) for name in ("mask_ratio", "images", "pixels") if name in given}
    step = replace(step, **given, **set_each(step, **each))
    if steps is not None and steps < 1:
        raise ValueError(f"steps: wanted at least 1, got {steps}")
    where = device_named(device)
    memory = where.memory if gpu_memory is None else parse_bytes(gpu_memory)
    return plan_step(step, where, memory, steps=steps, notes=notes)


def plan_step(
    step: Step, device: Device, gpu_memory: int, *, steps: int | None = None, notes: tuple[str, ...] = ()
) -> Plan:
    """``plan`` of a step that is made already."""
    found = simulate(step, 0 if step.chunked else None)

    def fits(other: Step) -> bool:
        return needed(other, device) <= gpu_memory

    # At the largest batch a step in chunks has more than one pass.
    batch = largest(step, "batch", fits)
    whole = replace(step, chunk=0)
    chunk = step.batch if fits(whole) else largest(step, "chunk", fits, whole.narrower)
    return Plan(
        step=step,
        device=device,
        gpu_memory=gpu_memory,
        memory=memory_of(step, device),
        needed=needed(step, device),
        seconds=seconds_of(step, device),
        flops=model_flops(step),
        parameters=found.parameters,
        trainable=found.trainable,
        tokens=tuple(one.tokens for one in step.each) if step.parts else step.tokens,
        largest_batch=batch,
        largest_chunk=chunk,
        switches=switches(step, device, gpu_memory),
        remedy=remedy(step, device, gpu_memory),
        steps=steps,
        notes=notes,
    )


def advice(
    config: ViViTConfig | TrainConfig, memory: str | float, *, device: str = "h100", **arguments: Any
) -> list[str]:
    """Lines for someone whose step ran out of memory: what to turn, best first, what each saves and costs.

    Args:
        config: as of ``plan``.
        memory: bytes that the device has.
        device: as of ``plan``; only the predicted times depend on it.
        arguments: as of ``plan``.

    Returns:
        Lines without an end; the first says what the step is predicted to need.

    Raises:
        ValueError: as ``plan``.
    """
    found = plan(config, gpu_memory=memory, device=device, **arguments)
    lines = [f"the step is predicted to need {show_bytes(found.needed)}, and there are {show_bytes(found.gpu_memory)}"]
    if found.remedy:
        now = turned_by(found.step, found.remedy)
        time = show_change(seconds_of(now, found.device).total / found.step_seconds - 1)
        peak = show_bytes(needed(now, found.device))
        lines.append(f"to fit: {', '.join(map(str, found.remedy))}: {peak}, {time} time a step")
    for switch in found.switches:
        note = f"; {switch.note}" if switch.note else ""
        time = show_change(switch.costs / found.step_seconds)
        lines.append(f"{switch}: saves {show_bytes(switch.saves)}, {time} time a step{note}")
    return lines
