"""Tubelet embedding of ViT-B: uint8 clips of 16 and of 128 frames, 75 % of the tubelets masked."""

from __future__ import annotations

from math import prod

import torch

import fastvivit.functional as F
from benchmarks.case import OURS, Bench, Case, Claim, Contestant, Options
from benchmarks.gate import against, with_gradients
from benchmarks.peers import conv3d

CHAINS = ("conv3d chain", "conv3d chain, channels last", "conv3d chain, compiled")
LINEAR = "F.linear on ready patches"
ONEDNN = "oneDNN on ready patches"


def embed_cases(options: Options) -> list[Case]:
    """Forward, and forward with backward, of short and of long clips."""
    lengths = (4,) if options.quick else (16, 128)
    return [_case(options, frames, backward) for frames in lengths for backward in (False, True)]


def _case(options: Options, frames: int, backward: bool) -> Case:
    size, width, kernel = (32, 64, (2, 16, 16)) if options.quick else (256, 768, (2, 16, 16))
    tokens = (frames // 2) * (size // 16) ** 2
    kept, patch = tokens // 4, 3 * prod(kernel)
    product = 2 * kept * patch * width
    # Kept pixels as bytes; weights, bias, kept positions and rows as float32. The backward reads pixels again,
    # gradients of rows twice (weight, position); it writes those of weight, bias and every position.
    traffic = kept * patch + 4 * (width * patch + width + 2 * kept * width)
    if backward:
        traffic += kept * patch + 4 * (width * patch + width + 2 * kept * width + tokens * width)
    claims = ()
    if not backward:
        claims = (
            Claim(
                text="at least 4 x as fast as the chain as it is usually written",
                peers=CHAINS[:1],
                at_least=4.0,
            ),
            Claim(text="at least 4 x as fast as the fastest chain", peers=CHAINS, at_least=4.0),
            Claim(text="at most 1.3 x the bare matrix product's time", peers=(LINEAR,), at_most=1.3),
        )
    what = "forward + backward" if backward else "forward"
    counts = f"{what}: uint8 pixels to rows with bias and position"
    return Case(
        name=f"embed/{frames} frames, 75 % masked, {what}",
        layer=f"tubelet embedding of ViT-B, 1 clip of {frames}x{size}x{size}, {kept} of {tokens} tokens",
        counts=counts + (", gradients of weight, bias and position" if backward else ""),
        flops=product * (2 if backward else 1),
        bytes=traffic,
        build=lambda: _build(options, (1, 3, frames, size, size), width, kernel, kept, tokens, backward),
        claims=claims,
        seconds=6.0,
    )


def _build(options: Options, shape, width: int, kernel, kept: int, tokens: int, backward: bool) -> Bench:
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int, scale: float = 1.0) -> torch.Tensor:
        made = (torch.randn(*size, generator=generator) * scale).to(options.device)
        return made.requires_grad_(backward)

    video = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(options.device)
    weight, bias, pos = normal(width, 3, *kernel, scale=0.02), normal(width), normal(tokens, width)
    keep = F.random_keep(1, tokens, 1 - kept / tokens, generator=generator).to(options.device)
    last = torch.channels_last_3d
    video_last = video.contiguous(memory_format=last)
    weight_last = weight.detach().contiguous(memory_format=last).requires_grad_(backward)
    rows = conv3d.patches(video, kernel, keep)
    grad = torch.randn(1, kept, width, generator=generator).to(options.device)

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
            note="normalised float32 rows given; bias, no position",
            same=False,
        ),
    }
    onednn = conv3d.onednn_product(options.device)
    if onednn and not backward:
        contestants[ONEDNN] = Contestant(
            call=call(onednn, rows, weight.flatten(1), bias),
            note="the same by oneDNN; bias, no position",
            same=False,
        )
    if options.compile:
        contestants[CHAINS[2]] = Contestant(call=call(conv3d.compiled_chain(), video, *weighted))
    exact = [t.detach().double().requires_grad_(backward) for t in (weight, bias, pos)]
    golden = call(conv3d.patches_linear, video.double(), *exact, keep)
    return Bench(contestants=contestants, gate=against(golden, contestants))
