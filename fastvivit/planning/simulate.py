"""Runs a step under fake tensors and writes it down: the library's own modules, small numbers of blocks and clips."""

from __future__ import annotations

from collections.abc import Iterator
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
from fastvivit.modules.vivit import GROUPS, ViViT
from fastvivit.planning.fakes import attended, attention_flops, fill, kept_tokens, widen_norms
from fastvivit.planning.step import Step
from fastvivit.planning.texts import PlannedText
from fastvivit.planning.trace import AffineTrace, Recorder, Trace

# Blocks that are run of a stack of more: its first may differ from those after it, of which two show what one adds.
_RUN = 3


def _run_of(step: Step) -> int:
    # A block's input is packed for the host before the block begins, as the last op of the one before it.
    return _RUN + step.offload


DIM = 512


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """A step on any number of clips, and its parameters.

    Attributes:
        trace: one pass of a step: forward, loss and backward, on a model without gradients.
        parameters: of both encoders.
        trainable: of them.
        tokens: kept of a clip.
        rows: of a clip, its CLS tokens too.
    """

    trace: AffineTrace
    parameters: int
    trainable: int
    tokens: int
    rows: int


def simulate(step: Step) -> Simulated:
    """Run ``step`` on two clips and on three; where its batch and chunk are, and other copies of it, do not matter."""
    same = {"batch": 1, "chunk": 0, "prefix": "device", "states": "float32", "pixels": "clips", "batch_on": "device"}
    return _simulate(replace(step, **same))


@lru_cache(maxsize=64)
def _simulate(step: Step) -> Simulated:
    config, frozen, trained = _reduced(step)
    traces = []
    for clips in (2, 3):
        trace, model = _run(step, config, clips)
        traces.append(_whole(trace, step, frozen, trained))
    counts = _counts(model, step, frozen, trained)
    whole = encoder_config(step)
    tokens = kept_tokens(whole, step.mask_ratio)
    heads = {"clip": 1, "frame": whole.views[0][0], "view": len(whole.views)}[GROUPS[whole.attention]]
    return Simulated(
        trace=AffineTrace(*traces),
        parameters=counts[0],
        trainable=counts[1],
        tokens=tokens,
        rows=tokens + heads * whole.class_token,
    )


def encoder_config(step: Step) -> ViViTConfig:
    """The encoder that a step goes through."""
    # As ``fit`` builds it: an encoder of clips has no path for images. Images are clips of one time slot.
    if not step.images:
        return step.config.replace(images=False)
    return step.config.replace(frames=step.config.tubelet[0])


def _reduced(step: Step) -> tuple[ViViTConfig, int, int]:
    """The encoder with as many blocks as are run, and how many of those are frozen and trained."""
    frozen = min(step.frozen, _RUN)
    trained = min(step.config.depth - step.frozen, _run_of(step))
    return encoder_config(step).replace(depth=frozen + trained), frozen, trained


def _run(step: Step, config: ViViTConfig, clips: int) -> tuple[Trace, nn.Module]:
    """A pass on ``clips`` clips: its ops, and the model, on fake tensors."""
    model = _model(step, config)
    half = step.precision == "bfloat16"
    lengths = attended(config, step.mask_ratio, clips)
    with FakeTensorMode():
        fill(model, "cpu")
        frames = () if step.images else (config.frames,)
        video = torch.empty(clips, config.channels, *frames, *config.size, dtype=torch.uint8)
        keep = _kept(config, step.mask_ratio, clips)
        known = [*model.parameters(), video, *([] if keep is None else [keep.ids])]
        with Recorder(known, attention_flops(config, lengths)) as recorder:
            for encoder in _encoders(model).values():
                if encoder.offload is not None:
                    encoder.offload = _ToHost(recorder)
            handles = [*_marks(model, recorder), *_gradients(model, recorder)]
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss = _loss(model, video, keep, clips)
                recorder.between = True
            recorder.between, recorder.backward = False, True
            recorder.mark("backward")
            loss.backward()
        for handle in handles:
            handle.remove()
    return recorder.trace(), model


def _model(step: Step, config: ViViTConfig) -> nn.Module:
    """Both encoders on "meta", tuned as the step says; the video encoder alone without a text tower."""
    with torch.device("meta"):
        video = ViViT(config)
        if step.method == "last":
            tune.last_layers(video, config.depth - min(step.frozen, _RUN))
        elif step.method == "adapters":
            tune.add_adapters(video, step.number)
        elif step.method == "lora":
            tune.add_lora(video, step.number or 64)
        elif step.method == "temporal":
            tune.temporal_only(video)
        model: nn.Module = video
        if step.text is not None:
            text = PlannedText(replace(step.text, depth=min(step.text.depth, _run_of(step))))
            model = VideoTextModel(video, text, DIM)
    if step.checkpointing != "none":
        model.set_grad_checkpointing(True, step.checkpointing, offload=step.offload)
    if step.text is not None and not step.tune_text:
        model.text.requires_grad_(False)
    if step.precision == "bfloat16":
        widen_norms(model)
    return model.train()


def _kept(config: ViViTConfig, mask_ratio: float, clips: int) -> Kept | None:
    """Masks as they come into a step, drawn beforehand."""
    if not mask_ratio:
        return None
    counts = [t * h * w - int(t * h * w * mask_ratio) for t, h, w in config.views]
    return Kept(torch.empty(clips, sum(counts), dtype=torch.int64), tuple(counts))


def _loss(model: nn.Module, video: Tensor, keep: Kept | None, clips: int) -> Tensor:
    if isinstance(model, VideoTextModel):
        return model.losses(video, [""] * clips, keep=keep)["loss"]
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
                    recorder.mark(at)

            def after(_module, _inputs, output, at=f"{name} {index}", last=block is encoder.blocks[-1]) -> None:
                if recorder.backward:
                    return
                if output.requires_grad:
                    output.register_hook(lambda _grad: recorder.mark(f"{at} backward"))
                if last:
                    recorder.mark(f"{at} end")

            yield block.register_forward_pre_hook(before)
            yield block.register_forward_hook(after)


def _gradients(model: nn.Module, recorder: Recorder) -> Iterator[torch.utils.hooks.RemovableHandle]:
    """Counts the parameters' gradients as they come."""

    def add(parameter: Tensor) -> None:
        recorder.gradients += parameter.numel() * parameter.element_size()

    for parameter in model.parameters():
        if parameter.requires_grad:
            yield parameter.register_post_accumulate_grad_hook(add)


def _whole(trace: Trace, step: Step, frozen: int, trained: int) -> Trace:
    """The pass with as many blocks as the step has."""
    if step.frozen > frozen:
        trace = trace.stretched("video 1", "video 2", step.frozen - frozen)
    trace = _longer(trace, "video", frozen, step.config.depth - step.frozen - trained)
    if step.text is not None:
        times = step.text.depth - min(step.text.depth, _run_of(step))
        if step.tune_text:
            trace = _longer(trace, "text", 0, times)
        elif times:
            trace = trace.stretched("text 1", "text 2", times)
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
        more["text"] = (0, step.text.depth - min(step.text.depth, _run_of(step)))
    total = sum(p.numel() for p in model.parameters())
    learned = sum(p.numel() for p in model.parameters() if p.requires_grad)
    for name, encoder in _encoders(model).items():
        for block, times in zip((encoder.blocks[0], encoder.blocks[-1]), more[name], strict=True):
            total += times * sum(p.numel() for p in block.parameters())
            learned += times * sum(p.numel() for p in block.parameters() if p.requires_grad)
    return total, learned
