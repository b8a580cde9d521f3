"""Groupings of the packed batch, against a loop over tokens."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastvivit.functional as F
from fastvivit.tokens import Tokens

GRIDS = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=4)


CPU = torch.device("cpu")


def one_view(grids):
    return [(grid,) for grid in grids]


def build(grids, ratios, cls=None):
    """Tokens of clips with these grids, and the kept ids of each (None: all of them)."""
    if ratios is None:
        return Tokens(one_view(grids), [t * h * w for t, h, w in grids], None, CPU, cls=cls), None
    kept = [F.random_keep(1, t * h * w, r)[0] for (t, h, w), r in zip(grids, ratios, strict=True)]
    return Tokens(one_view(grids), [len(k) for k in kept], torch.cat(kept), CPU, cls=cls), kept


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


@settings(deadline=None, max_examples=60)
@given(GRIDS, st.lists(st.floats(0, 0.9), min_size=4, max_size=4), st.booleans())
def test_a_cls_token_leads_every_frame_and_is_a_place_of_its_own(grids, ratios, full):
    tokens, kept = build(grids, None if full else ratios[: len(grids)], "frame")
    # (clip, slot, spot) row by row; a CLS token stands first in its slot, at a spot behind the last.
    where = []
    for clip, (t, h, w) in enumerate(grids):
        ids = range(t * h * w) if kept is None else kept[clip].tolist()
        for slot in range(t):
            where += [(clip, slot, h * w)] + [(clip, slot, i % (h * w)) for i in ids if i // (h * w) == slot]
    size = [h * w for _, h, w in grids]
    assert tokens.place.tolist() == [-1 if p == size[c] else s * size[c] + p for c, s, p in where]
    assert tokens.grid_rows.tolist() == [row for row, (c, _, p) in enumerate(where) if p < size[c]]
    frames = [[r for r, (c, s, _) in enumerate(where) if (c, s) == (clip, slot)]
              for clip, (t, _, _) in enumerate(grids) for slot in range(t)]  # fmt: skip
    places = [[r for r, (c, _, p) in enumerate(where) if (c, p) == (clip, spot)]
              for clip, (_, h, w) in enumerate(grids) for spot in range(h * w + 1)]  # fmt: skip
    clips = [[r for r, (c, _, _) in enumerate(where) if c == clip] for clip in range(len(grids))]
    for group, wanted in ((tokens.by_clip, clips), (tokens.by_frame, frames), (tokens.by_place, places)):
        assert sequences(group) == wanted and group.max_seqlen >= max(map(len, wanted))
        owner = {row: i for i, rows_ in enumerate(wanted) for row in rows_}
        assert group.segment.tolist() == [owner[r] for r in range(len(where))]
    by_place = tokens.by_place
    assert by_place.order[by_place.inverse].tolist() == list(range(len(where)))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 3), st.integers(1, 3), st.floats(0, 0.9), st.sampled_from([None, "view", "clip"]), st.booleans())
def test_views_are_sequences_of_their_own(clips, views, ratio, cls, full):
    grids = [tuple((1 + (c + v) % 3, 2, 1 + v) for v in range(views)) for c in range(clips)]
    sizes = [[t * h * w for t, h, w in g] for g in grids]
    kept = [torch.arange(sum(n)) if full else F.random_keep(1, sum(n), ratio)[0] for n in sizes]
    tokens = Tokens(grids, [len(k) for k in kept], None if full else torch.cat(kept), CPU, cls=cls)
    where = []  # (clip, view, id) row by row
    for clip, ids in enumerate(kept):
        where += [(clip, -1, -1)] * (cls == "clip")
        start = 0
        for view, size in enumerate(sizes[clip]):
            where += [(clip, view, -1)] * (cls == "view")
            where += [(clip, view, i) for i in ids.tolist() if start <= i < start + size]
            start += size
    assert tokens.place.tolist() == [i for _, _, i in where]
    assert tokens.counts == [sum(c == clip for c, _, _ in where) for clip in range(clips)]
    if cls != "clip":
        wanted = [[r for r, (c, v, _) in enumerate(where) if (c, v) == (clip, view)]
                  for clip in range(clips) for view in range(views)]  # fmt: skip
        assert sequences(tokens.by_view) == wanted and tokens.by_view.max_seqlen >= max(map(len, wanted))
