"""Contrastive steps on large masked batches: in chunks beside the batch in one piece, in time and in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import fastvivit as fv
import fastvivit.functional as F
from fastvivit.contrastive import ContrastivePart, chunked_backward, contrastive_losses
from fastvivit.train.build import scratch_tower
from fastvivit.train.tables import TextConfig

from ..case import OURS, Bench, Case, Claim, Contestant, Options
from ..gate import far_apart
from ..peers import hf
from .attention import attention_flops
from .encoder import DRIFT

ONE_SHOT = "fastvivit, the batch in one piece"
UNKEPT = "fastvivit, frozen blocks in both passes"
MASK = 0.75
WORDS = 12


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """A step's shapes.

    Attributes:
        video: of the encoder.
        clips: of the batch.
        chunk: of a pass.
        last: blocks that are trained; None for everything.
    """

    video: fv.ViViTConfig
    clips: int
    chunk: int
    last: int | None

    def step(self, options: Options, who: str) -> tuple[fv.VideoTextModel, Callable[[], Tensor]]:
        """The model, the same at every call, and a call that makes its gradients and returns the loss."""
        c = self.video
        draw = torch.Generator().manual_seed(0)
        shape = (self.clips, c.channels, c.frames, *c.size)
        video = torch.randint(256, shape, dtype=torch.uint8, generator=draw)
        keep = F.random_keep(self.clips, c.tokens, MASK, generator=draw)
        words = torch.randint(200, (self.clips, WORDS), generator=draw).tolist()
        texts = [" ".join(f"w{word}" for word in row) for row in words]
        torch.manual_seed(0)
        tower = scratch_tower(TextConfig(width=64 if options.quick else 256), texts)
        model = fv.VideoTextModel(fv.ViViT(c), tower).train().to(options.device)
        if self.last is not None:
            fv.tune.last_layers(model.video, self.last)
        if options.gpu:
            video, keep = video.pin_memory(), keep.pin_memory()
        parts = [ContrastivePart(video, texts, keep)]
        half = options.dtype != torch.float32

        def call() -> Tensor:
            model.zero_grad(set_to_none=True)
            with torch.autocast(options.device, options.dtype if half else None, enabled=half):
                if who != ONE_SHOT:
                    prefix = "off" if who == UNKEPT else "device"
                    return chunked_backward(model, parts, chunk=self.chunk, prefix=prefix)["loss"]
                loss = contrastive_losses(model, parts)["loss"]
            loss.backward()
            return loss.detach()

        return model, call

    def flops(self) -> int:
        """Products of the video encoder in the batch in one piece: forward, and backward of what is trained."""
        c, kept = self.video, self.video.tokens - int(self.video.tokens * MASK)
        trained, rows = (c.depth if self.last is None else self.last), self.clips * kept
        linear = 2 * rows * (4 * c.width**2 + 2 * c.width * c.ff)
        lengths, head = [kept] * self.clips, c.width // c.heads
        found = linear * (c.depth + 2 * trained)
        found += (c.depth - trained) * attention_flops(lengths, c.heads, head, "forward")
        found += trained * attention_flops(lengths, c.heads, head, "forward + backward")
        t, h, w = c.tubelet
        embed = 2 * rows * c.channels * t * h * w * c.width
        return found + embed * (2 if self.last is None else 1)


def contrastive_cases(options: Options) -> list[Case]:
    """Two sizes of batch at one of chunk, all trained; and the last four blocks alone."""
    tiny = {"size": 32, "width": 64, "depth": 5, "heads": 2, "ff": 128}
    if options.quick:
        config, sizes, chunk = fv.ViViTConfig.base(images=False, frames=4, **tiny), (4, 8), 2
    elif options.gpu:
        config, sizes, chunk = fv.ViViTConfig.base(images=False), (128, 256), 32
    else:
        config, sizes, chunk = fv.ViViTConfig.small(images=False, size=112), (64, 128), 16
    cases = [_case(options, Sizes(video=config, clips=clips, chunk=chunk, last=None)) for clips in sizes]
    return [*cases, _case(options, Sizes(video=config, clips=sizes[-1], chunk=chunk, last=4))]


def _case(options: Options, sizes: Sizes) -> Case:
    who = (OURS, ONE_SHOT) if sizes.last is None else (OURS, ONE_SHOT, UNKEPT)
    c, tuned = sizes.video, "" if sizes.last is None else f", last {sizes.last} blocks"
    claims = [Claim(text="within 1.35 x of the batch in one piece", peers=(ONE_SHOT,), at_most=1.35, times=True)]
    if sizes.last is not None:
        claims.append(
            Claim(text="frozen blocks kept, not run again: faster", peers=(UNKEPT,), at_least=1.15, times=True)
        )

    def build() -> Bench:
        if hf.missing():
            # The text tower is theirs.
            return Bench(contestants={OURS: Contestant(call=lambda: None)}, gate=hf.missing)
        made = {name: sizes.step(options, name) for name in who}
        contestants = {name: Contestant(call=call) for name, (_, call) in made.items()}
        return Bench(contestants=contestants, gate=partial(_same_step, made))

    return Case(
        name=f"contrastive/{sizes.clips} clips in chunks of {sizes.chunk}{tuned}, 75 % masked",
        layer=f"{c.width} wide, {c.depth} blocks, clips of {c.frames}x{c.size[0]}x{c.size[1]}, {c.tokens} tokens",
        counts="both towers and the loss, forward and backward; no optimiser",
        flops=sizes.flops(),
        bytes=0,
        build=build,
        claims=tuple(claims),
        seconds=5.0 if options.gpu else 60.0,
        min_rounds=3,
        clock="wall",
        facts={
            "model": f"{c.width} wide", "frames": c.frames, "mask": 75, "clips": sizes.clips, "chunk": sizes.chunk,
            "direction": "forward + backward",
        },
        peak={} if options.gpu else {name: (lambda name=name: sizes.step(options, name)[1]) for name in who},
    )  # fmt: skip


def _same_step(made: dict[str, tuple[fv.VideoTextModel, Callable[[], Tensor]]]) -> str | None:
    """Loss and every gradient of a step against those of the batch in one piece."""
    found = {}
    for name, (model, call) in made.items():
        loss = call()
        found[name] = {n: p.grad for n, p in model.named_parameters() if p.grad is not None} | {"loss": loss}
        model.zero_grad(set_to_none=True)
    wanted = found.pop(ONE_SHOT)
    largest = max(float(grad.double().square().mean().sqrt()) for grad in wanted.values())
    for who, parts in found.items():
        if parts.keys() != wanted.keys():
            return f"{who}: gradients of {sorted(parts.keys() ^ wanted.keys())[:3]} are one side's alone"
        for name, right in wanted.items():
            # A key's bias has no effect, and its gradient is rounding: small ones are held against the largest.
            if right.double().square().mean().sqrt() < 1e-5 * largest:
                continue
            wrong = far_apart(parts[name], right, 10 * DRIFT[right.dtype])
            if wrong:
                return f"{who}: {name}: {wrong}"
    return None
