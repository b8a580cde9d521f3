"""Tile sizes of the attention kernels: literals, chosen by architecture, kind of product and padded head dim.

Nothing is tuned at run time: a first call costs no search, and sums are taken in the same order on every machine of an
architecture. Every row compiles without a spill and with the matrix instructions of its architecture, causal or not, in
Triton 3.6 and 3.9 (``python -m benchmarks.compile_report``); none was timed yet.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Tile(NamedTuple):
    """Launch configuration of a kernel: rows of queries and of keys in a tile, warps, pipeline stages."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


class Tiles(NamedTuple):
    """Launch configurations of the kernels that hold products. The rows that a kernel owns divide GRANULE."""

    forward: Tile
    dkdv: Tile
    dq: Tile


# half: float16 and bfloat16. ieee has no matrix instructions, its operands pass through registers: small tiles.
KINDS = ("half", "tf32", "ieee")
HEAD_PADS = (16, 32, 64, 128, 256)
DELTA = Tile(64, 0, 4, 1)

_IEEE = {
    ("ieee", 16): Tiles(Tile(64, 32, 8, 1), Tile(32, 64, 8, 1), Tile(64, 32, 8, 1)),
    ("ieee", 32): Tiles(Tile(64, 16, 8, 1), Tile(32, 64, 8, 1), Tile(64, 32, 8, 1)),
    ("ieee", 64): Tiles(Tile(64, 32, 8, 1), Tile(32, 32, 8, 1), Tile(32, 32, 8, 1)),
    ("ieee", 128): Tiles(Tile(16, 32, 8, 1), Tile(16, 32, 8, 1), Tile(16, 32, 8, 1)),
    ("ieee", 256): Tiles(Tile(16, 16, 8, 1), Tile(16, 16, 8, 1), Tile(16, 16, 4, 1)),
}

_AMPERE = _IEEE | {
    ("half", 16): Tiles(Tile(128, 128, 8, 3), Tile(32, 128, 8, 3), Tile(128, 64, 8, 3)),
    ("half", 32): Tiles(Tile(128, 128, 8, 3), Tile(32, 128, 8, 3), Tile(64, 64, 4, 3)),
    ("half", 64): Tiles(Tile(128, 64, 8, 3), Tile(32, 64, 8, 3), Tile(128, 64, 8, 3)),
    ("half", 128): Tiles(Tile(128, 32, 8, 3), Tile(32, 64, 8, 2), Tile(128, 32, 8, 2)),
    ("half", 256): Tiles(Tile(64, 32, 8, 2), Tile(32, 64, 8, 1), Tile(64, 32, 8, 1)),
    ("tf32", 16): Tiles(Tile(128, 32, 8, 2), Tile(32, 64, 4, 2), Tile(64, 32, 4, 2)),
    ("tf32", 32): Tiles(Tile(128, 64, 8, 2), Tile(32, 64, 4, 2), Tile(64, 32, 4, 2)),
    ("tf32", 64): Tiles(Tile(128, 64, 8, 2), Tile(32, 64, 8, 2), Tile(64, 32, 4, 2)),
    ("tf32", 128): Tiles(Tile(64, 32, 8, 2), Tile(32, 64, 8, 1), Tile(64, 32, 8, 1)),
    ("tf32", 256): Tiles(Tile(64, 16, 8, 1), Tile(16, 32, 8, 1), Tile(32, 16, 8, 1)),
}

# The same instructions with 99 KB of shared memory (sm_86, sm_89, sm_120).
_SMALL = _AMPERE | {
    ("half", 128): Tiles(Tile(128, 32, 8, 3), Tile(32, 64, 8, 2), Tile(64, 32, 8, 2)),
    ("half", 256): Tiles(Tile(64, 32, 8, 2), Tile(16, 64, 8, 1), Tile(64, 32, 8, 1)),
    ("tf32", 128): Tiles(Tile(64, 32, 8, 2), Tile(16, 32, 8, 1), Tile(64, 32, 8, 1)),
    ("tf32", 256): Tiles(Tile(64, 16, 8, 1), Tile(16, 16, 8, 1), Tile(32, 16, 8, 1)),
}

_HOPPER = _IEEE | {
    ("half", 16): Tiles(Tile(128, 128, 8, 3), Tile(64, 128, 8, 3), Tile(128, 64, 8, 3)),
    ("half", 32): Tiles(Tile(128, 128, 8, 3), Tile(64, 128, 8, 3), Tile(128, 64, 8, 3)),
    ("half", 64): Tiles(Tile(128, 128, 8, 3), Tile(64, 128, 8, 3), Tile(128, 64, 8, 3)),
    ("half", 128): Tiles(Tile(128, 64, 8, 3), Tile(32, 128, 8, 2), Tile(128, 64, 8, 2)),
    ("half", 256): Tiles(Tile(128, 32, 8, 2), Tile(32, 32, 8, 1), Tile(128, 16, 8, 2)),
    ("tf32", 16): Tiles(Tile(128, 64, 8, 2), Tile(32, 64, 4, 2), Tile(64, 32, 4, 2)),
    ("tf32", 32): Tiles(Tile(128, 64, 8, 2), Tile(32, 64, 4, 2), Tile(64, 32, 4, 2)),
    ("tf32", 64): Tiles(Tile(128, 64, 8, 2), Tile(32, 64, 4, 2), Tile(64, 32, 4, 2)),
    ("tf32", 128): Tiles(Tile(128, 32, 8, 2), Tile(32, 32, 4, 1), Tile(128, 32, 8, 1)),
    ("tf32", 256): Tiles(Tile(32, 32, 8, 1), Tile(16, 16, 8, 1), Tile(32, 32, 8, 1)),
}

_BLACKWELL = _IEEE | {
    ("ieee", 256): Tiles(Tile(32, 16, 16, 1), Tile(16, 16, 8, 1), Tile(16, 16, 4, 1)),
    ("half", 16): Tiles(Tile(128, 128, 8, 3), Tile(64, 128, 8, 3), Tile(128, 64, 8, 3)),
    ("half", 32): Tiles(Tile(128, 128, 8, 3), Tile(64, 128, 8, 3), Tile(128, 64, 8, 3)),
    ("half", 64): Tiles(Tile(128, 128, 8, 3), Tile(64, 128, 8, 3), Tile(128, 64, 8, 3)),
    ("half", 128): Tiles(Tile(128, 64, 8, 3), Tile(64, 128, 8, 1), Tile(128, 64, 8, 2)),
    ("half", 256): Tiles(Tile(128, 32, 8, 2), Tile(32, 64, 8, 2), Tile(64, 64, 8, 1)),
    ("tf32", 16): Tiles(Tile(128, 64, 8, 2), Tile(64, 64, 8, 2), Tile(64, 64, 8, 2)),
    ("tf32", 32): Tiles(Tile(128, 32, 8, 2), Tile(64, 64, 8, 2), Tile(64, 64, 8, 2)),
    ("tf32", 64): Tiles(Tile(128, 64, 8, 2), Tile(64, 64, 8, 2), Tile(64, 64, 8, 2)),
    ("tf32", 128): Tiles(Tile(128, 32, 8, 2), Tile(32, 64, 8, 2), Tile(128, 32, 8, 2)),
    ("tf32", 256): Tiles(Tile(64, 16, 8, 1), Tile(16, 16, 8, 1), Tile(32, 32, 8, 1)),
}

TILES = {80: _AMPERE, 86: _SMALL, 90: _HOPPER, 100: _BLACKWELL}
_ARCH = {(8, 0): 80, (8, 7): 80, (9, 0): 90, (10, 0): 100, (10, 3): 100}


def arch_of(capability: tuple[int, int]) -> int:
    """Return the key of TILES for a device; one not known here gets tiles that ask for least."""
    return _ARCH.get(tuple(capability), 86)


def head_pad(head_dim: int) -> int:
    """Return the columns of a tile: a power of two, and no fewer than a product takes."""
    return max(16, 1 << (head_dim - 1).bit_length())


def kind_of(dtype: torch.dtype, precision: str) -> str:
    """Return the kind of product of inputs of ``dtype``: "half", or the ``precision`` of float32."""
    return precision if dtype == torch.float32 else "half"


def tiles_for(arch: int, kind: str, head_dim: int) -> Tiles:
    """Return the tiles of an architecture (of ``arch_of``), kind and head dim."""
    return TILES[arch][kind, head_pad(head_dim)]
