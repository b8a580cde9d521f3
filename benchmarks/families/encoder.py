"""Whole encoders: a training step with 75 % of the tokens masked, and a forward pass with all of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import fastvivit.functional as F
from fastvivit import ViViT
from fastvivit.models import ViViTConfig

from ..case import OURS, Bench, Case, Claim, Contestant, Options
from ..families.attention import attention_flops
from ..gate import far_apart
from ..peers import hf

VIDEOMAE, VIVIT = "transformers VideoMAE", "transformers ViViT"
# Two float32 encoders that sum in other orders drift apart layer by layer; another function would be near 1.
DRIFT = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def encoder_cases(options: Options) -> list[Case]:
    """The step at batch 2, the forward at batch 1; on a GPU batch 16, long clips, and ViT-L."""
    tiny = {"frames": 4, "size": 32, "width": 64, "depth": 2, "heads": 2, "ff": 128}
    base = ViViTConfig.base(images=False, **(tiny if options.quick else {}))
    if options.quick or not options.gpu:
        return [_step_case(options, "", base, 2), _forward_case(options, "", base)]
    # Memory: VideoMAE and ViViT stand beside ours, and the latter keeps every token of a step.
    return [
        _step_case(options, "", base, 16),
        _forward_case(options, "", base),
        _step_case(options, "ViT-B, ", ViViTConfig.base(images=False, frames=128), 1, vivit=False),
        _step_case(options, "ViT-L, ", ViViTConfig.large(images=False), 8, vivit=False),
    ]


def _weight_bytes(config: ViViTConfig, options: Options) -> int:
    return options.dtype.itemsize * config.depth * (4 * config.width**2 + 2 * config.width * config.ff)


def _facts(config: ViViTConfig, mask: int) -> dict[str, object]:
    model = "ViT-L" if config.width == 1024 else "ViT-B"
    return {"model": model, "frames": config.frames, "mask": mask, "rate": True}


def _peaks(encoders: _Encoders, wrap, options: Options) -> dict[str, Callable[[], Callable]]:
    # On a GPU each would be a process of tens of seconds; its memory is better asked for on its own.
    names = () if options.gpu else encoders.names
    return {name: (lambda name=name: encoders.contestant(name, wrap)) for name in names}


def _step_case(options: Options, model: str, config: ViViTConfig, clips: int, *, vivit: bool = True) -> Case:
    step = _Encoders(config, options, clips=clips, mask_ratio=0.75, vivit=vivit)
    size = f"{config.frames}x{config.size[0]}x{config.size[1]}"
    return Case(
        name=f"encoder/{model}training step, {config.frames} frames, 75 % masked",
        layer=f"{model or 'ViT-B, '}{clips} clips of {size}, {step.kept} of {config.tokens} tokens each",
        counts="forward, mean-pool loss, backward; no optimiser",
        flops=step.flops(backward=True),
        # Weights are read by the forward and twice by the backward, which writes their gradients.
        bytes=4 * _weight_bytes(config, options),
        build=lambda: step.bench(training_step),
        claims=(
            Claim(text="not slower than VideoMAE at the same mask", peers=(VIDEOMAE,), at_least=1.0),
            Claim(text="at least 5 x as fast as ViViT unmasked", peers=(VIVIT,), at_least=5.0),
        ),
        seconds=5.0 if options.gpu else 40.0,
        min_rounds=3,
        clock="wall",
        facts=_facts(config, 75) | {"direction": "forward + backward"},
        peak=_peaks(step, training_step, options),
    )


def _forward_case(options: Options, model: str, config: ViViTConfig) -> Case:
    forward = _Encoders(config, options, clips=1, mask_ratio=0.0)
    size = f"{config.frames}x{config.size[0]}x{config.size[1]}"
    return Case(
        name=f"encoder/{model}forward, {config.frames} frames, unmasked",
        layer=f"{model or 'ViT-B, '}1 clip of {size}, {config.tokens} tokens",
        counts="forward without gradients, all tokens after the final norm",
        flops=forward.flops(backward=False),
        bytes=_weight_bytes(config, options),
        build=lambda: forward.bench(_forward),
        claims=(Claim(text="not slower than ViViT", peers=(VIVIT,), at_least=1.0),),
        seconds=3.0 if options.gpu else 30.0,
        min_rounds=3,
        clock="wall",
        facts=_facts(config, 0) | {"direction": "forward"},
        peak=_peaks(forward, _forward, options),
    )


def _forward(features: Callable[[], Tensor], model: nn.Module) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.no_grad():
            return features()

    return call


def training_step(features: Callable[[], Tensor], model: nn.Module) -> Callable[[], Tensor]:
    """A call that takes a forward, the loss of the mean token, and a backward; no optimiser."""

    def call() -> Tensor:
        model.zero_grad(set_to_none=True)
        with torch.enable_grad():
            loss = features().mean(1).square().mean()
            loss.backward()
        return loss.detach()

    return call


class _Encoders:
    """The three encoders on the same clips. Ours gets VideoMAE's weights, so that results can be compared."""

    def __init__(
        self, config: ViViTConfig, options: Options, *, clips: int, mask_ratio: float, vivit: bool = True
    ) -> None:
        self.config, self.options, self.clips, self.mask_ratio = config, options, clips, mask_ratio
        self.names = (OURS, VIDEOMAE, *((VIVIT,) if vivit else ()))
        self.kept = config.tokens - int(config.tokens * mask_ratio)

    def flops(self, *, backward: bool) -> int:
        """Matrix products of our forward, or of forward and backward (the pixels get no gradient)."""
        c, rows = self.config, self.clips * self.kept
        linear = 2 * rows * c.depth * (4 * c.width**2 + 2 * c.width * c.ff)
        embed = 2 * rows * c.width * c.channels * c.tubelet[0] * c.tubelet[1] * c.tubelet[2]
        direction = "forward + backward" if backward else "forward"
        attention = c.depth * attention_flops([self.kept] * self.clips, c.heads, c.width // c.heads, direction)
        return attention + (3 * linear + 2 * embed if backward else linear + embed)

    def contestant(self, name: str, wrap) -> Callable[[], Tensor]:
        """Make one encoder and its inputs, and return the call."""
        model, features = self._make(name)
        return wrap(features, model)

    def bench(self, wrap) -> Bench:
        """Make those that can take part."""
        why_not = hf.missing()
        if why_not:
            # Ours alone has nothing to be held against, and so can't be timed.
            return Bench(contestants={OURS: Contestant(call=lambda: None)}, gate=lambda: why_not)
        models, contestants = {}, {}
        notes = {
            OURS: "from uint8 pixels",
            VIDEOMAE: "normalised pixels given" + (", same mask" if self.mask_ratio else ""),
            VIVIT: "normalised pixels given" + (", no mask: it has none" if self.mask_ratio else ""),
        }
        absent = {} if VIVIT in self.names else {VIVIT: "keeps every token: a step of this size is not run"}
        for name, note in ((name, notes[name]) for name in self.names):
            models[name], features = self._make(name)
            contestants[name] = Contestant(call=wrap(features, models[name]), note=note)
        hf.copy_weights(models[VIDEOMAE], models[OURS])
        return Bench(contestants=contestants, gate=lambda: _gate(contestants, models), absent=absent)

    def _make(self, name: str) -> tuple[nn.Module, Callable[[], Tensor]]:
        c, device = self.config, self.options.device
        generator = torch.Generator().manual_seed(0)
        shape = (self.clips, c.channels, c.frames, *c.size)
        video = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)
        keep = F.random_keep(self.clips, c.tokens, self.mask_ratio, generator=generator).to(device)
        torch.manual_seed(0)
        dtype = self.options.dtype
        if name == OURS:
            model, ids = ViViT(c).train().to(device, dtype), keep if self.mask_ratio else None
            return model, lambda: model(video, keep=ids).last_hidden_state
        pixels = hf.pixels(video).to(dtype)
        if name == VIVIT:
            model = hf.vivit(c).train().to(device, dtype)
            return model, lambda: model(pixels).last_hidden_state
        model, mask = (
            hf.videomae(c).train().to(device, dtype),
            hf.masked(keep, c.tokens) if self.mask_ratio else None,
        )
        return model, lambda: model(pixels, mask).last_hidden_state


def _gate(contestants: dict[str, Contestant], models: dict[str, nn.Module]) -> str | None:
    """Ours against VideoMAE with the same weights: the result, and gradients of first and last layers."""
    if VIVIT in contestants:
        try:
            contestants[VIVIT].call()
        except Exception as error:  # it has nothing to be compared with, but must run
            return f"{VIVIT}: {type(error).__name__}: {error}".splitlines()[0][:200]
    found, wanted = contestants[OURS].call(), contestants[VIDEOMAE].call()
    wrong = far_apart(found, wanted, DRIFT[found.dtype])
    if wrong:
        return f"result: {wrong}"
    ours, theirs = models[OURS], models[VIDEOMAE]
    pairs = {
        "embedding weight": (ours.embed.weight, theirs.embeddings.patch_embeddings.projection.weight),
        "last fc2 weight": (ours.blocks[-1].mlp.fc2.weight, theirs.encoder.layer[-1].output.dense.weight),
        "first proj weight": (
            ours.blocks[0].attn.proj.weight,
            theirs.encoder.layer[0].attention.output.dense.weight,
        ),
    }
    for name, (mine, other) in pairs.items():
        wrong = far_apart(mine.grad, other.grad, DRIFT[mine.dtype]) if other.grad is not None else None
        if wrong:
            return f"gradient of {name}: {wrong}"
    return None
