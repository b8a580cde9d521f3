"""What ``benchmarks.tune`` searches: kernels, their candidates, and calls of them in a real layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch

import fastvivit.functional as F

from .compile_cases import TOKENS, WIDTH, CompileCase, attention_case
from .gate import backward_only
from .tune_tables import Place

# Half of the layer's tokens: a search takes hundreds of calls.
ROWS = TOKENS // 2
TABLES = {80: "_AMPERE", 86: "_SMALL", 90: "_HOPPER", 100: "_BLACKWELL"}


@dataclass(frozen=True, kw_only=True)
class Space:
    """One tile of one table, and what may take its place.

    Attributes:
        name: in words.
        place: where the tile stands.
        shipped: its numbers.
        candidates: what to compile of each; one may ship if all of these may.
        cases: the same of any tile.
        call: launches the kernel with a tile, in a real layer.
    """

    name: str
    place: Place
    shipped: tuple[int, ...]
    candidates: dict[tuple[int, ...], list[CompileCase]]
    cases: Callable[[tuple[int, ...]], list[CompileCase]]
    call: Callable[[tuple[int, ...]], Callable[[], object]]


def device_arch() -> int:
    """The device's key in the tables."""
    from fastvivit.ops.varlen_attention.triton_configs import arch_of

    return arch_of(torch.cuda.get_device_capability())


def attention(arch: int, kind: str, kernels: list[str] | None, head_dims: list[int]) -> Iterator[Space]:
    """The kernels that hold products, by head dim."""
    from fastvivit.ops.varlen_attention import triton_configs as configs

    for head_dim in head_dims:
        tiles = configs.tiles_for(arch, kind, head_dim)
        table = configs.TILES[arch]
        key = next(key for key, row in table.items() if row is tiles)
        for which, shipped in tiles._asdict().items():
            if shipped is None or (kernels and which not in kernels):
                continue

            # A tile serves causal attention too, where that has none of its own ("dkdv_causal"); atomics do not.
            kernel = which.removesuffix("_causal")
            masks = (True,) if kernel != which else (False, True)
            if which == "atomic" or getattr(tiles, f"{which}_causal", None):
                masks = (False,)

            def cases(tile, kernel=kernel, head_dim=head_dim, masks=masks):
                made = [attention_case(kernel, configs.Tile(*tile), arch, kind, head_dim, causal) for causal in masks]
                return [_renamed(case, tile) for case in made]

            own = {"dkdv": 1, "atomic": 1}.get(kernel, 0)
            blocks = ((64, 128), (32, 64, 128)) if own == 0 else ((32, 64, 128), (64, 128))
            grid = product(*blocks, (4, 8), (1, 2, 3, 4))
            yield Space(
                name=f"attention {which} {kind} d{head_dim}",
                place=Place(Path(configs.__file__), TABLES[arch], key, list(tiles._asdict()).index(which), which),
                shipped=tuple(shipped),
                candidates={tile: cases(tile) for tile in grid},
                cases=cases,
                call=lambda tile, which=which, d=head_dim, t=tiles: _attention_call(which, tile, t, kind, d),
            )


def _renamed(case: CompileCase, tile: tuple) -> CompileCase:
    """Names are unique in a shipped table; here warps and stages tell candidates apart too."""
    from dataclasses import replace

    return replace(case, name=f"{case.name} {tile}")


def _attention_call(which: str, tile: tuple, tiles, kind: str, head_dim: int) -> Callable[[], object]:
    from fastvivit.ops.varlen_attention import backend_triton, triton_configs

    dtype = torch.bfloat16 if kind == "half" else torch.float32
    generator = torch.Generator().manual_seed(0)
    heads = max(1, WIDTH // head_dim)
    q, k, v, grad = (torch.randn(ROWS, heads, head_dim, generator=generator).to("cuda", dtype) for _ in range(4))
    backward = which != "forward"
    leaves = [t.requires_grad_(backward) for t in (q, k, v)]
    cu = torch.tensor([0, ROWS], dtype=torch.int32, device="cuda")
    schedule = F.varlen_schedule(cu, cu, ROWS, ROWS)
    changed = tiles._replace(**{which: triton_configs.Tile(*tile)})
    settings = {"deterministic": which != "atomic", "causal": which.endswith("_causal")}
    settings |= {"precision": "ieee" if kind == "ieee" else "tf32"}

    def attend(q, k, v):
        return F.varlen_attention(q, k, v, cu, None, ROWS, ROWS, schedule=schedule, backend="triton", **settings)

    work = backward_only(attend, leaves, grad) if backward else lambda: attend(*leaves)

    def call() -> object:
        # The table is read at every launch, so a candidate stands in it only while it runs.
        shipped, backend_triton._tiles = backend_triton._tiles, lambda *_: changed
        try:
            return work()
        finally:
            backend_triton._tiles = shipped

    return call


def embed(arch: int, kind: str, kernels: list[str] | None, head_dims: list[int]) -> Iterator[Space]:
    """The wide tiles of the embedding's products; bytes for the forward and the weight, floats for the video."""
    from fastvivit.ops.tubelet_embed import backend_triton, triton_backward, triton_forward

    from . import compile_cases_rows as rows

    major = 8 if arch < 90 else arch // 10
    weight = "bf16" if kind == "half" else "fp32"
    wholes = {
        "forward": (triton_forward._tubelet_embed_forward_kernel, backend_triton, "TILES"),
        "weight": (triton_backward._tubelet_embed_grad_weight_kernel, triton_backward, "WEIGHT_TILES"),
        "video": (triton_backward._tubelet_embed_grad_video_kernel, triton_backward, "VIDEO_TILES"),
    }
    grids = {
        "forward": product((64, 128, 256), (64, 128, 256), (32, 64, 128), (4, 8), (3, 4)),
        "weight": product((32, 64), (64, 128, 256), (64, 128), (4, 8), (3, 4)),
        "video": product((64, 128), (64, 128, 256), (32, 64), (4, 8), (3, 4)),
    }
    for which, (kernel, module, table) in wholes.items():
        if kernels and which not in kernels:
            continue
        pixels = "u8" if which != "video" else weight

        def cases(tile, which=which, kernel=kernel, pixels=pixels):
            types = {"video": f"*{pixels}", **dict.fromkeys(("weight", "pos", "out", "grad"), f"*{weight}")}
            constants = {"ORDER": "cthw", "PRECISION": "tf32" if kind == "tf32" else "ieee", "UNIT": 16}
            constants |= {"PATCHES": False} if which == "video" else rows._norm(pixels)
            name = f"{which} {pixels} {weight}"
            case = rows._embed_case(kernel, name, arch, triton_forward.Tile(*tile), kind, types, constants)
            return [_renamed(case, tile)]

        yield Space(
            name=f"embed {which} {kind}",
            place=Place(Path(module.__file__), table, (major, kind), 0),
            shipped=tuple(getattr(module, table)[major, kind][0]),
            candidates={tile: cases(tile) for tile in grids[which]},
            cases=cases,
            call=lambda tile, which=which, m=module, t=table: _embed_call(which, tile, getattr(m, t), (major, kind)),
        )


def _embed_call(which: str, tile: tuple, table: dict, key: tuple) -> Callable[[], object]:
    from fastvivit.ops.tubelet_embed.triton_forward import Tile

    dtype = torch.bfloat16 if key[1] == "half" else torch.float32
    generator = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (1, 3, 256, 256, 256), dtype=torch.uint8, generator=generator).to("cuda")
    weight = (torch.randn(WIDTH, 3, 2, 16, 16, generator=generator) / 39).to("cuda", dtype)
    pos = torch.randn(TOKENS, WIDTH, generator=generator).to("cuda", dtype)
    keep = F.random_keep(1, TOKENS, 0.75, generator=generator).to("cuda")
    grad = torch.randn(1, TOKENS // 4, WIDTH, generator=generator).to("cuda", dtype)
    if which == "video":
        video = (video.to(dtype) / 128 - 1).requires_grad_()
    norm = {} if which == "video" else {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    settings = {"precision": "ieee" if key[1] == "ieee" else "tf32"} if dtype == torch.float32 else {}

    def run(video, weight):
        return F.tubelet_embed(video, weight, None, pos=pos, keep=keep, backend="triton", **norm, **settings)

    leaves = [video, weight.requires_grad_(which == "weight")]
    work = backward_only(run, leaves, grad) if which != "forward" else lambda: run(*leaves)

    def call() -> object:
        shipped = table[key]
        table[key] = (Tile(*tile), *shipped[1:])
        try:
            return work()
        finally:
            table[key] = shipped

    return call


FAMILIES = {"attention": attention, "embed": embed}
