"""Runs a step under fake tensors and writes it down: the library's own modules, small numbers of blocks and clips."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from fastvivit import tune
from fastvivit.models import ViViTConfig
from fastvivit.modules.clips import Kept
from fastvivit.modules.dual import VideoTextModel
from fastvivit.modules.offload import HostOffload, Lane
from fastvivit.modules.vivit import ViViT
from fastvivit.planning.fakes import attended, attention_flops, fill, widen_norms
from fastvivit.planning.parts import kept_tokens
from fastvivit.planning.step import Step
from fastvivit.planning.texts import PlannedText
from fastvivit.planning.trace import AffineTrace, Recorder, Trace

DIM = 512


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """A step on any number of clips, and its parameters.

    Attributes:
        trace: one pass of a step: forward, loss and backward, on a model without gradients.
        parameters: of both encoders.
        trainable: of them.
    """

    trace: AffineTrace
    parameters: int
    trainable: int


def simulate(step: Step, only: int | None = None) -> Simulated:
    """Run ``step`` on two clips and on three; where its batch and chunk are, and other copies of it, do not matter.

    Args:
        step: the step.
        only: which part of a mixed batch goes through, as in a step in chunks; None takes all in one pass.
    """
    parts = tuple(replace(part, batch=1, pixels="clips") for part in step.parts)
    same = {"batch": max(len(parts), 1), "chunk": 0, "prefix": "device", "states": "float32", "batch_on": "device"}
    return _simulate(replace(step, **same, pixels="clips", parts=parts), only if parts else None)


@lru_cache(maxsize=128)
def _simulate(step: Step, only: int | None) -> Simulated:
    taken = step.each if only is None else step.each[only : only + 1]
    frozen, trained = step.first_trained, min(step.config.depth - step.frozen, step.run)
    config = encoder_config(step).replace(depth=frozen + trained)
    traces = []
    for more in (None, *range(len(taken))):
        trace, model = _run(step, config, [(one, 3 if i == more else 2) for i, one in enumerate(taken)])
        traces.append(_whole(trace, taken, frozen, trained))
    counts = _counts(model, step, frozen, trained)
    return Simulated(trace=AffineTrace(traces[0], tuple(traces[1:])), parameters=counts[0], trainable=counts[1])


def encoder_config(step: Step) -> ViViTConfig:
    """The encoder that a step goes through: as ``fit`` builds it, one of clips has no path for images."""
    return step.config.replace(images=step.trains_images)


def _run(step: Step, config: ViViTConfig, taken: Sequence[tuple[Step, int]]) -> tuple[Trace, nn.Module]:
    """A pass on so many clips of the parts: its ops, and the model, on fake tensors."""
    model = _model(step, config)
    half = step.precision == "bfloat16"
    lengths = {}
    for one, clips in taken:
        lengths |= attended(config, one.mask_ratio, clips, one.views)
    with FakeTensorMode():
        fill(model, "cpu")
        inputs = [(_pixels(one, clips), _kept(one, clips)) for one, clips in taken]
        known = [*model.parameters()]
        for video, keep in inputs:
            known += [video, *([] if keep is None else [keep.ids])]
        with Recorder(known, attention_flops(config, lengths)) as recorder:
            for encoder in _encoders(model).values():
                if encoder.offload is not None:
                    encoder.offload = _ToHost(recorder)
            handles = [*_marks(model, recorder), *_gradients(model, recorder)]
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                losses = []
                for index, (video, keep) in enumerate(inputs):
                    recorder.part = _prefix(index, len(inputs))
                    losses.append(_loss(model, video, keep))
                loss = losses[0] if len(losses) == 1 else sum(one / len(losses) for one in losses)
                recorder.between = True
            recorder.between, recorder.backward = False, True
            recorder.mark("backward")
            loss.backward()
        for handle in handles:
            handle.remove()
    return recorder.trace(), model


def _prefix(index: int, parts: int) -> str:
    """What the marks of a part begin with, of several that go through together."""
    return f"{index} " if parts > 1 else ""


def _model(step: Step, config: ViViTConfig) -> nn.Module:
    """Both encoders on "meta", tuned as the step says; the video encoder alone without a text tower."""
    images = step.trains_images
    with torch.device("meta"):
        video = ViViT(config)
        if step.method == "last":
            tune.last_layers(video, config.depth - step.first_trained, images=images)
        elif step.method == "adapters":
            tune.add_adapters(video, step.number, images=images)
        elif step.method == "lora":
            tune.add_lora(video, step.number or 64, images=images)
        elif step.method == "temporal":
            tune.temporal_only(video, images=images)
        elif all(one.images for one in step.each):
            video.embed.requires_grad_(False)
        model: nn.Module = video
        if step.text is not None:
            text = PlannedText(replace(step.text, depth=min(step.text.depth, step.run)))
            model = VideoTextModel(video, text, DIM)
    if step.checkpointing != "none":
        model.set_grad_checkpointing(True, step.checkpointing, offload=step.offload)
    if step.text is not None and not step.tune_text:
        model.text.requires_grad_(False)
    if step.precision == "bfloat16":
        widen_norms(model)
    return model.train()


def _pixels(one: Step, clips: int) -> Tensor:
    frames = () if one.images else (one.config.frames,)
    return torch.empty(clips, one.config.channels, *frames, *one.config.size, dtype=torch.uint8)


def _kept(one: Step, clips: int) -> Kept | None:
    """Masks as they come into a step, drawn beforehand."""
    if not one.mask_ratio:
        return None
    counts = [kept_tokens((grid,), one.mask_ratio) for grid in one.views]
    return Kept(torch.empty(clips, sum(counts), dtype=torch.int64), tuple(counts))


def _loss(model: nn.Module, video: Tensor, keep: Kept | None) -> Tensor:
    if isinstance(model, VideoTextModel):
        return model.losses(video, [""] * len(video), keep=keep)["loss"]
    return model(video, keep=keep).pooled.float().square().mean()


def _encoders(model: nn.Module) -> dict[str, nn.Module]:
    if isinstance(model, VideoTextModel):
        return {"video": model.video, "text": model.text}
    return {"video": model}


class _ToHost(HostOffload):
    """What a real one does, with host memory that is not counted: it is on "meta"."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        device = torch.device("cpu")
        self._lanes[device] = _HostLane(device, recorder)


class _HostLane(Lane):
    def __init__(self, device: torch.device, recorder: Recorder) -> None:
        super().__init__(device)
        self.recorder = recorder

    def host(self, x: Tensor) -> Tensor:
        self.recorder.offloaded += x.nbytes
        return torch.empty(x.shape, dtype=x.dtype, device="meta")

    def copy(self, to: Tensor, x: Tensor) -> None:
        """Takes its time on another stream."""


def _marks(model: nn.Module, recorder: Recorder) -> Iterator[torch.utils.hooks.RemovableHandle]:
    """Marks where the forward and the backward of each block begin, and where the forward of a stack ends."""
    for name, encoder in _encoders(model).items():
        for index, block in enumerate(encoder.blocks):

            def before(_module, _inputs, at=f"{name} {index}") -> None:
                # In the backward a checkpointed block runs forward again.
                if not recorder.backward:
                    recorder.mark(recorder.part + at)

            def after(_module, _inputs, output, at=f"{name} {index}", last=block is encoder.blocks[-1]) -> None:
                if recorder.backward:
                    return
                at = recorder.part + at
                if output.requires_grad:
                    output.register_hook(lambda _grad: recorder.mark(f"{at} backward"))
                if last:
                    recorder.mark(f"{at} end")

            yield block.register_forward_pre_hook(before)
            yield block.register_forward_hook(after)


def _gradients(model: nn.Module, recorder: Recorder) -> Iterator[torch.utils.hooks.RemovableHandle]:
    """Counts the parameters' gradients as they come; those of a second part are added to them."""
    there = set()

    def add(parameter: Tensor) -> None:
        if id(parameter) not in there:
            recorder.gradients += parameter.numel() * parameter.element_size()
            there.add(id(parameter))

    for parameter in model.parameters():
        if parameter.requires_grad:
            yield parameter.register_post_accumulate_grad_hook(add)


def _whole(trace: Trace, taken: Sequence[Step], frozen: int, trained: int) -> Trace:
    """The pass with as many blocks as the step has."""
    for index, one in enumerate(taken):
        video, text = (_prefix(index, len(taken)) + stack for stack in ("video", "text"))
        more = one.frozen - frozen
        if more and one.ahead:
            trace = trace.stretched(f"{video} 1", f"{video} 2", more)
        else:
            trace = _longer(trace, video, 0, more)
        trace = _longer(trace, video, frozen, one.config.depth - one.frozen - trained)
        if one.text is not None:
            times = one.text.depth - min(one.text.depth, one.run)
            if one.tune_text:
                trace = _longer(trace, text, 0, times)
            elif times:
                trace = trace.stretched(f"{text} 1", f"{text} 2", times)
    return trace


def _longer(trace: Trace, stack: str, first: int, times: int) -> Trace:
    """The second and third of the trained blocks of a stack, from block ``first`` on, show what more would do."""
    if times:
        trace = trace.stretched(f"{stack} {first + 1}", f"{stack} {first + 2}", times)
        trace = trace.stretched(f"{stack} {first + 2} backward", f"{stack} {first + 1} backward", times)
    return trace


def _counts(model: nn.Module, step: Step, frozen: int, trained: int) -> tuple[int, int]:
    """Parameters, and those that are trained, with as many blocks as the step has."""
    more = {"video": (step.frozen - frozen, step.config.depth - step.frozen - trained), "text": (0, 0)}
    if step.text is not None:
        more["text"] = (0, step.text.depth - min(step.text.depth, step.run))
    total = sum(p.numel() for p in model.parameters())
    learned = sum(p.numel() for p in model.parameters() if p.requires_grad)
    for name, encoder in _encoders(model).items():
        for block, times in zip((encoder.blocks[0], encoder.blocks[-1]), more[name], strict=True):
            total += times * sum(p.numel() for p in block.parameters())
            learned += times * sum(p.numel() for p in block.parameters() if p.requires_grad)
    return total, learned
