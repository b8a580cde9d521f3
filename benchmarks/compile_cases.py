"""What ``benchmarks.compile_report`` compiles: a kernel with one set of types, constants and launch options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from fastvivit.planning.devices import Work


@dataclass(frozen=True, kw_only=True)
class CompileCase:
    """One Triton kernel in one shipped configuration.

    Attributes:
        kernel: the ``@triton.jit`` function.
        name: unique, and the same on every architecture that compiles it, as "attention forward bf16 d64".
        signature: type of every argument that is not a constant, in Triton's words: "*bf16", "*i32", "i32", "fp32".
        constexprs: value of every ``tl.constexpr`` argument (and of arguments given as None).
        num_warps: warps of a program.
        num_stages: stages of the software pipeline.
        matrix: whether the machine code must hold matrix instructions (16-bit and TF32 tiles of 64 rows and more).
        unaligned: arguments that are not multiples of 16; pointers and other integers are taken to be.
        arches: compute capabilities that ship this configuration.
        work: of one call in a real layer, from which the report predicts a time; None where it is next to nothing.
    """

    kernel: Callable
    name: str
    signature: dict[str, str]
    constexprs: dict[str, object]
    num_warps: int = 4
    num_stages: int = 3
    matrix: bool = False
    unaligned: frozenset[str] = field(default_factory=frozenset)
    arches: tuple[int, ...] = (80, 90, 100)
    work: Work | None = None


# The layer of the predictions: ViT-B on 256 frames of 256 x 256, a quarter of its 32,768 tubelets kept for the
# embedding and the row moves (24 clips), all of them for attention.
TOKENS, WIDTH, CLIPS = 32768, 768, 24
# Products of (rows, head dim) matrices, exponentials and buffers of (tokens, heads, head dim), a score or once.
ATTENTION_WORK = {"forward": (2, 1, 4), "dkdv": (4, 1, 6), "dq": (3, 1, 5), "atomic": (5, 1, 7)}


def attention_work(which: str, kind: str, head_dim: int, causal: bool) -> Work:
    """What one kernel does in the layer; columns that pad a head dim are not counted."""
    products, exponentials, buffers = ATTENTION_WORK[which]
    heads = max(1, WIDTH // head_dim)
    scores = heads * TOKENS**2 // (2 if causal else 1)
    item = 2 if kind == "half" else 4
    moved = buffers * TOKENS * heads * head_dim * item
    return Work(flops=2 * head_dim * products * scores, bytes=moved, exponentials=exponentials * scores, kind=kind)


POINTERS = {
    **dict.fromkeys(("q", "k", "v", "out", "grad_out", "grad_q", "grad_k", "grad_v"), "tokens"),
    **dict.fromkeys(("lse", "grad_lse", "lse_log2", "delta", "sum_q"), "*fp32"),
    **dict.fromkeys(("table", "cu_seqlens_q", "cu_seqlens_k"), "*i32"),
    **dict.fromkeys(("scale", "scale_log2"), "fp32"),
}
TYPES = {"half": "*bf16", "tf32": "*fp32", "ieee": "*fp32"}


def _signature(kernel: Callable, kind: str) -> dict[str, str]:
    types = {name: POINTERS.get(name, "i32") for name in kernel.arg_names}
    return {name: TYPES[kind] if found == "tokens" else found for name, found in types.items()}


def attention_case(which: str, tile, arch: int, kind: str, head_dim: int, causal: bool) -> CompileCase:
    """One kernel ("forward", "dkdv", "dq", "atomic") of varlen_attention with ``tile``, a ``triton_configs.Tile``."""
    from fastvivit.ops.varlen_attention import triton_backward, triton_forward
    from fastvivit.ops.varlen_attention.triton_configs import head_parts

    columns, rest = head_parts(head_dim)
    keys = triton_backward._varlen_attention_backward_dkdv_kernel
    kernel, own = {
        "forward": (triton_forward._varlen_attention_forward_kernel, {"NEGATE": False}),
        "dkdv": (keys, {"GROUP": 1, "ADD_TO_QUERIES": False, "sum_q": None}),
        "atomic": (keys, {"GROUP": 1, "ADD_TO_QUERIES": True}),
        "dq": (triton_backward._varlen_attention_backward_dq_kernel, {"HAS_GRAD_LSE": False, "grad_lse": None}),
    }[which]
    constants = {
        "HEAD_DIM": head_dim,
        "HEAD_PAD": columns,
        "REST": rest,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "CAUSAL": causal,
        "WIDE": False,
        "PRECISION": "ieee" if kind == "ieee" else "tf32",
    }
    rows = tile.block_n if which in ("dkdv", "atomic") else tile.block_m
    return CompileCase(
        kernel=kernel,
        name=f"attention {which} {kind} d{head_dim}{' causal' * causal} {tile.block_m}x{tile.block_n} sm{arch}",
        signature=_signature(kernel, kind),
        constexprs=constants | own,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        matrix=kind != "ieee" and rows >= 64,
        arches=(arch,),
        work=attention_work(which, kind, head_dim, causal),
    )


def attention_cases() -> list[CompileCase]:
    """Every kernel of varlen_attention in every configuration that it ships; causal and odd head dims in 16 bits."""
    from fastvivit.ops.varlen_attention import triton_atomic
    from fastvivit.ops.varlen_attention.triton_configs import FINISH_BLOCK, KINDS, PREPARE, TILES, tiles_for

    cases = []
    for arch in TILES:
        for kind in KINDS:
            variants = [(head_dim, False) for head_dim in (16, 32, 64, 128, 256)]
            if kind == "half":
                # 80 and 96 come in two parts.
                variants += [(80, False), (96, False), (80, True), (96, True)]
                variants += [(head_dim, True) for head_dim in (16, 32, 64, 128, 256)]
            for head_dim, causal in variants:
                launches = tiles_for(arch, kind, head_dim).launches(causal)
                cases += [attention_case(which, tile, arch, kind, head_dim, causal) for which, tile in launches.items()]
    kernel = triton_atomic._varlen_attention_backward_prepare_kernel
    for head_dim in (64, 80, 256):
        sizes = {"HEAD_DIM": head_dim, "HEAD_PAD": 1 << (head_dim - 1).bit_length(), "BLOCK_M": PREPARE.block_m}
        cases.append(
            CompileCase(
                kernel=kernel,
                name=f"attention prepare half d{head_dim}",
                signature=_signature(kernel, "half"),
                constexprs=sizes | {"HAS_GRAD_LSE": True},
                num_warps=PREPARE.num_warps,
                num_stages=PREPARE.num_stages,
                arches=(80, 86, 90, 100),
                work=Work(bytes=2 * TOKENS * WIDTH * 2),
            )
        )
    kernel = triton_atomic._varlen_attention_backward_finish_kernel
    signature = _signature(kernel, "half") | {"elements": "i32"}
    cases.append(
        CompileCase(
            kernel=kernel, name="attention finish half", signature=signature, constexprs={"BLOCK": FINISH_BLOCK}
        )
    )
    return cases
