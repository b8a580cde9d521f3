"""Models of transformers: imported, or accelerated in place, beside themselves with the same weights and inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from operator import attrgetter

import torch
from torch import Tensor, nn

import fastvivit as fv
import fastvivit.functional as F

from ..case import OURS, Bench, Case, Claim, Contestant, Options
from ..gate import SANE, far_apart
from ..peers import hf
from .attention import attention_flops
from .encoder import training_step

THEIRS, ACCELERATED, ALL = "transformers", "accelerated in place", "accelerated in place, all tokens"
LATE = "transformers, same mask after its patch embedding"
# What two float32 encoders of 12 layers that sum in other orders may differ by, in outputs of size 1.
WITHIN = 1e-5


@dataclass(frozen=True, kw_only=True)
class _Model:
    """A model of transformers, and how it is called.

    Attributes:
        make: it, with random weights.
        shape: of its pixels: (B, T, C, H, W), or (B, C, H, W) for images.
        tokens: grid tokens of one input.
        imported: an encoder of ours with its weights, or None where there is no importer.
        accelerate: whether ``fv.accelerate`` takes it.
        read: makes of the model what takes the tokens to compare out of its output.
        call: further arguments.
        linear: parameters of a layer's products, in squares of the width.
        sequences: (how many, of what length) attention runs over in a layer, for one input; None is once over all.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    tokens: int
    imported: Callable[[nn.Module], nn.Module] | None = None
    accelerate: bool = False
    read: Callable[[nn.Module], Callable[[object], Tensor]] = lambda model: attrgetter("last_hidden_state")
    call: tuple[tuple[str, object], ...] = ()
    linear: int = 12
    sequences: tuple[tuple[int, int], ...] | None = None

    def runner(self, model: nn.Module, pixels: Tensor, **more: object) -> Callable[[], Tensor]:
        """A call that returns its tokens (B, N, D)."""
        read, named = self.read(model), dict(self.call) | more
        return lambda: read(model(pixels, **named))

    def ours(self, encoder: nn.Module, pixels: Tensor, keep: Tensor | None = None) -> Tensor:
        """Ours, of the same pixels."""
        video = pixels.transpose(1, 2) if pixels.dim() == 5 else pixels
        return encoder(video, keep=keep).last_hidden_state


def model_cases(options: Options) -> list[Case]:
    """A forward of every model that is imported or accelerated, and masked training steps of accelerated ones."""
    models = _models(options.quick)
    cases = [_forward_case(options, *item) for item in models.items()]
    return cases + [_step_case(options, name, models[name]) for name in ("ViViT", "VideoMAE")]


class _Transformers:
    """transformers, imported when the first model is made."""

    def __getattr__(self, name: str) -> object:
        return getattr(import_module("transformers"), name)


def _models(quick: bool) -> dict[str, _Model]:
    t = _Transformers()
    size = 64 if quick else 224
    wide = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
    wide = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2} if quick else wide
    ff = {"intermediate_size": 4 * wide["hidden_size"]}
    sdpa = {"attn_implementation": "sdpa"}
    clips, images = 1, 2 if quick else 8
    patches, small = (size // 16) ** 2, (size // 14) ** 2 if not quick else (56 // 14) ** 2

    def image_encoder(tubelet: tuple[int, int, int], pixels: int) -> Callable[[nn.Module], nn.Module]:
        config = fv.ViViTConfig(frames=tubelet[0], size=pixels, tubelet=tubelet, attention="frame", pool=None)
        return lambda model: fv.from_image_vit(model, config)

    def post_norm(model: nn.Module) -> Callable[[object], Tensor]:
        norm = next(module for name, module in model.named_modules() if name.endswith("post_layernorm"))
        return lambda out: norm(out.last_hidden_state)

    return {
        "ViViT": _Model(
            make=lambda: t.VivitModel(
                t.VivitConfig(image_size=size, num_frames=8 if quick else 32, **wide, **ff, **sdpa),
                add_pooling_layer=False,
            ),
            shape=(clips, 8 if quick else 32, 3, size, size),
            tokens=(4 if quick else 16) * patches,
            imported=fv.from_hf_vivit,
            accelerate=True,
        ),
        "VideoMAE": _Model(
            make=lambda: t.VideoMAEModel(
                t.VideoMAEConfig(image_size=size, use_mean_pooling=False, **wide, **ff, **sdpa)
            ),
            shape=(clips, 16, 3, size, size),
            tokens=8 * patches,
            imported=fv.from_hf_videomae,
            accelerate=True,
        ),
        "TimeSformer": _Model(
            make=lambda: t.TimesformerModel(t.TimesformerConfig(image_size=size, **wide, **ff)),
            shape=(clips, 8, 3, size, size),
            tokens=8 * patches,
            accelerate=True,
            # Attention over time, with an output layer of its own, then within frames, a CLS in each.
            linear=17,
            sequences=((patches, 8), (8, patches + 1)),
        ),
        "V-JEPA 2": _Model(
            make=lambda: t.VJEPA2Model(
                t.VJEPA2Config(
                    crop_size=size, frames_per_clip=16, pred_num_hidden_layers=1, pred_hidden_size=48, **wide, **sdpa
                )
            ),
            shape=(clips, 16, 3, size, size),
            tokens=8 * patches,
            accelerate=True,
            call=(("skip_predictor", True),),
        ),
        "ViT": _Model(
            make=lambda: t.ViTModel(t.ViTConfig(image_size=size, **wide, **ff, **sdpa), add_pooling_layer=False),
            shape=(images, 3, size, size),
            tokens=patches,
            imported=image_encoder((1, 16, 16), size),
        ),
        "DINOv2": _Model(
            make=lambda: t.Dinov2Model(t.Dinov2Config(image_size=56 if quick else 518, **wide, **sdpa)),
            shape=(images, 3, 56, 56) if quick else (images, 3, size, size),
            tokens=small,
            imported=image_encoder((1, 14, 14), 56 if quick else size),
        ),
        "CLIP": _Model(
            make=lambda: t.CLIPVisionModel(t.CLIPVisionConfig(image_size=size, patch_size=16, **wide, **ff, **sdpa)),
            shape=(images, 3, size, size),
            tokens=patches,
            imported=image_encoder((1, 16, 16), size),
            read=post_norm,
        ),
    }


def _flops(model: _Model, options: Options, kept: int, direction: str) -> int:
    """Matrix products of the blocks; the patch product is a hundredth of them, and left out."""
    width, depth, heads = (64, 2, 2) if options.quick else (768, 12, 12)
    lengths = [length for count, length in model.sequences or ((1, kept),) for _ in range(count)] * model.shape[0]
    linear = 2 * model.shape[0] * kept * depth * model.linear * width**2
    attention = depth * attention_flops(lengths, heads, width // heads, direction)
    return attention + (3 * linear if direction == "forward + backward" else linear)


def _pair(model: _Model, options: Options) -> tuple[nn.Module, Tensor]:
    """The model as transformers makes it, but with what is zero drawn: nothing is left out unseen. And pixels."""
    torch.manual_seed(0)
    net = model.make().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.02)
    pixels = torch.randn(model.shape, generator=torch.Generator().manual_seed(0))
    return net.to(options.device, options.dtype), pixels.to(options.device, options.dtype)


def _forward_case(options: Options, name: str, model: _Model) -> Case:
    clips = "x".join(map(str, model.shape))

    def build() -> Bench:
        if hf.missing():
            return _absent()
        theirs, pixels = _pair(model, options)
        calls = {THEIRS: model.runner(theirs, pixels)}
        if model.accelerate:
            calls[ACCELERATED] = model.runner(fv.accelerate(copy.deepcopy(theirs)), pixels)
        if model.imported is not None:
            encoder = model.imported(theirs).eval().to(options.device, options.dtype)
            calls[OURS] = lambda: model.ours(encoder, pixels)
        else:
            calls[OURS] = calls.pop(ACCELERATED)
        names = (OURS, *(who for who in calls if who != OURS))
        contestants = {who: Contestant(call=_quietly(calls[who])) for who in names}
        return Bench(contestants=contestants, gate=lambda: _same_outputs(contestants, THEIRS))

    accelerated = (ACCELERATED,) if model.accelerate and model.imported else ()
    text = "not slower than transformers"
    return Case(
        name=f"models/{name} forward",
        layer=f"transformers {name} at the sizes of ViT-B, pixels {clips}, {model.tokens} tokens each",
        counts="forward without gradients, from float pixels; " + ("imported" if model.imported else "accelerated"),
        flops=_flops(model, options, model.tokens, "forward"),
        bytes=0,
        build=build,
        claims=tuple(Claim(text=text, who=who, peers=(THEIRS,), at_least=1.0) for who in (OURS, *accelerated)),
        seconds=20.0,
        min_rounds=3,
        clock="wall",
        facts={"model": name, "direction": "forward"},
    )


def _step_case(options: Options, name: str, model: _Model) -> Case:
    kept = model.tokens // 4
    keep = F.random_keep(model.shape[0], model.tokens, 0.75, generator=torch.Generator().manual_seed(0))
    full = _flops(model, options, model.tokens, "forward + backward")

    def contestant(who: str) -> tuple[Callable[[], Tensor], nn.Module]:
        net, pixels = _pair(model, options)
        ids = keep.to(options.device)
        if who == LATE:
            return lambda: hf.late(net, pixels, ids), net
        if who in (OURS, ALL):
            fv.accelerate(net)
        return model.runner(net, pixels, **({"keep": ids} if who == OURS else {})), net

    def build() -> Bench:
        if hf.missing():
            return _absent()
        made = {who: contestant(who) for who in (OURS, THEIRS, ALL, LATE)}
        works = {THEIRS: full, ALL: full}
        contestants = {
            who: Contestant(call=training_step(*made[who]), same=who in (OURS, LATE), flops=works.get(who))
            for who in made
        }
        features = {who: Contestant(call=_quietly(made[who][0])) for who in made}

        def gate() -> str | None:
            pairs = ((OURS, LATE), (ALL, THEIRS))
            wrong = (
                _same_outputs({who: features[who] for who in pair}, pair[1])
                or _same_gradients(contestants, {who: made[who][1] for who in pair}, *pair)
                for pair in pairs
            )
            return next(filter(None, wrong), None)

        return Bench(contestants=contestants, gate=gate)

    return Case(
        name=f"models/{name} training step, 75 % masked",
        layer=f"transformers {name} at the sizes of ViT-B, {kept} of {model.tokens} tokens, by fv.accelerate",
        counts="forward, mean-pool loss, backward; no optimiser",
        flops=_flops(model, options, kept, "forward + backward"),
        bytes=0,
        build=build,
        claims=(
            Claim(
                text="at least 4 x as fast as the same model's full step", peers=(THEIRS, ALL), at_least=4.0, times=True
            ),
        ),
        seconds=40.0,
        min_rounds=2,
        clock="wall",
        facts={"model": name, "mask": 75, "direction": "forward + backward"},
        peak={} if options.gpu else {who: (lambda who=who: training_step(*contestant(who))) for who in (OURS, THEIRS)},
    )


def _absent() -> Bench:
    """Ours alone has nothing to be held against, and so can't be timed."""
    return Bench(contestants={OURS: Contestant(call=lambda: None)}, gate=hf.missing)


def _quietly(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.no_grad():
            return call()

    return run


def _same_outputs(contestants: dict[str, Contestant], reference: str) -> str | None:
    """All outputs against those of one of them."""
    wanted = contestants[reference].call()
    for name, contestant in contestants.items():
        found = contestant.call()
        wrong = far_apart(found, wanted, SANE[found.dtype])
        if not wrong and found.dtype == torch.float32 and not (found - wanted).abs().max() <= WITHIN:
            wrong = f"largest difference {(found - wanted).abs().max():.1e}, wanted at most {WITHIN:.0e}"
        if wrong:
            return f"{name}: {wrong}"
    return None


def _same_gradients(
    contestants: dict[str, Contestant], models: dict[str, nn.Module], who: str, reference: str
) -> str | None:
    """Every gradient of a step against that of the same model's own step."""
    grads = {}
    for name in (who, reference):
        contestants[name].call()
        grads[name] = {key: p.grad.double() for key, p in models[name].named_parameters() if p.grad is not None}
    found, wanted = grads[who], grads[reference]
    if found.keys() != wanted.keys():
        return f"{who}: gradients of {sorted(found.keys() ^ wanted.keys())[:3]}, wanted those of {reference}"
    # A key's bias has no effect, and its gradient is rounding: small ones are held against the largest.
    largest = max(grad.square().mean().sqrt() for grad in wanted.values())
    for key, grad in wanted.items():
        error = (found[key] - grad).square().mean().sqrt()
        limit = SANE[next(models[who].parameters()).dtype]
        if not error <= limit * max(grad.square().mean().sqrt(), 1e-3 * largest):
            return f"{who}: gradient of {key}: RMS error {error:.1e} of {grad.square().mean().sqrt():.1e}"
    return None
