"""Small calls of every kernel family, each with the definition in float64 beside it: what ``benchmarks.smoke`` runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import fastvivit.functional as F
from fastvivit._backends import Backend, Op
from fastvivit.ops.gather_tokens.op import OP as GATHER
from fastvivit.ops.scatter_tokens.op import OP as SCATTER
from fastvivit.ops.segment_mean.op import OP as SEGMENT
from fastvivit.ops.tubelet_embed.op import OP as EMBED
from fastvivit.ops.varlen_attention.op import OP as ATTENTION

GROUPS = ("attention", "attention options", "embed", "rows")


@dataclass(frozen=True, kw_only=True)
class Check:
    """One call.

    Attributes:
        name: unique within the group: op, backend, dtype, what is special.
        floats: floating inputs on a CPU, rounded to the dtype already; all get gradients.
        call: (floats, backend) → floating outputs. Floats decide the device.
        backend: whose kernels run.
        dtype: of the inputs.
        tiny: whether it belongs to the few that run under a sanitizer, a hundred times slower.
        limit: relative RMS error that is still rounding, where the dtype's own does not hold (TF32).
    """

    name: str
    floats: list[Tensor]
    call: Callable[[list[Tensor], str], list[Tensor]]
    backend: Backend
    dtype: torch.dtype
    tiny: bool = False
    limit: float | None = None


def backends(op: Op, device: str) -> list[Backend]:
    """Those with kernels for ``device`` that are here; under Triton's interpreter Triton's alone."""
    if device == "cpu":
        return [b for b in op.backends if b.name == "triton" and b.absent() is None]
    able = [b for b in op.backends if b.name != "reference" and b.absent() is None]
    return [b for b in able if b.auto is None or "cuda" in b.auto]


def dtypes(device: str) -> tuple[torch.dtype, ...]:
    """bfloat16 is what models run in; Triton's interpreter multiplies it wrongly."""
    return (torch.bfloat16, torch.float32) if device != "cpu" else (torch.float32, torch.float16)


def checks(group: str, device: str, *, tiny: bool = False) -> list[Check]:
    """Every check of a group, or the few of them that are tiny."""
    made = {"attention": _attention, "attention options": _options, "embed": _embed, "rows": _rows}[group](device)
    return [check for check in made if check.tiny or not tiny]


def _normal(seed: int, dtype: torch.dtype, *sizes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator).to(dtype) for size in sizes]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _lengths(device: str) -> list[int]:
    return [0, 1, 63, 130, 300] if device != "cpu" else [0, 1, 17]


def _attend(lengths: list[int], more_keys: int = 0, **settings) -> Callable[[list[Tensor], str], list[Tensor]]:
    """Attention over ``lengths``, keys longer by ``more_keys``; lse too where ``return_lse`` is set."""

    def call(floats: list[Tensor], backend: str) -> list[Tensor]:
        device = floats[0].device
        cu = [torch.tensor([0, *n], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device) for n in
              (lengths, [n + more_keys for n in lengths])]  # fmt: skip
        most = [max(lengths), max(lengths) + more_keys]
        # Only some backends know the faster product; the definition has one.
        given = settings if backend != "reference" else {k: v for k, v in settings.items() if k != "precision"}
        out = F.varlen_attention(*floats, *cu, *most, backend=backend, **given)
        return list(out) if isinstance(out, tuple) else [out]

    return call


def _attention(device: str) -> Iterator[Check]:
    """Head dims and dtypes, forward and both gradients' kernels."""
    lengths = _lengths(device)
    rows = sum(lengths) + 5  # the last ones belong to nobody
    dims = (64, 128, 32, 80, 96, 256) if device != "cpu" else (64, 24)
    for backend in backends(ATTENTION, device):
        for dtype in dtypes(device):
            for dim in dims if dtype != torch.float32 or device == "cpu" else dims[:2]:
                yield Check(
                    name=f"attention {backend.name} {_name(dtype)} d{dim}",
                    floats=_normal(dim, dtype, *[(rows, 2, dim)] * 3),
                    call=_attend(lengths),
                    backend=backend,
                    dtype=dtype,
                    tiny=dim == 64 and dtype != torch.float32,
                )


def _options(device: str) -> Iterator[Check]:
    """Causal, other keys, grouped heads, lse and its gradient, TF32, the other backward."""
    lengths, dtype = _lengths(device), dtypes(device)[0]
    rows, dim = sum(lengths), 64
    for backend in backends(ATTENTION, device):

        def check(what: str, heads=(2, 2), more_keys: int = 0, dtype=dtype, backend=backend, limit=None, **settings):
            keys = (rows + more_keys * len(lengths), heads[1], dim)
            return Check(
                name=f"attention {backend.name} {_name(dtype)} {what}",
                floats=_normal(7, dtype, (rows, heads[0], dim), keys, keys),
                call=_attend(lengths, more_keys, **settings),
                backend=backend,
                dtype=dtype,
                tiny=what in ("causal", "not deterministic"),
                limit=limit,
            )

        yield check("causal", causal=True)
        yield check("not deterministic", deterministic=False)
        yield check("causal, longer keys", more_keys=5, causal=True)
        yield check("grouped heads", heads=(4, 2))
        yield check("lse and its gradient", return_lse=True)
        yield check("tf32", dtype=torch.float32, precision="tf32", limit=5e-3)


def _video(shape: tuple[int, ...]) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def _embed(device: str) -> Iterator[Check]:
    """Bytes and floats, kept and all, both layouts, tubelets that overlap."""
    big = device != "cpu"
    side, width = (64, 192) if big else (32, 24)
    pixels = _video((2, 3, 4, side, side))
    norm = {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.6, 0.7]}
    last = pixels.contiguous(memory_format=torch.channels_last_3d)
    every, tokens = (2, 16, 16), 2 * (side // 16) ** 2
    keep = torch.stack(
        [torch.randperm(tokens, generator=torch.Generator().manual_seed(s))[: tokens // 2] for s in (0, 1)]
    )
    for backend in backends(EMBED, device):
        for dtype in dtypes(device):

            def check(what, video, kernel=every, kept=None, pos=tokens, backend=backend, dtype=dtype, **more):
                def call(floats: list[Tensor], name: str) -> list[Tensor]:
                    weight, bias, place, *clip = floats
                    moved = None if kept is None else kept.to(weight.device)
                    given = clip[0] if clip else video.to(weight.device)
                    return [F.tubelet_embed(given, weight, bias, pos=place, keep=moved, backend=name, **more)]

                floats = _normal(5, dtype, (width, 3, *kernel), (width,), (pos, width))
                floats[0] = floats[0] / 39
                return Check(
                    name=f"embed {backend.name} {_name(dtype)} {what}",
                    floats=floats if video is not None else [*floats, *_normal(6, dtype, (2, 3, 4, side, side))],
                    call=call,
                    backend=backend,
                    dtype=dtype,
                    tiny=what == "bytes, kept" and dtype != torch.float32,
                )

            yield check("bytes, kept", pixels, kept=keep, **norm)
            yield check("bytes, all", pixels, **norm)
            yield check("bytes, channels last", last, kept=keep, **norm)
            yield check("floats and their gradient", None, kept=keep)
            frames = (1, 16, 16)
            yield check("single frames", pixels, frames, None, 4 * (side // 16) ** 2, stride=frames, **norm)
            steps = (side - 16) // 8 + 1
            yield check("overlapping", pixels, every, None, steps * steps, stride=(4, 8, 8), **norm)


def _rows(device: str) -> Iterator[Check]:
    """Gather with repeats, scatter with fill, both means; widths of one access and of many."""
    n, widths = (1000, (768, 24, 1)) if device != "cpu" else (40, (24, 1))
    generator = torch.Generator().manual_seed(2)
    some, repeated = torch.randperm(n, generator=generator)[: n // 4], torch.randint(n, (n,), generator=generator)
    segment = torch.randint(n // 8, (n,), generator=generator)

    def at(ids: Tensor, like: Tensor) -> Tensor:
        return ids.to(like.device)

    calls = {
        "gather": (GATHER, lambda w: [(n, w)], lambda f, b: [F.gather_tokens(f[0], at(some, f[0]), backend=b)]),
        "gather, repeated": (
            GATHER,
            lambda w: [(n, w)],
            lambda f, b: [F.gather_tokens(f[0], at(repeated, f[0]), backend=b)],
        ),
        "scatter": (
            SCATTER,
            lambda w: [(n // 4, w), (w,)],
            lambda f, b: [F.scatter_tokens(f[0], at(some, f[0]), n, fill=f[1], backend=b)],
        ),
        "segment mean": (
            SEGMENT,
            lambda w: [(n, w)],
            lambda f, b: [F.segment_mean(f[0], at(segment, f[0]), n // 8, backend=b)[0]],
        ),
    }
    for what, (op, shapes, call) in calls.items():
        for backend in backends(op, device):
            for dtype in dtypes(device):
                for width in widths:
                    yield Check(
                        name=f"{what} {backend.name} {_name(dtype)} width {width}",
                        floats=_normal(width, dtype, *shapes(width)),
                        call=call,
                        backend=backend,
                        dtype=dtype,
                        tiny=width == 24 and dtype == torch.float32,
                    )
