"""Tile sizes of the attention kernels: one literal, chosen by architecture, kind of product and padded head dim."""

from __future__ import annotations

from typing import NamedTuple


class Tile(NamedTuple):
    """Launch configuration of a kernel: rows of queries and keys in a tile, warps, pipeline stages."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


class Tiles(NamedTuple):
    """Launch configurations of the three kernels that hold products."""

    forward: Tile
    dkdv: Tile
    dq: Tile


def _t(forward, dkdv, dq) -> Tiles:
    return Tiles(Tile(*forward), Tile(*dkdv), Tile(*dq))


KINDS = ("half", "tf32", "ieee")
HEAD_PADS = (16, 32, 64, 128, 256)
DELTA = Tile(64, 0, 4, 1)

_ONE = {
    ("half", 16): _t((128, 128, 4, 3), (64, 128, 8, 3), (128, 64, 8, 3)),
    ("half", 32): _t((128, 128, 4, 3), (64, 128, 8, 3), (128, 64, 8, 3)),
    ("half", 64): _t((128, 128, 8, 3), (64, 128, 8, 3), (128, 64, 8, 3)),
    ("half", 128): _t((128, 64, 8, 3), (64, 128, 8, 2), (128, 64, 8, 2)),
    ("half", 256): _t((128, 32, 8, 2), (32, 64, 8, 1), (64, 32, 8, 1)),
}
for _pad in HEAD_PADS:
    _ONE["tf32", _pad] = _ONE["ieee", _pad] = _t((64, 32, 4, 1), (32, 64, 8, 1), (64, 32, 8, 1))
TILES = {80: _ONE, 90: _ONE, 100: _ONE, 86: _ONE}


def arch_of(capability: tuple[int, int]) -> int:
    """Key of TILES for a device."""
    return {(8, 0): 80, (8, 7): 80, (9, 0): 90, (10, 0): 100, (10, 3): 100}.get(capability, 86)


def head_pad(head_dim: int) -> int:
    return max(16, 1 << (head_dim - 1).bit_length())


def kind_of(dtype, precision):
    return precision if dtype.itemsize == 4 else "half"


def tiles_for(arch: int, kind: str, head_dim: int) -> Tiles:
    return TILES[arch][kind, head_pad(head_dim)]
