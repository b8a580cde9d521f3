"""Tubelet embedding of ViT-B: uint8 clips of 16, 128 and 256 frames, all or some of the tubelets."""

from __future__ import annotations

from math import prod

import torch

import fastvivit.functional as F

from ..case import OURS, Bench, Case, Claim, Contestant, Options
from ..gate import against, with_gradients
from ..peers import conv3d

CHAINS = ("conv3d chain", "conv3d chain, channels last", "conv3d chain, compiled")
LINEAR = "F.linear on ready patches"
WITH_POS = "F.linear on ready patches, + position"
READY = (WITH_POS, "addmm on ready patches and positions")
ONEDNN = "oneDNN on ready patches"
MASKS = (0, 25, 50, 75, 90)


def embed_cases(options: Options) -> list[Case]:
    """Forward and backward, of short and of long clips; on a GPU long ones at every masking ratio."""
    both = (False, True)
    if options.quick:
        return [_case(options, 4, 75, backward) for backward in both]
    if not options.gpu:
        sizes = [(16, 75, both), (128, 75, both), (16, 0, (False,)), (16, 50, (False,)), (16, 90, (False,))]
    else:
        sizes = [(256, 0, both), (256, 75, both), *((128, mask, (False,)) for mask in MASKS), (16, 75, both)]
    return [_case(options, frames, mask, backward) for frames, mask, which in sizes for backward in which]


def _claims(options: Options, frames: int, mask: int) -> tuple[Claim, ...]:
    if options.gpu:
        if frames != 256:
            return ()
        text = "H100: at least 90 % of the rate of F.linear on ready patches, position added too"
        claims = (Claim(text=text, peers=READY, at_least=0.9),)
        if mask == 75:
            claims += (Claim(text="at least 10 x as fast as the fastest chain", peers=CHAINS, at_least=10.0),)
        return claims
    if mask != 75:
        return ()
    return (
        Claim(text="at least 4 x as fast as the chain as it is usually written", peers=CHAINS[:1], at_least=4.0),
        Claim(text="at least 4 x as fast as the fastest chain", peers=CHAINS, at_least=4.0),
        Claim(text="at most 1.3 x the bare matrix product's time", peers=(LINEAR,), at_most=1.3),
    )


def _case(options: Options, frames: int, mask: int, backward: bool) -> Case:
    size, width, kernel = (32, 64, (2, 16, 16)) if options.quick else (256, 768, (2, 16, 16))
    tokens = (frames // 2) * (size // 16) ** 2
    kept, patch = tokens - int(tokens * mask / 100), 3 * prod(kernel)
    product, item = 2 * kept * patch * width, options.dtype.itemsize
    # Kept pixels as bytes; weights, bias, kept positions and rows as numbers. The backward reads pixels again,
    # gradients of rows twice (weight, position); it writes those of weight, bias and every position.
    traffic = kept * patch + item * (width * patch + width + 2 * kept * width)
    if backward:
        traffic += kept * patch + item * (width * patch + width + 2 * kept * width + tokens * width)
    what = "forward + backward" if backward else "forward"
    counts = f"{what}: uint8 pixels to rows with bias and position"
    return Case(
        name=f"embed/{frames} frames, {mask} % masked, {what}",
        layer=f"tubelet embedding of ViT-B, 1 clip of {frames}x{size}x{size}, {kept} of {tokens} tokens",
        counts=counts + (", gradients of weight, bias and position" if backward else ""),
        flops=product * (2 if backward else 1),
        bytes=traffic,
        build=lambda: _build(options, (1, 3, frames, size, size), width, kernel, kept, tokens, backward),
        claims=() if backward else _claims(options, frames, mask),
        seconds=1.5 if options.gpu else 6.0,
        min_rounds=3 if options.gpu else 5,
        facts={"model": "ViT-B", "frames": frames, "mask": mask, "tokens": kept, "direction": what, "rate": True},
    )


def _build(options: Options, shape, width: int, kernel, kept: int, tokens: int, backward: bool) -> Bench:
    drawn = {"generator": options.generator(), "device": options.device}

    def normal(*size: int, scale: float = 1.0) -> torch.Tensor:
        made = (torch.randn(*size, **drawn) * scale).to(options.dtype)
        return made.requires_grad_(backward)

    video = torch.randint(0, 256, shape, dtype=torch.uint8, **drawn)
    weight, bias, pos = normal(width, 3, *kernel, scale=0.02), normal(width), normal(tokens, width)
    # A hair more than the share, which int() would else round down to one tubelet less.
    share = 1 - kept / tokens + 1e-9 if kept < tokens else 0.0
    keep = F.random_keep(1, tokens, share, generator=torch.Generator().manual_seed(0)).to(options.device)
    last = torch.channels_last_3d
    video_last = video.contiguous(memory_format=last)
    weight_last = weight.detach().contiguous(memory_format=last).requires_grad_(backward)
    rows = conv3d.patches(video, kernel, keep).to(options.dtype)
    grad = torch.randn(1, kept, width, **drawn).to(options.dtype)
    # Gathered before the clock starts, bias included where the product can add it all at once.
    ready_pos = pos.detach()[keep[0]]
    addend = (ready_pos.double() + bias.detach().double()).to(options.dtype)
    name = str(options.dtype).removeprefix("torch.")

    def ours(video, weight, bias, pos, keep):
        return F.tubelet_embed(video, weight, bias, pos=pos, keep=keep, mean=(0.5,) * 3, std=(0.5,) * 3)

    def call(function, *inputs):
        return with_gradients(function, inputs, grad) if backward else lambda: function(*inputs)

    weighted = (weight, bias, pos, keep)
    contestants = {
        OURS: Contestant(call=call(ours, video, *weighted)),
        CHAINS[0]: Contestant(call=call(conv3d.chain, video, *weighted)),
        CHAINS[1]: Contestant(
            call=call(conv3d.chain, video_last, weight_last, bias, pos, keep),
            note="video and weight given in that layout",
        ),
        "fold, index, F.linear": Contestant(
            call=call(conv3d.patches_linear, video, *weighted),
            note="masking before the product, in plain PyTorch",
        ),
        LINEAR: Contestant(
            call=call(conv3d.bare_product, rows, weight, bias),
            note=f"normalised {name} rows given; bias, no position",
            same=False,
        ),
    }
    if not backward:
        contestants[WITH_POS] = Contestant(
            call=lambda: conv3d.bare_product(rows, weight, bias).add_(ready_pos),
            note=f"normalised {name} rows and gathered positions given",
            same=False,
        )
        contestants[READY[1]] = Contestant(
            call=lambda: torch.addmm(addend, rows, weight.flatten(1).t()),
            note="the same, bias in the positions",
            same=False,
        )
    onednn = conv3d.onednn_product(options.device)
    if onednn and not backward and options.dtype == torch.float32:
        contestants[ONEDNN] = Contestant(
            call=call(onednn, rows, weight.flatten(1), bias),
            note="the same by oneDNN; bias, no position",
            same=False,
        )
    if options.compile:
        contestants[CHAINS[2]] = Contestant(call=call(conv3d.compiled_chain(), video, *weighted))
    exact = [t.detach().double().requires_grad_(backward) for t in (weight, bias, pos)]
    golden = call(conv3d.patches_linear, video.double(), *exact, keep)
    absent = {} if options.compile else {CHAINS[2]: "not asked for (--compile)"}
    return Bench(contestants=contestants, gate=against(golden, contestants), absent=absent)
