"""Video to text: writing about a long clip beside the language model alone, and what kept vision saves in training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import fastvivit as fv
import fastvivit.functional as F

from ..case import OURS, Bench, Case, Claim, Contestant, Options
from ..gate import SANE, far_apart
from ..peers import hf, llama
from .attention import attention_flops

ALONE = "transformers, the language model alone"
RESAMPLED, ENCODED = "fastvivit, resampler and keys alone", "fastvivit, clip to keys, 75 % masked"
UNKEPT = "the same, encoder in every step"
# Flamingo's number of latents; the paper has as many as places.
FEW = 64
# The paper finds little gained over going without a resampler (appendix A).
NONE = 0
# What every gate is opened to.
OPEN = 0.5


def caption_cases(options: Options) -> list[Case]:
    """Generation after a long clip, and a training step from kept vision."""
    return [_generate_case(options), *(_step_case(options, latents) for latents in (None, FEW, NONE))]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """A captioner's shapes.

    Attributes:
        video: of the encoder.
        lm: of the language model.
        resampler: arguments of the resampler; with no latents there is none.
    """

    video: fv.ViViTConfig
    lm: dict[str, object]
    resampler: dict[str, int]

    @classmethod
    def of(cls, options: Options, frames: int, latents: int | None = None) -> Sizes:
        """ViT-B at 256 pixels, the paper's resampler, SmolLM2-135M; toys in a quick run."""
        tiny = {"size": 32, "width": 64, "depth": 2, "heads": 2, "ff": 128} if options.quick else {}
        video = fv.ViViTConfig.base(images=False, frames=frames, **tiny)
        lm = llama.TINY if options.quick else llama.SMOLLM2
        resampler = {"dim": 1024, "depth": 3, "heads": 8, "ff": 4096}
        if options.quick:
            resampler = {"dim": 48, "depth": 1, "heads": 2, "ff": 128}
        latents = video.grid[1] * video.grid[2] if latents is None else latents
        resampler |= {"in_dim": video.width, "latents": latents, "out_dim": lm["hidden_size"]}
        return cls(video=video, lm=lm, resampler=resampler)

    def captioner(self, options: Options) -> fv.VideoCaptioner:
        """Random weights, gates open, the same at every call."""
        words = llama.tokenizer(self.lm["vocab_size"])
        language = llama.language_model(self.lm, options.device, options.dtype)
        torch.manual_seed(1)
        resampler = fv.PerceiverResampler(**self.resampler) if self.resampler["latents"] else False
        captioner = fv.VideoCaptioner(fv.ViViT(self.video), language, words, resampler)
        captioner.to(options.device, options.dtype)
        _set_gates(captioner, OPEN)
        return captioner

    def clips(self, count: int, options: Options) -> Tensor:
        """Random bytes."""
        c, generator = self.video, torch.Generator().manual_seed(0)
        shape = (count, c.channels, c.frames, *c.size)
        return torch.randint(256, shape, dtype=torch.uint8, generator=generator).to(options.device)

    def keep(self, count: int, mask_ratio: float, options: Options) -> Tensor:
        """Which tokens are left."""
        generator = torch.Generator().manual_seed(0)
        return F.random_keep(count, self.video.tokens, mask_ratio, generator=generator).to(options.device)

    @property
    def text_weights(self) -> int:
        """Parameters that a token passes: blocks of the language model, its head, the new layers but their keys."""
        width, ff, depth = (self.lm[n] for n in ("hidden_size", "intermediate_size", "num_hidden_layers"))
        shared = width * self.lm["num_key_value_heads"] // self.lm["num_attention_heads"]
        block = 2 * width * (width + shared) + 3 * width * ff
        return depth * (block + 2 * width**2) + self.lm["vocab_size"] * width

    @property
    def keys_width(self) -> int:
        """Width of a new layer's keys: heads of 64 share them as the language model's do, where that divides them."""
        width = self.lm["hidden_size"]
        heads, shared = max(1, width // 64), self.lm["num_attention_heads"] // self.lm["num_key_value_heads"]
        return heads // math.gcd(heads, shared) * min(64, width)

    def resampling(self, clips: int) -> int:
        """FLOPs from averaged tokens to the keys of every new layer: latents see tokens and latents."""
        dim, depth, ff, latents = (self.resampler[n] for n in ("dim", "depth", "ff", "latents"))
        places = self.video.grid[1] * self.video.grid[2]
        width, blocks = self.lm["hidden_size"], self.lm["num_hidden_layers"]
        if not latents:
            return 2 * clips * places * width * (self.video.width + blocks * 2 * self.keys_width)
        keys = latents + places
        # Queries and results, the feed-forward layer; keys and values; attention.
        layer = latents * (2 * dim**2 + 2 * dim * ff) + keys * 2 * dim**2 + 2 * latents * keys * dim
        start = places * self.video.width * dim if dim != self.video.width else 0
        end = latents * dim * width
        return 2 * clips * (depth * layer + start + end + blocks * latents * 2 * width * self.keys_width)


def _set_gates(captioner: fv.VideoCaptioner, value: float) -> None:
    """tanh(``value``) is the share of what is seen."""
    with torch.no_grad():
        for layer in captioner.layers:
            layer.gate.fill_(value)


def _generate_case(options: Options) -> Case:
    frames, tokens = (8, 8) if options.quick else (256, 32)
    sizes = Sizes.of(options, frames)

    def build() -> Bench:
        if hf.missing():
            return _absent()
        captioner, clip = sizes.captioner(options), sizes.clips(1, options)
        keep = sizes.keep(1, 0.75, options)
        alone = llama.language_model(sizes.lm, options.device, options.dtype)
        vision = captioner.encode_video(clip, keep=keep)

        @torch.no_grad()
        def keys(seen: fv.Vision) -> Tensor:
            media = captioner.look(seen)
            return torch.stack([layer.attn.keys(media.tokens)[0] for layer in captioner.layers])

        def encode() -> Tensor:
            return keys(captioner.encode_video(clip, keep=keep))

        def write(**more: object) -> str:
            # No token ends a text, or a random model might stop before it has written as many as are timed.
            return captioner.generate(vision, "", tokens, eos_token_id=None, **more)[0]

        def drawn(**more: object) -> str:
            # A random model's likeliest word is the same for ever; what is drawn depends on all of its logits.
            torch.manual_seed(0)
            return write(do_sample=True, **more)

        def gate() -> str | None:
            """Shut gates leave the language model's own text; open ones say token by token what they say at once."""
            _set_gates(captioner, 0.0)
            shut = drawn()
            _set_gates(captioner, OPEN)
            torch.manual_seed(0)
            bare = llama.generate(alone, tokens, do_sample=True)[0]
            bare = captioner.tokenizer.decode(bare, skip_special_tokens=True)
            if shut != bare:
                return f"shut gates: wrote {shut[:60]!r}, the language model alone {bare[:60]!r}"
            found, wanted = drawn(), drawn(use_cache=False)
            if found != wanted:
                return f"token by token: wrote {found[:60]!r}, without a cache {wanted[:60]!r}"
            return None if found != shut else "open gates: wrote what shut ones write"

        contestants = {
            OURS: Contestant(call=write, note="resampler, keys and all tokens; the clip is encoded before"),
            ALONE: Contestant(call=lambda: llama.generate(alone, tokens), same=False),
            RESAMPLED: Contestant(call=lambda: keys(vision), same=False),
            ENCODED: Contestant(call=encode, same=False),
        }
        return Bench(contestants=contestants, gate=gate)

    within = {"peers": (ALONE,), "at_most": 1.3, "times": True}
    return Case(
        name=f"caption/{tokens} tokens after {frames} frames",
        layer=f"ViT-B's tokens of {frames} frames averaged at 256 places, the paper's resampler, SmolLM2-135M's shape",
        counts="greedy generate from a Vision",
        flops=sizes.resampling(1) + 2 * tokens * sizes.text_weights,
        bytes=options.dtype.itemsize * tokens * sizes.text_weights,
        build=build,
        claims=(Claim(text="a token within 1.3 x of the language model's own", minus=RESAMPLED, **within),),
        seconds=10.0,
        min_rounds=7,
        clock="wall",
        facts={"model": "ViT-B + SmolLM2-135M", "frames": frames, "mask": 75, "direction": "forward"},
    )


def _step_case(options: Options, latents: int | None = None) -> Case:
    # Captions of MSR-VTT, VATEX, YouCook2 and ActivityNet have 9 to 15 words.
    frames, clips, words = (4, 2, 4) if options.quick else (16, 8, 16)
    sizes = Sizes.of(options, frames, latents)
    mask = 30

    def make() -> tuple[fv.VideoCaptioner, dict[str, Callable[[], Tensor]]]:
        """The captioner, and the loss from kept vision and from pixels."""
        captioner = sizes.captioner(options).train()
        video, keep = sizes.clips(clips, options), sizes.keep(clips, mask / 100, options)
        # Each ends with the end token, which is learned, too.
        drawn = torch.randint(2, sizes.lm["vocab_size"], (clips, words - 1), generator=torch.Generator().manual_seed(0))
        texts = [" ".join(f"w{i}" for i in row) for row in drawn.tolist()]
        vision = captioner.encode_video(video, keep=keep)
        return captioner, {
            OURS: lambda: captioner(vision, texts),
            UNKEPT: lambda: captioner(video, texts, keep=keep),
        }

    def step(captioner: fv.VideoCaptioner, loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
        trained = [parameter for parameter in captioner.parameters() if parameter.requires_grad]
        optimiser = torch.optim.AdamW(trained, lr=1e-4, fused=True)

        def call() -> Tensor:
            optimiser.zero_grad(set_to_none=True)
            found = loss()
            found.backward()
            optimiser.step()
            return found.detach()

        return call

    def build() -> Bench:
        if hf.missing():
            return _absent()
        captioner, losses = make()
        contestants = {
            OURS: Contestant(call=step(captioner, losses[OURS]), note="vision kept from before"),
            UNKEPT: Contestant(
                call=step(captioner, losses[UNKEPT]),
                flops=2 * clips * _encoding(sizes.video, mask) + _stepping(sizes, clips, words),
            ),
        }
        return Bench(contestants=contestants, gate=lambda: _same_step(captioner, losses))

    def peak(who: str) -> Callable[[], Callable[[], Tensor]]:
        def made() -> Callable[[], Tensor]:
            captioner, losses = make()
            return step(captioner, losses[who])

        return made

    return Case(
        name=f"caption/training step, {frames} frames, vision kept{_NAMES[latents]}",
        layer=f"ViT-B at 256 pixels, {mask} % masked, {_resampler(sizes)}, SmolLM2-135M's shape; {clips} clips, "
        f"captions of {words} tokens",
        counts="loss, backward, AdamW",
        flops=_stepping(sizes, clips, words),
        bytes=0,
        build=build,
        claims=(
            Claim(text="at least 5 x as fast as with the encoder in it", peers=(UNKEPT,), at_least=5.0, times=True),
        ),
        seconds=30.0,
        min_rounds=3,
        clock="wall",
        facts={
            "model": "ViT-B + SmolLM2-135M", "frames": frames, "mask": mask, "direction": "forward + backward",
        },
        peak={} if options.gpu else {who: peak(who) for who in (OURS, UNKEPT)},
    )  # fmt: skip


_NAMES = {None: "", FEW: f", {FEW} latents", NONE: ", no resampler"}


def _resampler(sizes: Sizes) -> str:
    latents = sizes.resampler["latents"]
    return f"the paper's resampler with {latents} latents" if latents else "no resampler"


def _encoding(config: fv.ViViTConfig, mask: int) -> int:
    """Multiplications of the frozen encoder's forward on one clip."""
    kept = config.tokens - config.tokens * mask // 100
    linear = kept * config.depth * (4 * config.width**2 + 2 * config.width * config.ff)
    return linear + config.depth * attention_flops([kept], config.heads, config.width // config.heads, "forward") // 2


def _stepping(sizes: Sizes, clips: int, words: int) -> int:
    """FLOPs of a step without the encoder: the trained part three times, the frozen weights twice."""
    return 3 * sizes.resampling(clips) + 2 * 2 * clips * words * sizes.text_weights


def _absent() -> Bench:
    """Ours alone has nothing to be held against, and so can't be timed."""
    return Bench(contestants={OURS: Contestant(call=lambda: None)}, gate=hf.missing)


def _same_step(captioner: fv.VideoCaptioner, losses: dict[str, Callable[[], Tensor]]) -> str | None:
    """Loss and every gradient from kept vision against those from pixels with the same mask."""
    found: dict[str, dict[str, Tensor]] = {}
    for who, loss in losses.items():
        captioner.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        found[who] = {name: p.grad for name, p in captioner.named_parameters() if p.grad is not None}
        found[who]["loss"] = value.detach()
    captioner.zero_grad(set_to_none=True)
    trained = {name for name, p in captioner.named_parameters() if p.requires_grad}
    for who, parts in found.items():
        if parts.keys() != trained | {"loss"}:
            return f"{who}: gradients of {sorted(parts.keys() ^ trained)[:3]} beside those of what is trained"
    largest = max(float(grad.double().square().mean().sqrt()) for grad in found[UNKEPT].values())
    for name, wanted in found[UNKEPT].items():
        # A key's bias has no effect, and its gradient is rounding: small ones are held against the largest.
        if wanted.double().square().mean().sqrt() < 1e-6 * largest:
            continue
        wrong = far_apart(found[OURS][name], wanted, SANE[wanted.dtype])
        if wrong:
            return f"{name}: {wrong}"
    return None
