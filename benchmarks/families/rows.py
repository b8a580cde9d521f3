"""Row moves of ViT-B on 128 frames: 16,384 tokens, a quarter of them kept."""

from __future__ import annotations

import torch

import fastvivit.functional as F
from benchmarks.case import OURS, Bench, Case, Contestant, Options
from benchmarks.gate import against, with_gradients
from benchmarks.peers import rows


def rows_cases(options: Options) -> list[Case]:
    """Gather, its gradient, scatter with a fill, and both uses of the segment mean."""
    tokens, width = (256, 32) if options.quick else (16384, 768)
    kept, places = tokens // 4, tokens // 64
    row = 4 * width
    grid = f"ViT-B on 128 frames, {kept} of {tokens} tokens" if not options.quick else "a small grid"

    def case(name: str, use: str, moved: int, build) -> Case:
        return Case(
            name=f"rows/{name}",
            layer=f"{use}, {grid}",
            counts=f"{name}, ids checked",
            # A sum for every element read more than once is nothing beside the traffic.
            flops=0,
            bytes=moved,
            build=lambda: build(_Tensors(options, tokens, kept, places, width)),
        )

    return [
        case("gather", "dropping tokens", 2 * kept * row + 8 * kept, _gather),
        case(
            "gather, forward + backward",
            "dropping tokens",
            (3 * kept + kept + tokens) * row + 16 * kept,
            _gather_backward,
        ),
        case("scatter with fill", "a decoder's input", (kept + tokens) * row + 8 * kept, _scatter),
        case(
            "segment mean by place",
            "temporal mean pooling under masking",
            (kept + places) * row + 8 * kept,
            _by_place,
        ),
        case("segment mean by clip", "pooling of 8 equal clips", (tokens + 8) * row + 8 * tokens, _by_clip),
    ]


class _Tensors:
    def __init__(self, options: Options, tokens: int, kept: int, places: int, width: int) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*size: int) -> torch.Tensor:
            return torch.randn(*size, generator=generator).to(options.device)

        self.tokens, self.places = tokens, places
        self.full, self.some, self.fill, self.grad = (
            normal(tokens, width),
            normal(kept, width),
            normal(width),
            normal(kept, width),
        )
        self.index = F.random_keep(1, tokens, 0.75, generator=generator)[0].to(options.device)
        self.clip = torch.arange(8, device=options.device).repeat_interleave(tokens // 8)


def _bench(contestants: dict[str, Contestant], golden) -> Bench:
    return Bench(contestants=contestants, gate=against(golden, contestants))


def _gather(t: _Tensors) -> Bench:
    contestants = {
        OURS: Contestant(call=lambda: F.gather_tokens(t.full, t.index)),
        "index_select": Contestant(call=lambda: t.full.index_select(0, t.index)),
    }
    return _bench(contestants, lambda: t.full[t.index])


def _gather_backward(t: _Tensors) -> Bench:
    leaf = t.full.requires_grad_()
    contestants = {
        OURS: Contestant(call=with_gradients(lambda x: F.gather_tokens(x, t.index), [leaf], t.grad)),
        "index_select": Contestant(
            call=with_gradients(lambda x: x.index_select(0, t.index), [leaf], t.grad),
            note="its gradient is index_add_",
        ),
    }
    exact = leaf.detach().double().requires_grad_()
    return _bench(contestants, with_gradients(lambda x: x[t.index], [exact], t.grad.double()))


def _scatter(t: _Tensors) -> Bench:
    contestants = {
        OURS: Contestant(call=lambda: F.scatter_tokens(t.some, t.index, t.tokens, fill=t.fill)),
        "index_copy_": Contestant(
            call=lambda: rows.scatter_filled(t.some, t.index, t.tokens, t.fill),
            note="over an output filled first",
        ),
    }
    return _bench(contestants, lambda: rows.scatter_filled(t.some.double(), t.index, t.tokens, t.fill.double()))


def _by_place(t: _Tensors) -> Bench:
    segment = t.index % t.places
    contestants = {
        OURS: Contestant(call=lambda: F.segment_mean(t.some, segment, t.places)[0]),
        "index_add_": Contestant(call=lambda: rows.segment_mean(t.some, segment, t.places), note="and bincount"),
    }
    return _bench(contestants, lambda: rows.segment_mean(t.some.double(), segment, t.places))


def _by_clip(t: _Tensors) -> Bench:
    contestants = {
        OURS: Contestant(call=lambda: F.segment_mean(t.full, t.clip, 8)[0]),
        "index_add_": Contestant(call=lambda: rows.segment_mean(t.full, t.clip, 8), note="and bincount"),
        "mean of a view": Contestant(call=lambda: rows.mean_of_equal(t.full, 8), note="needs equal clips, in order"),
    }
    return _bench(contestants, lambda: rows.segment_mean(t.full.double(), t.clip, 8))
