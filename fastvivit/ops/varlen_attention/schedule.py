"""The order in which kernels walk a packed batch: tables of (sequence, block), built on the device.

A kernel's grid has to be known on the host, the lengths are known on the device only. So the grid takes an upper bound
of the number of blocks, and program ``i`` reads in entry ``i`` which rows are its own and which rows they meet. One
table serves every layer of an encoder and its backward, since all see the same lengths.

Blocks are ``GRANULE`` rows. A kernel with smaller tiles starts ``GRANULE / tile`` programs for an entry, so kernels of
any tile size share one table; a larger granule would leave less to sort and more idle programs for short clips, a
smaller one would make the table longer than any kernel needs.

Layout, int32, flat::

    HEADER            flag (0: cu_seqlens are sound), rows_q, rows_k, sequences
    query entries     blocks(rows_q, sequences) x FIELDS, for kernels that own queries (forward, dQ)
    key entries       blocks(rows_k, sequences) x FIELDS, for kernels that own keys (dK/dV)

    one entry         sequence (UNUSED: nothing to do), block, own start, own end, other start, other end

Rows past ``cu_seqlens[-1]`` are blocks too: of a sequence numbered ``sequences`` that meets nothing. They come out as
any row with nothing to attend to, so that every row of the output is written once, and by one kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor

GRANULE = 128
HEADER = 4
FIELDS = 6
UNUSED = -1


def blocks(rows: int, sequences: int) -> int:
    """Most blocks that ``rows`` packed in ``sequences`` (and the rows past their end) can fall into."""
    return (rows + GRANULE - 1) // GRANULE + sequences


def table_size(rows_q: int, rows_k: int, sequences: int) -> int:
    """Elements of the table of ``varlen_schedule``."""
    return HEADER + FIELDS * (blocks(rows_q, sequences) + blocks(rows_k, sequences))


def varlen_schedule(cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, rows_q: int, rows_k: int) -> Tensor:
    """List the blocks of a packed batch, those with most work first, for ``varlen_attention(schedule=...)``.

    A block of queries costs the keys that it meets, a block of keys its queries: blocks are sorted by the length of
    the *other* side. Within a sequence query blocks run backwards and key blocks forwards, which is the order of
    falling work when attention is causal.

    Nothing is read back from the device. ``cu_seqlens`` that don't start at 0, fall, or pass ``rows`` set a flag in
    the table, and kernels that see it write NaN and read no rows.

    Args:
        cu_seqlens_q: (S+1,) int32, first rows of the sequences of queries.
        cu_seqlens_k: (S+1,) int32, the same for keys.
        rows_q: rows of q.
        rows_k: rows of k and v.

    Returns:
        (table_size(rows_q, rows_k, S),) int32, on the device of ``cu_seqlens_q``.
    """
    sequences = cu_seqlens_q.shape[0] - 1
    # 64 bits: differences of arbitrary int32 values must not wrap before they are judged.
    starts_q, starts_k = cu_seqlens_q.long(), cu_seqlens_k.long()
    sound = _sound(starts_q, rows_q) & _sound(starts_k, rows_k)
    starts_q, starts_k = starts_q * sound, starts_k * sound
    # Filled on the device: a tensor made from a list would be copied there, and the copy would wait for it.
    sizes = [starts_q.new_full((1,), size) for size in (rows_q, rows_k, sequences)]
    return torch.cat(
        (
            (~sound).long().view(1),
            *sizes,
            _entries(starts_q, starts_k, rows_q, backwards=True),
            _entries(starts_k, starts_q, rows_k, backwards=False),
        )
    ).int()


def _sound(starts: Tensor, rows: int) -> Tensor:
    return (starts[0] == 0) & (starts.diff() >= 0).all() & (starts[-1] <= rows)


def _entries(own: Tensor, other: Tensor, rows: int, *, backwards: bool) -> Tensor:
    """Entries of the blocks of ``rows``, most work first; ``own`` and ``other`` are sound (S+1,) int64."""
    sequences = own.shape[0] - 1
    past = own.new_zeros(1)
    own_end = torch.cat((own[1:], past + rows))
    other_start, other_end = torch.cat((other[:-1], past)), torch.cat((other[1:], past))
    order = (other_end - other_start).argsort(descending=True, stable=True)
    bounds = torch.stack((own, own_end, other_start, other_end), 1)[order]
    count = (bounds[:, 1] - bounds[:, 0] + (GRANULE - 1)) // GRANULE
    last = count.cumsum(0)
    entry = torch.arange(blocks(rows, sequences), device=own.device)
    place = torch.searchsorted(last, entry, right=True)
    used = place <= sequences
    place = place.clamp(max=sequences)
    block = last[place] - 1 - entry if backwards else entry - (last - count)[place]
    fields = torch.cat((torch.stack((order[place], block), 1), bounds[place]), 1)
    return torch.where(used.unsqueeze(1), fields, UNUSED).view(-1)
