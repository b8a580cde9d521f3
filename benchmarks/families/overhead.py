"""What a call costs at 512 tokens, on rows so narrow that the work is negligible."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import fastvivit.functional as F

from ..case import OURS, Bench, Case, Claim, Contestant, Options
from ..gate import against, with_gradients
from ..peers import conv3d, rows, sdpa

TOKENS, GRID, WIDTH, SHORT = 512, 2048, 8, 8
LIMIT = 30e-6
NAMES = ("tubelet_embed", "gather_tokens", "scatter_tokens", "segment_mean", "varlen_attention", "attention")
# Where the work is not negligible even so: what PyTorch's own call on the same tensors takes is taken off.
WORK = {"tubelet_embed": "F.linear + position", "varlen_attention": "sdpa", "attention": "sdpa"}
MODES = ("no gradients", "gradients recorded", "forward + backward")


@dataclass(frozen=True)
class _Call:
    """An op and PyTorch's own call on the same tensors; ``exact`` defines both. ``leaves`` take gradients."""

    ours: Callable[..., Tensor]
    bare: tuple[str, Callable[..., Tensor]]
    leaves: tuple[Tensor, ...]
    same: bool = True
    exact: Callable[..., Tensor] | None = None


def overhead_cases(options: Options) -> list[Case]:
    """Every op, in three modes."""
    names = NAMES[:1] if options.quick else NAMES
    return [_case(options, name, mode) for name in names for mode in MODES]


def _case(options: Options, name: str, mode: str) -> Case:
    minus = WORK.get(name)
    text = f"under 30 µs a call{' beyond ' + minus if minus else ''}"
    return Case(
        name=f"overhead/{name}, {mode}",
        layer=f"{name} at {TOKENS} tokens of width {WIDTH}",
        counts=f"one call, {mode}",
        flops=0,
        bytes=0,
        build=lambda: _build(_calls(options.device)[name], mode),
        claims=(Claim(text=text, under=LIMIT, minus=minus),) if mode != MODES[2] else (),
        seconds=1.0,
        min_rounds=9,
        clock="wall",
        facts={"direction": mode},
    )


def _build(call: _Call, mode: str) -> Bench:
    grads = mode != MODES[0]
    leaves = [t.detach().requires_grad_(grads) for t in call.leaves]
    with torch.no_grad():
        grad = torch.ones_like(call.ours(*leaves))

    def wrapped(function: Callable[..., Tensor], inputs: list[Tensor]) -> Callable[[], object]:
        if mode == MODES[2]:
            return with_gradients(function, inputs, grad.to(inputs[0].dtype))
        return lambda: function(*inputs)

    name, bare = call.bare
    contestants = {
        OURS: Contestant(call=wrapped(call.ours, leaves)),
        name: Contestant(call=wrapped(bare, leaves), same=call.same),
    }
    judged = (
        contestants if call.same else {**contestants, "plain PyTorch": Contestant(call=wrapped(call.exact, leaves))}
    )
    exact = [t.detach().double().requires_grad_(grads) for t in leaves]
    return Bench(contestants=contestants, gate=against(wrapped(call.exact or bare, exact), judged))


def _calls(device: str) -> dict[str, _Call]:
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(device)

    index = F.random_keep(1, GRID, 0.75, generator=generator)[0].to(device)
    keep, segment = index.unsqueeze(0), torch.arange(4, device=device).repeat_interleave(TOKENS // 4)
    narrow, wide, fill = normal(TOKENS, WIDTH), normal(GRID, WIDTH), normal(WIDTH)
    video = torch.randint(0, 256, (1, 1, 16, 32, 32), dtype=torch.uint8, generator=generator).to(device)
    weight, bias, pos = normal(WIDTH, 1, 2, 2, 2), normal(WIDTH), normal(GRID, WIDTH)
    ready = conv3d.patches(video, (2, 2, 2), keep)
    # Short sequences, as attention over time has them: a softmax over 512 keys would be work at any width.
    batch = [normal(TOKENS // SHORT, SHORT, 1, WIDTH) for _ in range(3)]
    cu_seqlens = torch.arange(0, TOKENS + 1, SHORT, dtype=torch.int32, device=device)

    def embed(weight: Tensor, bias: Tensor, pos: Tensor) -> Tensor:
        return F.tubelet_embed(video, weight, bias, pos=pos, keep=keep, mean=(0.5,), std=(0.5,))

    def embed_plain(weight: Tensor, bias: Tensor, pos: Tensor) -> Tensor:
        pixels = video.double() if weight.dtype == torch.float64 else video
        return conv3d.patches_linear(pixels, weight, bias, pos, keep)

    def linear(weight: Tensor, bias: Tensor, pos: Tensor) -> Tensor:
        # Positions are added so that every leaf gets a gradient; ready rows, nothing indexed.
        return conv3d.bare_product(ready.to(weight.dtype), weight, bias) + pos[:TOKENS]

    def attention_bare(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        views = (t.transpose(1, 2) for t in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(*views).transpose(1, 2)

    def fill_bare(x: Tensor, fill: Tensor) -> Tensor:
        return rows.scatter_filled(x, index, GRID, fill)

    return {
        "tubelet_embed": _Call(embed, ("F.linear + position", linear), (weight, bias, pos), False, embed_plain),
        "gather_tokens": _Call(
            lambda x: F.gather_tokens(x, index), ("index_select", lambda x: x.index_select(0, index)), (wide,)
        ),
        "scatter_tokens": _Call(
            lambda x, fill: F.scatter_tokens(x, index, GRID, fill=fill),
            ("index_copy_", fill_bare),
            (narrow, fill),
        ),
        "segment_mean": _Call(
            lambda x: F.segment_mean(x, segment, 4)[0],
            ("index_add_", lambda x: rows.segment_mean(x, segment, 4)),
            (narrow,),
        ),
        "varlen_attention": _Call(
            lambda q, k, v: F.varlen_attention(q, k, v, cu_seqlens, None, SHORT, SHORT),
            ("sdpa", lambda q, k, v: sdpa.equal(q, k, v, TOKENS // SHORT)),
            tuple(t.flatten(0, 1) for t in batch),
        ),
        "attention": _Call(F.attention, ("sdpa", attention_bare), tuple(batch)),
    }
