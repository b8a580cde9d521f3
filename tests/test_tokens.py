"""Groupings of the packed batch, against a loop over tokens."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastvivit.functional as F
from fastvivit.tokens import Tokens

GRIDS = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=4)


def build(grids, ratios):
    """Tokens of clips with these grids, and the kept ids of each (None: all of them)."""
    if ratios is None:
        return Tokens(grids, [t * h * w for t, h, w in grids], None, torch.device("cpu")), None
    kept = [F.random_keep(1, t * h * w, r)[0] for (t, h, w), r in zip(grids, ratios, strict=True)]
    return Tokens(grids, [len(k) for k in kept], torch.cat(kept), torch.device("cpu")), kept


def rows(grids, kept):
    """(clip, time slot, spot) of every packed row."""
    for clip, (t, h, w) in enumerate(grids):
        for place in range(t * h * w) if kept is None else kept[clip].tolist():
            yield clip, place // (h * w), place % (h * w)


def sequences(group):
    """Packed rows of each sequence."""
    order = torch.arange(len(group.segment)) if group.order is None else group.order
    ends = group.cu_seqlens.tolist()
    return [order[a:b].tolist() for a, b in zip(ends[:-1], ends[1:], strict=True)]


@settings(deadline=None, max_examples=80)
@given(GRIDS, st.lists(st.floats(0, 0.9), min_size=4, max_size=4), st.booleans())
def test_groupings(grids, ratios, full):
    tokens, kept = build(grids, None if full else ratios[: len(grids)])
    where = list(rows(grids, kept))
    clips = [[r for r, (c, _, _) in enumerate(where) if c == clip] for clip in range(len(grids))]
    frames = [[r for r, (c, s, _) in enumerate(where) if (c, s) == (clip, slot)]
              for clip, (t, _, _) in enumerate(grids) for slot in range(t)]  # fmt: skip
    places = [[r for r, (c, _, p) in enumerate(where) if (c, p) == (clip, spot)]
              for clip, (_, h, w) in enumerate(grids) for spot in range(h * w)]  # fmt: skip
    for group, wanted in ((tokens.by_clip, clips), (tokens.by_frame, frames), (tokens.by_place, places)):
        assert sequences(group) == wanted
        assert group.sequences == len(wanted)
        assert group.max_seqlen >= max(map(len, wanted))
        assert group.cu_seqlens.dtype == torch.int32
        owner = {row: i for i, rows_ in enumerate(wanted) for row in rows_}
        assert group.segment.tolist() == [owner[r] for r in range(len(where))]
    assert tokens.place.tolist() == [s * grids[c][1] * grids[c][2] + p for c, s, p in where]


def test_a_grouping_is_made_once():
    tokens, _ = build([(2, 2, 2)] * 3, [0.5] * 3)
    assert (
        tokens.by_frame is tokens.by_frame and tokens.by_clip is tokens.by_clip and tokens.by_place is tokens.by_place
    )
