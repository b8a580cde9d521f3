"""Cached vision made by all processes of a run, each of a part of the clips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastvivit.data import Entry
from fastvivit.data.dataset import Failure
from fastvivit.data.groups import clips_of
from fastvivit.train.ranks import Ranks
from fastvivit.train.vision import VisionCache


def build_shared(
    cache: VisionCache,
    entries: Sequence[Entry],
    masks: int,
    *,
    ranks: Ranks,
    batch_size: int,
    workers: int,
    quiet: bool,
) -> list[Failure]:
    """``VisionCache.build`` by all ranks; each of them finds everything in its cache afterwards.

    Ranks need nothing of each other until they are done, so a killed build goes on with any number of them.

    Args:
        cache: of the same folder and encoder on every rank.
        entries: clips, the same on every rank.
        masks: as in ``build``.
        ranks: of the run; they wait for the slowest.
        batch_size: as in ``build``.
        workers: of each rank.
        quiet: show no bar.

    Returns:
        The entries that can't be read, whichever rank found them.
    """
    options = {"batch_size": batch_size, "workers": workers, "quiet": quiet}
    if ranks.alone:
        return cache.build(entries, masks, **options)
    own = list(clips_of(entries).values())[ranks.rank :: ranks.size]
    failures = cache.build(own, masks, **options)
    reasons: dict[Any, str] = {}
    for found in ranks.gather([(_part(own[failure.index]), failure.reason) for failure in failures]):
        reasons |= found
    cache.hashes.refresh()
    cache.store.refresh()
    return [
        Failure(index, str(entry.video), reasons[_part(entry)])
        for index, entry in enumerate(entries)
        if _part(entry) in reasons
    ]


def _part(entry: Entry) -> tuple[Any, ...]:
    return str(entry.video), entry.start, entry.end, entry.stream
