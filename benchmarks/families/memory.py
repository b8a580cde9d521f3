"""The switches that save memory: time and peak of a training step under each, beside keeping everything."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastvivit import ViViT
from fastvivit.models import ViViTConfig

from ..case import OURS, Bench, Case, Claim, Contestant, Options
from ..gate import far_apart
from ..peers.selective import SelectiveBlock
from .attention import attention_flops

KEPT, FULL, OFFLOADED = "fastvivit, everything kept", "fastvivit, full", "fastvivit, full, offloaded"
TORCH = "torch.utils.checkpoint with a policy"
SWITCHES: dict[str, dict[str, object]] = {
    OURS: {"enable": True, "policy": "selective"},
    KEPT: {"enable": False},
    FULL: {"enable": True, "policy": "full"},
    OFFLOADED: {"enable": True, "policy": "full", "offload": True},
    TORCH: {"enable": False},
}
NOTES = {
    OURS: "selective: norms, activation and moves of rows again",
    FULL: "blocks again",
    OFFLOADED: "blocks again, their inputs in host memory; on a CPU a plain copy",
    TORCH: "keeps products and attention",
}
# The same sums everywhere, but for those that a GPU's atomics take in another order.
LIMITS = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}


def memory_cases(options: Options) -> list[Case]:
    """A step on every token, where activations outweigh all else: four blocks of ViT-B, on a GPU all of ViT-L."""
    tiny = {"size": 64, "width": 64, "depth": 2, "heads": 2, "ff": 256, "frames": 4}
    if options.quick:
        return [_case(options, "ViT-B", ViViTConfig.base(images=False, **tiny), 1)]
    if options.gpu:
        return [_case(options, "ViT-L", ViViTConfig.large(images=False, frames=64), 2)]
    return [_case(options, "ViT-B", ViViTConfig.base(images=False, depth=4), 1)]


def _case(options: Options, model: str, config: ViViTConfig, clips: int) -> Case:
    products = 2 * clips * config.tokens * config.depth * (4 * config.width**2 + 2 * config.width * config.ff)
    once = attention_flops([config.tokens] * clips, config.heads, config.width // config.heads, "forward")
    both = attention_flops([config.tokens] * clips, config.heads, config.width // config.heads, "forward + backward")
    weights = 4 * config.depth * (4 * config.width**2 + 2 * config.width * config.ff)
    again = products + config.depth * once
    flops = 3 * products + config.depth * both

    def step(name: str) -> Callable[[], list[Tensor]]:
        return _step(*_make(options, config, clips, name), options)

    return Case(
        name=f"memory/training step, {config.frames} frames, unmasked",
        layer=f"{config.depth} blocks of {model}, {clips} x {config.tokens} tokens",
        counts="forward, mean-pool loss, backward; no optimiser",
        flops=flops,
        bytes=4 * weights,
        build=lambda: _build(options, config, clips, flops + again),
        claims=(
            Claim(text="selective costs at most 5 % of the time", peers=(KEPT,), at_most=1.05),
            Claim(text="selective within 3 % of torch's own, which keeps more", peers=(TORCH,), at_most=1.03),
        ),
        seconds=5.0 if options.gpu else 40.0,
        min_rounds=3,
        clock="wall",
        facts={"model": model, "frames": config.frames, "mask": 0, "direction": "forward + backward"},
        peak={name: (lambda name=name: _loaded(step(name))) for name in SWITCHES},
    )


def _make(options: Options, config: ViViTConfig, clips: int, name: str) -> tuple[ViViT, Tensor]:
    torch.manual_seed(0)
    encoder = ViViT(config).train()
    encoder.set_grad_checkpointing(**SWITCHES[name])
    if name == TORCH:
        encoder.blocks = nn.ModuleList(SelectiveBlock(block) for block in encoder.blocks)
    shape = (clips, config.channels, config.frames, *config.size)
    video = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return encoder.to(options.device), video.to(options.device)


def _step(encoder: ViViT, video: Tensor, options: Options) -> Callable[[], list[Tensor]]:
    """A call: the pooled clip, and gradients of the first and the last layer."""
    half = options.dtype != torch.float32

    def call() -> list[Tensor]:
        encoder.zero_grad(set_to_none=True)
        with torch.enable_grad(), torch.autocast(video.device.type, options.dtype if half else None, enabled=half):
            pooled = encoder(video).pooled
            pooled.float().square().mean().backward()
        return [pooled.detach(), encoder.embed.weight.grad, list(encoder.blocks.parameters())[-2].grad]

    return call


def _loaded(call: Callable[[], list[Tensor]]) -> Callable[[], list[Tensor]]:
    """The call, after what PyTorch imports at its first checkpoint, which is no part of a step."""
    checkpoint(torch.sin, torch.zeros(1, requires_grad=True), use_reentrant=False).backward()
    return call


def _build(options: Options, config: ViViTConfig, clips: int, twice: int) -> Bench:
    contestants = {
        name: Contestant(
            call=_step(*_make(options, config, clips, name), options),
            note=NOTES.get(name, ""),
            flops=twice if name in (FULL, OFFLOADED) else None,
        )
        for name in SWITCHES
    }

    def gate() -> str | None:
        wanted = contestants[KEPT].call()
        for name, contestant in contestants.items():
            for what, got, want in zip(("result", "gradient", "gradient"), contestant.call(), wanted, strict=True):
                wrong = far_apart(got, want, LIMITS[options.dtype])
                if wrong:
                    return f"{name}: {what}: {wrong}"
        return None

    return Bench(contestants=contestants, gate=gate)
