"""Tile sizes of the attention kernels: literals, chosen by architecture, kind of product and padded head dim.

Keys are the kind and the columns of both parts of a tile (``head_parts``); columns that have no row take the next one.

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
    """Launch configurations of the kernels that hold products. The rows that a kernel owns divide GRANULE.

    ``atomic`` is that of the keys' kernel when it also adds to the queries' gradient, where it fits; ``dkdv_causal``
    replaces ``dkdv`` where the second loop of causal attention leaves too few registers, as it always does ``atomic``.
    """

    forward: Tile
    dkdv: Tile
    dq: Tile
    atomic: Tile | None = None
    dkdv_causal: Tile | None = None

    def launches(self, causal: bool) -> dict[str, Tile]:
        """Return the configuration of each kernel that there is, by name."""
        found = {"forward": self.forward, "dkdv": causal and self.dkdv_causal or self.dkdv, "dq": self.dq}
        return found if causal or self.atomic is None else found | {"atomic": self.atomic}


# half: float16 and bfloat16. ieee has no matrix instructions, its operands pass through registers: small tiles.
KINDS = ("half", "tf32", "ieee")
PREPARE = Tile(64, 0, 4, 1)
FINISH_BLOCK = 1024

_IEEE = {
    ("ieee", 16): Tiles(Tile(64, 32, 8, 1), Tile(32, 64, 8, 1), Tile(64, 32, 8, 1)),
    ("ieee", 32): Tiles(Tile(64, 16, 8, 1), Tile(32, 32, 8, 1), Tile(64, 32, 8, 1)),
    ("ieee", 64): Tiles(Tile(64, 32, 8, 1), Tile(32, 32, 8, 1), Tile(32, 32, 8, 1)),
    ("ieee", 128): Tiles(Tile(16, 32, 8, 1), Tile(16, 32, 8, 1), Tile(16, 32, 8, 1)),
    ("ieee", 256): Tiles(Tile(16, 16, 8, 1), Tile(16, 16, 8, 1), Tile(16, 16, 4, 1)),
}

_AMPERE = _IEEE | {
    ("half", 16): Tiles(Tile(128, 128, 8, 3), Tile(32, 128, 8, 3), Tile(128, 64, 8, 3), Tile(64, 64, 8, 2)),
    ("half", 32): Tiles(Tile(128, 128, 8, 3), Tile(32, 128, 8, 3), Tile(64, 64, 4, 3), Tile(32, 128, 8, 2)),
    ("half", 64): Tiles(Tile(128, 64, 8, 3), Tile(32, 64, 8, 3), Tile(128, 64, 8, 3), Tile(32, 64, 8, 2)),
    ("half", 96): Tiles(Tile(128, 32, 8, 3), Tile(16, 64, 8, 2), Tile(64, 32, 8, 2)),
    ("half", 128): Tiles(Tile(128, 32, 8, 3), Tile(32, 64, 8, 2), Tile(64, 32, 4, 2)),
    ("half", 256): Tiles(Tile(64, 32, 8, 2), Tile(32, 64, 8, 1), Tile(64, 32, 8, 1)),
    ("tf32", 16): Tiles(Tile(128, 32, 8, 2), Tile(32, 64, 4, 2), Tile(64, 32, 4, 2)),
    ("tf32", 32): Tiles(Tile(128, 64, 8, 2), Tile(32, 64, 4, 2), Tile(64, 32, 4, 2)),
    ("tf32", 64): Tiles(Tile(128, 64, 8, 2), Tile(32, 64, 8, 2), Tile(64, 32, 4, 2)),
    ("tf32", 128): Tiles(Tile(64, 32, 8, 2), Tile(32, 64, 8, 1), Tile(64, 32, 8, 1)),
    ("tf32", 256): Tiles(Tile(64, 16, 8, 1), Tile(16, 32, 8, 1), Tile(32, 16, 8, 1)),
}

# The same instructions with 99 KB of shared memory (sm_86, sm_89, sm_120).
_SMALL = _AMPERE | {
    ("half", 256): Tiles(Tile(64, 32, 8, 2), Tile(16, 64, 8, 1), Tile(64, 32, 8, 1)),
    ("tf32", 32): Tiles(Tile(128, 64, 8, 2), Tile(32, 64, 4, 2), Tile(64, 32, 8, 2)),
    ("tf32", 128): Tiles(Tile(64, 32, 8, 2), Tile(16, 32, 8, 1), Tile(64, 32, 8, 1)),
    ("tf32", 256): Tiles(Tile(64, 16, 8, 1), Tile(16, 16, 8, 1), Tile(32, 16, 4, 1)),
}

_HOPPER = _IEEE | {
    ("half", 16): Tiles(Tile(128, 128, 8, 3), Tile(64, 128, 8, 3), Tile(128, 64, 8, 3), Tile(64, 128, 8, 3)),
    ("half", 32): Tiles(Tile(128, 128, 8, 3), Tile(64, 128, 8, 3), Tile(128, 64, 8, 3), Tile(64, 128, 8, 3)),
    # 4 warps leave room for a second program on the multiprocessor: one's softmax runs beside the other's products.
    ("half", 64): Tiles(Tile(128, 64, 4, 3), Tile(64, 128, 8, 3), Tile(128, 64, 8, 3), Tile(64, 128, 8, 3)),
    ("half", 80): Tiles(Tile(128, 128, 8, 2), Tile(64, 128, 8, 2), Tile(128, 64, 8, 3), None, Tile(32, 128, 8, 2)),
    ("half", 96): Tiles(Tile(128, 64, 8, 3), Tile(32, 128, 8, 3), Tile(128, 64, 8, 3)),
    ("half", 128): Tiles(
        Tile(128, 64, 8, 3), Tile(32, 128, 8, 2), Tile(128, 64, 8, 2), Tile(32, 128, 8, 2), Tile(32, 128, 8, 1)
    ),
    ("half", 256): Tiles(Tile(128, 32, 8, 2), Tile(32, 32, 8, 1), Tile(128, 16, 8, 2)),
    ("tf32", 16): Tiles(Tile(128, 64, 8, 2), Tile(32, 64, 4, 2), Tile(64, 32, 4, 2)),
    ("tf32", 32): Tiles(Tile(128, 64, 8, 2), Tile(32, 64, 4, 2), Tile(64, 32, 4, 2)),
    ("tf32", 64): Tiles(Tile(128, 64, 8, 2), Tile(32, 64, 4, 2), Tile(64, 32, 4, 2)),
    ("tf32", 128): Tiles(Tile(128, 32, 8, 2), Tile(32, 32, 4, 1), Tile(128, 32, 8, 1)),
    ("tf32", 256): Tiles(Tile(32, 32, 8, 1), Tile(16, 16, 8, 1), Tile(32, 32, 8, 1)),
}

_BLACKWELL = _IEEE | {
    ("ieee", 256): Tiles(Tile(32, 16, 16, 1), Tile(16, 16, 8, 1), Tile(16, 16, 4, 1)),
    ("half", 16): Tiles(Tile(128, 128, 8, 3), Tile(64, 128, 8, 3), Tile(128, 64, 8, 3), Tile(64, 64, 8, 2)),
    ("half", 32): Tiles(Tile(128, 128, 8, 3), Tile(64, 128, 8, 3), Tile(128, 64, 8, 3), Tile(64, 128, 8, 2)),
    ("half", 64): Tiles(Tile(128, 128, 8, 3), Tile(64, 128, 8, 3), Tile(128, 64, 8, 3), Tile(64, 128, 8, 2)),
    ("half", 96): Tiles(Tile(128, 64, 8, 3), Tile(64, 128, 8, 1), Tile(128, 64, 8, 2)),
    ("half", 128): Tiles(Tile(128, 64, 8, 3), Tile(64, 128, 8, 1), Tile(128, 64, 8, 2), Tile(32, 128, 8, 1)),
    ("half", 256): Tiles(Tile(128, 32, 8, 2), Tile(32, 64, 8, 2), Tile(64, 64, 8, 1)),
    ("tf32", 16): Tiles(Tile(128, 64, 8, 2), Tile(64, 64, 8, 2), Tile(64, 64, 8, 2)),
    ("tf32", 32): Tiles(Tile(128, 64, 8, 2), Tile(64, 64, 8, 2), Tile(64, 64, 8, 2)),
    ("tf32", 64): Tiles(Tile(128, 64, 8, 2), Tile(64, 64, 8, 2), Tile(64, 64, 8, 2)),
    ("tf32", 128): Tiles(Tile(128, 32, 8, 2), Tile(32, 64, 8, 2), Tile(128, 32, 8, 2)),
    ("tf32", 256): Tiles(Tile(64, 16, 8, 1), Tile(16, 16, 8, 1), Tile(32, 32, 8, 1)),
}

TILES = {80: _AMPERE, 86: _SMALL, 90: _HOPPER, 100: _BLACKWELL}
_ARCH = {(8, 0): 80, (8, 7): 80, (9, 0): 90, (10, 0): 100, (10, 3): 100}


def arch_of(capability: tuple[int, int]) -> int:
    """Return the key of TILES for a device; one not known here gets tiles that ask for least."""
    return _ARCH.get(tuple(capability), 86)


def head_parts(head_dim: int) -> tuple[int, int]:
    """Return the columns of the two parts of a tile, both powers of two of 16 or more; the second may be 0.

    80 is 64 and 16, 96 is 64 and 32. From three quarters on to the next power of two there is nothing to save, and past
    128 the second part costs more registers than there are.
    """
    whole = max(16, 1 << (head_dim - 1).bit_length())
    half = whole // 2
    if half < 16 or half > 64:
        return whole, 0
    rest = max(16, 1 << (head_dim - half - 1).bit_length())
    return (whole, 0) if rest == half else (half, rest)


def kind_of(dtype: torch.dtype, precision: str) -> str:
    """Return the kind of product of inputs of ``dtype``: "half", or the ``precision`` of float32."""
    return precision if dtype == torch.float32 else "half"


def tiles_for(arch: int, kind: str, head_dim: int) -> Tiles:
    """Return the tiles of an architecture (of ``arch_of``), kind and head dim: those of as many columns."""
    table, columns = TILES[arch], sum(head_parts(head_dim))
    return table[kind, min(pad for of, pad in table if of == kind and pad >= columns)]
