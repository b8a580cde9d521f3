"""What ``benchmarks.compile_report`` compiles of the row moves and the embedding, for ViT-B and L."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton.language as tl

from fastvivit.ops import _rows_triton as rows
from fastvivit.ops.tubelet_embed import backend_triton, triton_backward, triton_forward
from fastvivit.planning.devices import Work

from .compile_cases import CLIPS, TOKENS, WIDTH, CompileCase

ARCHES = (80, 90, 100)
TYPES = {"u8": torch.uint8, "bf16": torch.bfloat16, "fp32": torch.float32}

ROW_TYPES = {
    **dict.fromkeys(("ids", "index", "order", "offsets", "firsts", "lasts", "divisor", "flag", "state"), "*i64"),
    **dict.fromkeys(("rows", "size", "segments", "chunk", "clean", "width_units", "stride_units"), "i32"),
}


def _row_case(kernel: Callable, name: str, dtype: str, absent: tuple[str, ...], out: str = "", **constants):
    """One row kernel on rows of 768 numbers; ``absent`` arguments are None."""
    tile = rows.RowTile.of(torch.empty(1, 768, dtype=TYPES[dtype], device="meta"))
    shape = {"VEC": tile.vec, "BLOCK_ROWS": tile.rows, "BLOCK_COLS": tile.cols}
    types = ROW_TYPES | {"x": f"*{dtype}", "fill": f"*{dtype}", "out": f"*{out or dtype}"}
    constexprs = dict.fromkeys(absent) | constants | shape
    signature = {n: types[n] for n in kernel.arg_names if n not in constexprs}
    # Widths in accesses (96 or 192) happen to be multiples of 16 in ViT-B and L; nothing may hang on it.
    unaligned = frozenset({"width_units", "stride_units", "lasts", "flag"})
    return CompileCase(
        kernel=kernel,
        name=f"rows {name} {dtype}",
        signature=signature,
        constexprs=constexprs,
        unaligned=unaligned,
        work=_row_work(name, dtype),
    )


# Rows read and written, as shares of all; a mean by place leaves a 64th of them, a sum down to one row nothing.
MOVED = {
    **{"gather": 1 / 2, "scatter": 5 / 4, "scatter zero": 5 / 4, "segment mean backward": 1 / 4 + 1 / 64},
    **{"gather backward": 5 / 4, "segment mean": 1 / 4 + 1 / 64, "long segments": 1 / 4},
    **{"fill gradient": 1.0, "bias gradient": 1 / 4},
}


def _row_work(name: str, dtype: str) -> Work | None:
    """The rows of 24 clips, a quarter of them kept; None for the second step of a sum, over a few rows."""
    if name not in MOVED:
        return None
    return Work(bytes=int(MOVED[name] * CLIPS * TOKENS * WIDTH * TYPES[dtype].itemsize))


def _embed_work(name: str, kind: str, pixels: str, weight: str) -> Work:
    """One product over the kept tubelets of one clip; pixels, rows and weights once."""
    kept, patch = TOKENS // 4, 3 * 2 * 16 * 16
    size, own = TYPES[pixels].itemsize, TYPES[weight].itemsize
    moved = kept * patch * size + kept * WIDTH * own + WIDTH * patch * own
    moved += kept * WIDTH * own if name.startswith("forward") else 0  # positions
    return Work(flops=2 * kept * patch * WIDTH, bytes=moved, kind=kind)


def rows_cases() -> list[CompileCase]:
    """Every kernel of gather, scatter and segment mean as the ops launch it."""
    gather, sums, chunks = rows._gather_rows_kernel, rows._sum_segments_kernel, rows._sum_chunks_kernel
    acc = {"ACC": tl.float32}
    uniform = ("firsts", "lasts", "divisor", "flag")
    cases = []
    for dtype in ("bf16", "fp32"):
        cases += [
            _row_case(gather, "gather", dtype, ("fill", "divisor", "flag"), NAN_OUTSIDE=True),
            _row_case(gather, "scatter", dtype, ("divisor",), NAN_OUTSIDE=False),
            _row_case(gather, "scatter zero", dtype, ("fill", "divisor"), NAN_OUTSIDE=False),
            _row_case(gather, "segment mean backward", dtype, ("fill",), NAN_OUTSIDE=False),
            _row_case(sums, "gather backward", dtype, ("divisor", "flag"), **acc),
            _row_case(sums, "segment mean", dtype, (), **acc),
            _row_case(chunks, "long segments", dtype, ("divisor", "flag"), "fp32", HOW="order", **acc),
            _row_case(chunks, "fill gradient", dtype, uniform, "fp32", HOW="outside", **acc),
            _row_case(chunks, "bias gradient", dtype, uniform, "fp32", HOW="inside", **acc),
        ]
    cases.append(_row_case(chunks, "pieces of segments", "fp32", ("index",), "bf16", HOW="all", **acc))
    cases.append(_row_case(chunks, "pieces of a sum", "fp32", ("index", *uniform), HOW="all", **acc))
    cases.append(
        CompileCase(
            kernel=rows._invert_ids_kernel,
            name="rows invert ids",
            signature={"ids": "*i64", "state": "*i64", "rows": "i32", "size": "i32"},
            constexprs={"OUTSIDE_SPOILS": True, "BLOCK": rows._INVERT_BLOCK},
        )
    )
    return cases


# (pixels, weight, kind): the product's operands and which tiles of a table it takes.
PRODUCTS = (
    ("u8", "bf16", "half"),
    ("bf16", "bf16", "half"),
    ("fp32", "bf16", "half"),
    ("u8", "fp32", "tf32"),
    ("fp32", "fp32", "tf32"),
    ("u8", "fp32", "ieee"),
    ("fp32", "fp32", "ieee"),
)
VIVIT = {"C": 3, "KT": 2, "KH": 16, "KW": 16}
GRID = {"ST": 2, "SH": 16, "SW": 16, "OT": 0, "OH": 0, "OW": 0}
EMBED_TYPES = {
    **dict.fromkeys(("ids", "corners", "inverse", "flag"), "*i64"),
    **dict.fromkeys(("scale", "shift", "partial", "bias", "patches"), "*fp32"),
    "factor": "fp32",
}


def _embed_case(kernel, name, arch, tile, kind, pointers, constants, last=False) -> CompileCase:
    """One embedding kernel; ``last``: channels-last video, whose neighbouring columns are 3 apart."""
    order = {"stride_c": 1} if last else {"stride_w": 1}
    blocks = {"BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k}
    constexprs = {n: v for n, v in (VIVIT | GRID | order | constants | blocks).items() if n in kernel.arg_names}
    types = {n: (EMBED_TYPES | pointers).get(n, "i32") for n in kernel.arg_names}
    # The weight's gradient has the width for rows; m is the depth of its product.
    block_rows = tile.n if "partial" in kernel.arg_names else tile.m
    return CompileCase(
        kernel=kernel,
        name=f"embed {name}{' channels last' * last} {kind} {tile.m}x{tile.n}x{tile.k} sm{arch}",
        signature={n: t for n, t in types.items() if n not in constexprs},
        constexprs=constexprs,
        num_warps=tile.warps,
        num_stages=tile.stages,
        matrix=kind != "ieee" and block_rows >= 64,
        unaligned=frozenset({"flag", *(["stride_w"] if last else [])}),
        arches=(arch,),
        # Every name ends with the types of its operands.
        work=_embed_work(name, kind, *name.split()[-2:]),
    )


def _norm(pixels: str) -> dict[str, object]:
    """Bytes are centred; the normalisation of floats is compiled for float32 videos, none for 16-bit ones."""
    if pixels == "u8":
        return {"NORM": "centre", "scale": None, "shift": None}
    return {"NORM": "affine"} if pixels == "fp32" else {"NORM": "none", "scale": None, "shift": None}


def embed_cases() -> list[CompileCase]:
    """Every kernel of tubelet_embed in every configuration that it ships."""
    forward = triton_forward._tubelet_embed_forward_kernel
    grad_weight = triton_backward._tubelet_embed_grad_weight_kernel
    grad_video = triton_backward._tubelet_embed_grad_video_kernel
    cases = []
    for arch in ARCHES:
        major = arch // 10
        for pixels, weight, kind in PRODUCTS:
            size, weight_size = TYPES[pixels].itemsize, TYPES[weight].itemsize
            precision = {"PRECISION": "tf32" if kind == "tf32" else "ieee", "UNIT": 16}
            types = {"video": f"*{pixels}", **dict.fromkeys(("weight", "pos", "out", "grad"), f"*{weight}")}
            label = f"{pixels} {weight}"
            both = (
                (forward, "forward", backend_triton.TILES, backend_triton.stage_bytes),
                (
                    grad_weight,
                    "grad weight",
                    triton_backward.WEIGHT_TILES,
                    triton_backward.weight_stage_bytes,
                ),
            )
            for kernel, name, tiles, stage_bytes in both:
                wide, narrow = (
                    triton_forward.fit_stages(t, major, stage_bytes(t, size, weight_size)) for t in tiles[major, kind]
                )
                for tile, last in ((wide, False), (narrow, False), (wide, True)):
                    if last and pixels != "u8":
                        continue
                    constants = {"ORDER": "thw+c" if last else "cthw", **_norm(pixels), **precision}
                    name_ = f"{name} {label}"
                    cases.append(_embed_case(kernel, name_, arch, tile, kind, types, constants, last))
            if pixels == "u8":
                continue
            for tile in triton_backward.VIDEO_TILES[major, kind]:
                stage = triton_backward.video_stage_bytes(tile, weight_size)
                tile = triton_forward.fit_stages(tile, major, stage)
                for patches in (False, True):
                    constants = {"ORDER": "cthw", "PATCHES": patches, **precision}
                    types["out"] = "*fp32" if patches else f"*{pixels}"
                    name = f"grad {'patches' if patches else 'video'} {label}"
                    cases.append(_embed_case(grad_video, name, arch, tile, kind, types, constants))
    return cases + _table_cases()


def _table_cases() -> list[CompileCase]:
    """The kernels that hold no product."""
    corners, fold = triton_forward._tubelet_corners_kernel, triton_backward._fold_patches_kernel
    overlapping = VIVIT | {"ST": 1, "SH": 8, "SW": 8, "OT": 0, "OH": 0, "OW": 0}
    types = EMBED_TYPES | {"out": "*bf16"}
    return [
        CompileCase(
            kernel=kernel,
            name=f"embed {name}",
            signature={n: types.get(n, "i32") for n in kernel.arg_names if n not in constants},
            constexprs=constants,
        )
        for kernel, name, constants in (
            (corners, "corners", GRID | {"stride_w": 1, "UNIT": 16, "BLOCK": 256}),
            (fold, "fold patches", overlapping | {"stride_w": 1, "BLOCK": 1024}),
        )
    ]
