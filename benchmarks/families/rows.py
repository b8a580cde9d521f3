"""Row moves of ViT-B, a quarter of the rows kept: 128 frames on a CPU, hundreds of megabytes on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle

import torch
from torch import Tensor

import fastvivit.functional as F
from fastvivit._backends import Op
from fastvivit.ops.gather_tokens.op import OP as GATHER
from fastvivit.ops.scatter_tokens.op import OP as SCATTER
from fastvivit.ops.segment_mean.op import OP as SEGMENT

from ..case import OURS, Bench, Case, Claim, Contestant, Options
from ..gate import against, with_gradients
from ..ours import other_backends
from ..peers import rows

INVERSE = "inverse map alone"
# Sets of buffers that take turns, so that no call finds in a cache what the last one left there.
SETS = 3


def rows_cases(options: Options) -> list[Case]:
    """Gather, its gradient, scatter with a fill, and both uses of the segment mean."""
    tokens, width = (256, 32) if options.quick else (24 * 32768, 768) if options.gpu else (16384, 768)
    kept, places = tokens // 4, tokens // 64
    row = options.dtype.itemsize * width
    grid = f"ViT-B on {'24 x 256' if options.gpu else 128} frames, {kept} of {tokens} tokens"
    grid = "a small grid" if options.quick else grid

    def case(name: str, use: str, moved: int, build, minus: str | None = None) -> Case:
        apart = ", the inverse map apart" if minus else ""
        text = f"H100: at least 90 % of the copy bandwidth{apart}"
        return Case(
            name=f"rows/{name}",
            layer=f"{use}, {grid}",
            counts=f"{name}, ids checked",
            # A sum for every element read more than once is nothing beside the traffic.
            flops=0,
            bytes=moved,
            build=lambda: build(_Tensors(options, tokens, kept, places, width)),
            claims=(Claim(text=text, of_copy=0.9, minus=minus),) if options.gpu else (),
            seconds=1.0 if options.gpu else 2.0,
            facts={"model": "ViT-B", "tokens": tokens},
        )

    return [
        case("gather", "dropping tokens", 2 * kept * row + 8 * kept, _gather),
        case("scatter with fill", "a decoder's input", (kept + tokens) * row + 8 * kept, _scatter, INVERSE),
        case(
            "gather, forward + backward",
            "dropping tokens",
            (3 * kept + kept + tokens) * row + 16 * kept,
            _gather_backward,
            INVERSE,
        ),
        case(
            "segment mean by place",
            "temporal mean pooling under masking",
            (kept + places) * row + 8 * kept,
            _by_place,
            INVERSE,
        ),
        case("segment mean by clip", "pooling of 8 equal clips", (tokens + 8) * row + 8 * tokens, _by_clip, INVERSE),
    ]


class _Tensors:
    def __init__(self, options: Options, tokens: int, kept: int, places: int, width: int) -> None:
        generator = options.generator()

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, generator=generator, device=options.device).to(options.dtype)

        self.options, self.tokens, self.places = options, tokens, places
        self.full, self.some, self.fill, self.grad = (
            normal(tokens, width),
            normal(kept, width),
            normal(width),
            normal(kept, width),
        )
        drawn = torch.Generator().manual_seed(0)
        self.index = F.random_keep(1, tokens, 0.75, generator=drawn)[0].to(options.device)
        self.clip = torch.arange(8, device=options.device).repeat_interleave(tokens // 8)

    def turns(self, *tensors: Tensor) -> Callable[[], tuple[Tensor, ...]]:
        """The next of the sets of copies of ``tensors``; a CPU's caches are far smaller than one."""
        sets = [tensors] + [tuple(t.clone() for t in tensors) for _ in range(SETS - 1 if self.options.gpu else 0)]
        around = cycle(sets)
        return lambda: next(around)

    def sorting(self, segment: Tensor, segments: int) -> dict[str, Contestant]:
        """What our sums spend before they move a row: the rows of each segment, in order."""
        if not self.options.gpu:
            return {}
        from fastvivit.ops.gather_tokens.backend_triton import sort_ids

        note = "rows in order of their ids; no row moved"
        return {INVERSE: Contestant(call=lambda: sort_ids(segment, segments), note=note, same=False)}

    def inverse(self) -> dict[str, Contestant]:
        """What our scatter spends before it moves a row."""
        if not self.options.gpu:
            return {}
        from fastvivit.ops._rows_triton import invert_ids

        call = lambda: invert_ids(self.index, self.tokens)[0]
        return {INVERSE: Contestant(call=call, note="which row goes to each place; no row moved", same=False)}

    def others(self, op: Op, x: Tensor, make: Callable[[str], Callable[[], object]]) -> dict[str, Contestant]:
        """Our backends beside the one that auto takes; ``make`` builds the call of a named one."""
        names = other_backends(op, (x,), x.device.type)
        return {f"{OURS}, {name}": Contestant(call=make(name)) for name in names}

    def compiled(self, function: Callable[..., Tensor]) -> tuple[dict[str, Contestant], dict[str, str]]:
        """The reference by ``torch.compile``, or why it takes no part."""
        if not self.options.compile:
            return {}, {"torch.compile of the reference": "not asked for (--compile)"}
        fast = torch.compile(function, dynamic=False)
        return {"torch.compile of the reference": Contestant(call=fast)}, {}


def _bench(t: _Tensors, contestants: dict[str, Contestant], golden, reference=None) -> Bench:
    absent = {}
    if reference:
        more, absent = t.compiled(reference)
        contestants = contestants | more
    return Bench(contestants=contestants, gate=against(golden, contestants), absent=absent)


def _gather(t: _Tensors) -> Bench:
    turn = t.turns(t.full)
    contestants = {
        OURS: Contestant(call=lambda: F.gather_tokens(*turn(), t.index)),
        "index_select": Contestant(call=lambda: turn()[0].index_select(0, t.index)),
        **t.others(GATHER, t.full, lambda name: lambda: F.gather_tokens(*turn(), t.index, backend=name)),
    }
    return _bench(t, contestants, lambda: t.full[t.index], lambda: t.full[t.index])


def _gather_backward(t: _Tensors) -> Bench:
    leaf = t.full.requires_grad_()
    contestants = {
        OURS: Contestant(call=with_gradients(lambda x: F.gather_tokens(x, t.index), [leaf], t.grad)),
        "index_select": Contestant(
            call=with_gradients(lambda x: x.index_select(0, t.index), [leaf], t.grad),
            note="its gradient is index_add_",
        ),
        **t.sorting(t.index, t.tokens),
        **t.others(
            GATHER,
            leaf,
            lambda name: with_gradients(lambda x: F.gather_tokens(x, t.index, backend=name), [leaf], t.grad),
        ),
    }
    exact = leaf.detach().double().requires_grad_()
    return _bench(t, contestants, with_gradients(lambda x: x[t.index], [exact], t.grad.double()))


def _scatter(t: _Tensors) -> Bench:
    turn = t.turns(t.some)
    contestants = {
        OURS: Contestant(call=lambda: F.scatter_tokens(*turn(), t.index, t.tokens, fill=t.fill)),
        "index_copy_": Contestant(
            call=lambda: rows.scatter_filled(*turn(), t.index, t.tokens, t.fill),
            note="over an output filled first",
        ),
        **t.inverse(),
        **t.others(
            SCATTER,
            t.some,
            lambda name: lambda: F.scatter_tokens(*turn(), t.index, t.tokens, fill=t.fill, backend=name),
        ),
    }
    plain = lambda: rows.scatter_filled(t.some, t.index, t.tokens, t.fill)
    golden = lambda: rows.scatter_filled(t.some.double(), t.index, t.tokens, t.fill.double())
    return _bench(t, contestants, golden, plain)


def _by_place(t: _Tensors) -> Bench:
    segment, turn = t.index % t.places, t.turns(t.some)
    contestants = {
        OURS: Contestant(call=lambda: F.segment_mean(*turn(), segment, t.places)[0]),
        "index_add_": Contestant(call=lambda: rows.segment_mean(*turn(), segment, t.places), note="and bincount"),
        **t.sorting(segment, t.places),
        **t.others(SEGMENT, t.some, lambda name: lambda: F.segment_mean(*turn(), segment, t.places, backend=name)[0]),
    }
    golden = lambda: rows.segment_mean(t.some.double(), segment, t.places)
    return _bench(t, contestants, golden, lambda: rows.segment_mean(t.some, segment, t.places))


def _by_clip(t: _Tensors) -> Bench:
    turn = t.turns(t.full)
    contestants = {
        OURS: Contestant(call=lambda: F.segment_mean(*turn(), t.clip, 8)[0]),
        "index_add_": Contestant(call=lambda: rows.segment_mean(*turn(), t.clip, 8), note="and bincount"),
        "mean of a view": Contestant(call=lambda: rows.mean_of_equal(*turn(), 8), note="needs equal clips, in order"),
        **t.sorting(t.clip, 8),
        **t.others(SEGMENT, t.full, lambda name: lambda: F.segment_mean(*turn(), t.clip, 8, backend=name)[0]),
    }
    return _bench(t, contestants, lambda: rows.segment_mean(t.full.double(), t.clip, 8))
