"""Groups, pages, the storage order, and masks of whole groups."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from math import comb

import numpy as np
import pytest
import torch

import fastvivit.functional as F
from fastvivit.data.shards import Layout, grouped_keep, storage_order
from fastvivit.data.shards.layout import PAGE, layout_of


@pytest.mark.parametrize(
    ("shape", "tubelet", "group", "pages"),
    [
        ((16, 256, 256), (2, 16, 16), 8, 3),
        ((256, 256, 256), (2, 16, 16), 8, 3),
        ((16, 256, 256), (4, 16, 16), 4, 3),
        ((16, 224, 224), (2, 14, 14), 16, 5),  # 1,176 bytes: no small number of them fills pages
        ((256, 256), (16, 16), 16, 3),
        ((4, 32, 32), (4, 32, 32), 1, 3),
        ((2, 8, 8), (2, 8, 8), 1, 1),
    ],
)
def test_groups_fill_pages(shape, tubelet, group, pages):
    layout = Layout(shape, tubelet)
    assert (layout.group, layout.group_bytes) == (group, pages * PAGE)
    assert layout.groups * layout.group == layout.tokens and layout.clip_bytes == layout.groups * layout.group_bytes
    rows = layout.offsets(np.arange(layout.tokens))
    ends = rows + layout.tubelet_bytes
    assert (ends[:-1] <= rows[1:]).all() and ends[-1] <= layout.clip_bytes
    firsts = rows[:: layout.group]
    assert (firsts % PAGE == 0).all() and np.unique(rows // layout.group_bytes).size == layout.groups


def test_the_layout_of_images_has_two_axes():
    assert layout_of(None, 64, (16, 16)).grid == (4, 4)
    assert layout_of(8, (64, 32), (2, 16, 16)).grid == (4, 4, 2)


@pytest.mark.parametrize(
    ("shape", "tubelet", "message"),
    [
        ((16, 256), (2, 16, 16), "tubelet: wanted 2 whole numbers"),
        ((16, 250, 256), (2, 16, 16), "tubelet: wanted one that tiles"),
        ((0, 16, 16), (2, 16, 16), "shape: wanted 2 or 3 whole numbers of at least 1"),
        ((16, 16, 16), (2, 16, 1.5), "tubelet: wanted 3 whole numbers"),
    ],
)
def test_bad_layouts(shape, tubelet, message):
    with pytest.raises(ValueError, match=message):
        Layout(shape, tubelet)


def by_hand(entry, tokens):
    """The storage order in Python's own numbers."""
    word = (1 << 64) - 1

    def mix(z):
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & word
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & word
        return z ^ (z >> 31)

    keys = [mix((mix(entry) + 0x9E3779B97F4A7C15 * (i + 1)) & word) for i in range(tokens)]
    return sorted(range(tokens), key=keys.__getitem__)


def test_the_storage_order_is_part_of_the_format():
    for entry, tokens in ((0, 64), (1, 64), (123456789, 300)):
        assert storage_order(entry, tokens).tolist() == by_hand(entry, tokens)
    # Whatever becomes of this library: packs that were written must stay readable.
    assert storage_order(5, 8).tolist() == ORDER_5_8
    assert len({tuple(storage_order(entry, 16)) for entry in range(50)}) == 50


ORDER_5_8 = by_hand(5, 8)


def test_the_storage_order_is_random():
    """Each id at each place about equally often over clips."""
    found = np.stack([storage_order(entry, 16) for entry in range(3200)])
    counts = np.stack([np.bincount(column, minlength=16) for column in found.T])
    assert abs(counts - 200).max() < 6 * 200**0.5


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("shape", [(16, 64, 64), (6, 48, 80)])
def test_masks_keep_as_many_as_random_ones_and_no_more_groups_than_needed(ratio, shape):
    layout = Layout(shape, (2, 16, 16))
    order = storage_order(3, layout.tokens)
    ids = grouped_keep(layout, order, ratio, torch.Generator().manual_seed(1))
    assert len(ids) == F.random_keep(1, layout.tokens, ratio).shape[1] == layout.kept(ratio)
    assert (ids.diff() > 0).all()
    rows = np.argsort(order)[ids.numpy()]
    assert len(set(rows // layout.group)) == -(-len(ids) // layout.group)


def test_every_place_is_kept_equally_often():
    layout = Layout((4, 64, 64), (2, 16, 16))  # 32 places, 4 groups of 8
    order, generator = storage_order(1, 32), torch.Generator().manual_seed(0)
    for ratio in (0.5, 0.6):
        draws = 4000
        counts = torch.zeros(32)
        for _ in range(draws):
            counts[grouped_keep(layout, order, ratio, generator)] += 1
        share = layout.kept(ratio) / 32
        assert (counts / draws - share).abs().max() < 5 * (share * (1 - share) / draws) ** 0.5


def test_masks_are_all_unions_of_groups():
    layout = Layout((4, 64, 64), (2, 16, 16))
    order, generator = storage_order(1, 32), torch.Generator().manual_seed(0)
    seen = Counter(tuple(grouped_keep(layout, order, 0.5, generator).tolist()) for _ in range(200))
    groups = order.reshape(4, 8)
    unions = {tuple(sorted(groups[list(two)].ravel().tolist())) for two in combinations(range(4), 2)}
    assert set(seen) == unions and len(unions) == comb(4, 2)
