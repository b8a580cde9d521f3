"""Self-attention of ViT-B: equal clips, where the op should cost nothing over SDPA, and unequal ones."""

from __future__ import annotations

import torch
from torch import Tensor

import fastvivit.functional as F
from benchmarks.case import OURS, Bench, Case, Contestant, Options
from benchmarks.gate import against, with_gradients
from benchmarks.peers import sdpa

# 16 frames keep 512 of their tokens at 75 % masking: clips of 8 to 16 frames.
UNEQUAL = (512, 448, 384, 320, 256, 512, 288, 416)


def attention_cases(options: Options) -> list[Case]:
    """512 and 2,048 tokens a clip, and a packed batch of unequal clips."""
    if options.quick:
        batches = {"2 clips of 16": (16,) * 2, "unequal clips": (16, 8, 24)}
    else:
        batches = {"4 clips of 512": (512,) * 4, "1 clip of 2048": (2048,), "8 clips of 256 to 512": UNEQUAL}
    return [_case(options, what, lengths, backward) for what, lengths in batches.items() for backward in (False, True)]


def attention_flops(lengths, heads: int, width: int, backward: bool) -> int:
    """``4 · d · H · Σ L²``; the backward has five products to the forward's two."""
    forward = 4 * width * heads * sum(length**2 for length in lengths)
    return forward * 7 // 2 if backward else forward


def _case(options: Options, what: str, lengths: tuple[int, ...], backward: bool) -> Case:
    heads, width = (2, 8) if options.quick else (12, 64)
    direction = "forward + backward" if backward else "forward"
    buffer = 4 * sum(lengths) * heads * width
    return Case(
        name=f"attention/{what}, {direction}",
        layer=f"joint space-time attention of ViT-B, {heads} heads of {width}, {what} tokens",
        counts=f"{direction} on views of the packed projection (M, 3, H, d)",
        flops=attention_flops(lengths, heads, width, backward),
        # q, k, v and out; then the same, the output's gradient, and three gradients.
        bytes=buffer * (4 + 8 if backward else 4),
        build=lambda: _build(options, lengths, heads, width, backward),
        seconds=4.0,
    )


def _build(options: Options, lengths: tuple[int, ...], heads: int, width: int, backward: bool) -> Bench:
    generator = torch.Generator().manual_seed(0)
    rows, clips, longest = sum(lengths), len(lengths), max(lengths)
    qkv = torch.randn(rows, 3, heads, width, generator=generator).to(options.device)
    grad = torch.randn(rows, heads, width, generator=generator).to(options.device)
    leaves = [t.detach().requires_grad_(backward) for t in qkv.unbind(1)]
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32).to(options.device)

    def call(function, inputs, arriving=grad):
        return with_gradients(function, inputs, arriving) if backward else lambda: function(*inputs)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.varlen_attention(q, k, v, cu_seqlens, None, longest, longest)

    def one_by_one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sdpa.clip_by_clip(q, k, v, lengths)

    contestants = {OURS: Contestant(call=call(ours, leaves))}
    if len(set(lengths)) == 1:
        contestants["sdpa"] = Contestant(
            call=call(lambda q, k, v: sdpa.equal(q, k, v, clips), leaves), note="same views"
        )
        first = [sdpa.heads_first(t, clips) for t in leaves]
        contestants["sdpa, heads first"] = Contestant(
            call=call(torch.nn.functional.scaled_dot_product_attention, first, sdpa.heads_first(grad, clips)),
            note="contiguous (B, H, N, d) given",
            same=False,
        )
    else:
        contestants["sdpa, clip by clip"] = Contestant(call=call(one_by_one, leaves))
        mask = sdpa.padding_mask(lengths, options.device)
        wide = [sdpa.padded(t, lengths) for t in leaves]
        contestants["sdpa, padded"] = Contestant(
            call=call(
                lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(q, k, v, mask),
                wide,
                sdpa.padded(grad, lengths),
            ),
            note="padded (B, H, longest, d) and mask given",
            same=False,
        )
    exact = [t.detach().double().requires_grad_(backward) for t in leaves]
    golden = call(one_by_one, exact, grad.double())
    return Bench(contestants=contestants, gate=against(golden, contestants))
