"""Self-attention of ViT-B and L: clips at every masking ratio, batches of equal and unequal clips, short sequences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import fastvivit.functional as F
from fastvivit.ops.varlen_attention.op import OP

from .. import golden
from ..case import OURS, Bench, Case, Claim, Contestant, Options
from ..gate import against, wrapped
from ..ours import other_backends
from ..peers import attention as peers
from ..peers import sdpa

# 16 frames keep 512 of their tokens at 75 % masking: clips of 8 to 16 frames.
UNEQUAL = (512, 448, 384, 320, 256, 512, 288, 416)
# Attention over time, half of the tubelets masked: what is left of the 8 time slots of each of 512 places.
OVER_TIME = (8, 1, 5, 2, 7, 3, 6, 4) * 64
# 32,768 tokens in 8 clips of 32 to 128 frames at 50 % masking.
UNEQUAL_LONG = (8192, 2048, 3072, 6144, 2560, 4096, 1536, 5120)
MASKS = (0, 25, 50, 75, 90)
# Lengths from which the reference, a loop that stores every score, is no contestant.
REFERENCE_TOKENS = 1024
# As long as a sequence over time: a loop over hundreds of those is what packing replaces.
SHORT = 64
LOOSE = f"{OURS}, not deterministic"
EQUAL = f"{OURS}, equal clips"
LOOP, PADDED = "sdpa, clip by clip", "sdpa, padded"


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """A batch of clips in one layer's attention."""

    what: str
    lengths: tuple[int, ...]
    heads: int = 12
    width: int = 64
    facts: tuple[tuple[str, object], ...] = ()
    claims: dict[str, tuple[Claim, ...]] | None = None

    @property
    def rows(self) -> int:
        return sum(self.lengths)


def _reach(rate: float, beyond: float | None, who: str = OURS) -> tuple[Claim, ...]:
    claims = (Claim(text=f"H100: at least {rate:.0f} TFLOP/s", rate=rate * 1e12, who=who),)
    if beyond:
        claims += (Claim(text=f"H100: beyond {beyond:.0f} TFLOP/s", rate=beyond * 1e12, who=who),)
    return claims


FASTEST = Claim(text="faster than every peer that torch ships", peers=peers.TORCH, at_least=1.0)
D64 = {"forward": (*_reach(450, 514), FASTEST), "backward": (*_reach(300, None), *_reach(400, 474, LOOSE))}
D128 = {"forward": (*_reach(500, 650), FASTEST), "backward": _reach(400, 560)}
PACKED = {
    which: (Claim(text="at least 95 % of the rate of equal clips", peers=(EQUAL,), at_least=0.95),)
    for which in ("forward", "backward")
}


def attention_cases(options: Options) -> list[Case]:
    """Those with a claim first, then clips of 16, 128 and 256 frames by masking ratio."""
    if options.quick:
        shapes = [
            _Shape(what="2 clips of 16", lengths=(16,) * 2, heads=2, width=8),
            _Shape(what="unequal clips", lengths=(16, 8, 24), heads=2, width=8),
        ]
    else:
        shapes = _gpu_shapes() if options.gpu else _cpu_shapes()
    directions = ("forward", "backward") if options.gpu else ("forward", "forward + backward")
    return [_case(options, shape, direction) for shape in shapes for direction in directions]


def _masked(frames: int, claims=None, *, model: str = "ViT-B", heads: int = 12, masks=MASKS) -> list[_Shape]:
    tokens = frames // 2 * 256
    return [
        _Shape(
            what=f"{model}, {frames} frames, {mask} % masked",
            lengths=(tokens - int(tokens * mask / 100),),
            heads=heads,
            facts=(("model", model), ("frames", frames), ("mask", mask)),
            claims=claims if mask == 0 else None,
        )
        for mask in masks
    ]


def _gpu_shapes() -> list[_Shape]:
    long, longer = _masked(128, D64), _masked(256, D64)
    wide = _Shape(what="1 clip of 16384, heads of 128", lengths=(16384,), heads=8, width=128, claims=D128)
    unequal = _Shape(what="8 clips of 1536 to 8192", lengths=UNEQUAL_LONG, claims=PACKED)
    short = [_Shape(what=f"{n} clip{'s' * (n > 1)} of 512", lengths=(512,) * n) for n in (1, 4)]
    places = _Shape(what="256 sequences of 64 (128 frames, over time)", lengths=(64,) * 256)
    rest = [*long[1:], *longer[1:], *_masked(16), *short, places, *_masked(128, model="ViT-L", heads=16, masks=(0, 75))]
    return [long[0], longer[0], unequal, wide, *rest]


def _cpu_shapes() -> list[_Shape]:
    def faster(peer: str, ratio: float) -> dict[str, tuple[Claim, ...]]:
        claim = Claim(text=f"at least {ratio:g} x as fast as {peer}", peers=(peer,), at_least=ratio)
        return {"forward": (claim,), "forward + backward": (claim,)}

    whole = {
        which: (Claim(text="not slower than sdpa", peers=("sdpa", "sdpa, heads first"), at_least=1.0),)
        for which in ("forward", "forward + backward")
    }
    return [
        _Shape(what="4 clips of 512", lengths=(512,) * 4, claims=faster("sdpa", 1.2)),
        _Shape(what="1 clip of 2048", lengths=(2048,), claims=whole),
        _Shape(what="1 clip of 8192", lengths=(8192,), claims=whole),
        _Shape(what="8 clips of 256 to 512", lengths=UNEQUAL, claims=faster(PADDED, 1.2)),
        _Shape(what="512 sequences of 8", lengths=(8,) * 512, claims=faster(LOOP, 3.0)),
        _Shape(what="512 sequences of 1 to 8", lengths=OVER_TIME, claims=faster(LOOP, 3.0)),
        *_masked(16, masks=MASKS[1:]),
    ]


def attention_flops(lengths, heads: int, width: int, direction: str) -> int:
    """``4 · d · H · Σ L²``; the backward has five products to the forward's two."""
    forward = 4 * width * heads * sum(length**2 for length in lengths)
    return {"forward": forward, "backward": forward * 5 // 2, "forward + backward": forward * 7 // 2}[direction]


def _case(options: Options, shape: _Shape, direction: str) -> Case:
    buffer = options.dtype.itemsize * shape.rows * shape.heads * shape.width
    facts = {"rate": True, "direction": direction, "clips": len(shape.lengths), "tokens": max(shape.lengths)}
    facts |= {"head_dim": shape.width, "heads": shape.heads, "equal": len(set(shape.lengths)) == 1}
    scores = shape.heads * sum(length**2 for length in shape.lengths)
    # The backward computes scores and probabilities twice, for dK and dV and again for dQ: seven products, not five.
    again = 4 * shape.width * scores if direction != "forward" else 0
    flops = attention_flops(shape.lengths, shape.heads, shape.width, direction)
    return Case(
        name=f"attention/{shape.what}, {direction}",
        layer=f"joint space-time attention, {shape.heads} heads of {shape.width}, {shape.what}, {shape.rows} tokens",
        counts=f"{direction} on views of the packed projection (M, 3, H, d)",
        flops=flops,
        flops_run=flops + again,
        exponentials=scores * {"forward": 1, "backward": 2, "forward + backward": 3}[direction],
        # q, k, v and out; for the backward the same, the output's gradient, and three gradients.
        bytes=buffer * {"forward": 4, "backward": 8, "forward + backward": 12}[direction],
        build=lambda: _build(options, shape, direction),
        claims=(shape.claims or {}).get(direction, ()),
        seconds=1.0 if options.gpu else 4.0,
        min_rounds=5,
        facts=facts | dict(shape.facts),
    )


def _build(options: Options, shape: _Shape, direction: str) -> Bench:
    lengths, heads, width, device = shape.lengths, shape.heads, shape.width, options.device
    backward = direction != "forward"
    generator = options.generator()
    rows, longest, equal = shape.rows, max(lengths), len(set(lengths)) == 1

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device).to(options.dtype)

    qkv, grad = normal(rows, 3, heads, width), normal(rows, heads, width)
    leaves = [t.detach().requires_grad_(backward) for t in qkv.unbind(1)]
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32).to(device)
    make = wrapped(direction)

    def packed(cu: Tensor, most: int, **more) -> Callable[..., Tensor]:
        # Built once a batch, as the encoder does.
        schedule = F.varlen_schedule(cu, cu, rows, rows) if options.gpu else None
        return lambda q, k, v: F.varlen_attention(q, k, v, cu, None, most, most, schedule=schedule, **more)

    def contestant(function, inputs=leaves, arriving=grad, **more) -> Contestant:
        return Contestant(call=make(function, inputs, arriving), **more)

    contestants = {OURS: contestant(packed(cu_seqlens, longest))}
    if equal:
        contestants["sdpa"] = contestant(lambda q, k, v: sdpa.equal(q, k, v, len(lengths)), note="same views")
    if not equal or longest <= SHORT:
        contestants[LOOP] = contestant(lambda q, k, v: sdpa.clip_by_clip(q, k, v, lengths))
    if backward and options.gpu:
        contestants[LOOSE] = contestant(packed(cu_seqlens, longest, deterministic=False), note="deterministic=False")
    found, absent = peers.others(peers.Batch(lengths=lengths, cu_seqlens=cu_seqlens, options=options))
    contestants |= {name: contestant(function) for name, function in found.items()}
    asked = (leaves[0], longest, longest, False)
    for name in other_backends(OP, asked, leaves[0].device.type):
        contestants[f"{OURS}, {name}"] = contestant(packed(cu_seqlens, longest, backend=name))
    # The definition stores every score, reads the lengths, and loops over them.
    if not options.gpu and longest <= REFERENCE_TOKENS and len(lengths) <= len(UNEQUAL):
        contestants[f"{OURS}, reference"] = contestant(packed(cu_seqlens, longest, backend="reference"))
    attend = torch.nn.functional.scaled_dot_product_attention
    if equal:
        first = [sdpa.heads_first(t, len(lengths)) for t in leaves]
        contestants["sdpa, heads first"] = contestant(
            attend, first, sdpa.heads_first(grad, len(lengths)), note="contiguous (B, H, N, d) given", same=False
        )
    else:
        mask = sdpa.padding_mask(lengths, device, options.dtype)
        wide = [sdpa.padded(t, lengths) for t in leaves]
        contestants[PADDED] = contestant(
            lambda q, k, v: attend(q, k, v, mask),
            wide,
            sdpa.padded(grad, lengths),
            note="padded (B, H, longest, d) and mask given",
            same=False,
        )
        if options.gpu:
            clips = len(lengths)
            even = torch.arange(clips + 1, dtype=torch.int32, device=device) * (rows // clips)
            flops = attention_flops([rows // clips] * clips, heads, width, direction)
            contestants[EQUAL] = contestant(
                packed(even, rows // clips), note="as many tokens in equal clips", same=False, flops=flops
            )

    def exact() -> object:
        out, grads = golden.attention(*leaves, lengths, grad if backward else None)
        return {"forward": out, "backward": grads, "forward + backward": [out, *grads]}[direction]

    return Bench(contestants=contestants, gate=against(exact, contestants), absent=absent)
