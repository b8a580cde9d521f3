"""Scores on held-out clips: retrieval, and clip against twin."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fastvivit import metrics
from fastvivit.data import ClipDataset
from fastvivit.data.groups import clips_of, twins_of
from fastvivit.modules.dual import VideoTextModel
from fastvivit.train.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores, and what they were taken from.

    Attributes:
        scores: ``t2v_r1`` and the like in percent, ``twin`` where the manifest names twins, ``clips``,
            ``broken``.
        chance: what guessing scores, for those of ``scores`` that are shares.
        entries: entry of the data set of each clip that could be read, the first of those of the same clip.
        captions: every caption of those clips.
        owners: for each caption the place of its clip in ``entries``.
        similarity: (captions, clips) cosines.
    """

    scores: dict[str, float]
    chance: dict[str, float]
    entries: list[int]
    captions: list[str]
    owners: list[int]
    similarity: Tensor


def heldout_batches(
    dataset: ClipDataset,
    batch_size: int,
    workers: int = 0,
    *,
    wanted: Sequence[int] | None = None,
    ranks: Ranks | None = None,
) -> Iterator[tuple[dict[str, Any], list[int]]]:
    """Clips in order, as batches and those of their rows that count: broken files are replaced, but not twice.

    Of several ranks each has every so-manieth batch, all of them equally many: the last may come again, without a row
    that counts.

    Args:
        dataset: clips.
        batch_size: clips at a time.
        workers: processes that decode.
        wanted: entries; None is all of them.
        ranks: of the run; None is one.
    """
    ranks = ranks or Ranks()
    order = list(range(len(dataset)) if wanted is None else wanted)
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    places = [ranks.rank + first for first in range(0, len(batches), ranks.size)]
    own = [batches[min(place, len(batches) - 1)] for place in places]
    loader = DataLoader(
        dataset,
        batch_sampler=own,
        collate_fn=dataset.collate,
        num_workers=workers,
        generator=torch.Generator(),  # or the loader would draw from the training's random numbers
    )
    for place, asked, batch in zip(places, own, loader, strict=True):
        dataset.record_failures(batch["failures"])
        # A broken file's place is taken by another clip, which must not count twice.
        good = [row for row, index in enumerate(batch["index"].tolist()) if index == asked[row]]
        yield batch, good if place < len(batches) else []


@torch.no_grad()
def encode_clips(
    model: VideoTextModel,
    dataset: ClipDataset,
    *,
    batch_size: int,
    workers: int = 0,
    wanted: Sequence[int] | None = None,
    progress: Callable[[int], Any] | None = None,
    ranks: Ranks | None = None,
    context: Callable[[], AbstractContextManager] = nullcontext,
) -> tuple[Tensor, list[int]]:
    """(n, dim) unit vectors on the CPU of the clips that can be read, unmasked, and their n entries.

    ``wanted`` are entries, None is all of them; ``progress`` is called with the number of clips after each batch.
    Ranks share the work, and all return the whole. The encoder runs inside of ``context()``, autocast for example.
    """
    ranks = ranks or Ranks()
    vectors, entries, failures = [], [], []
    for batch, good in heldout_batches(dataset, batch_size, workers, wanted=wanted, ranks=ranks):
        video = batch["video"].to(model.logit_scale.device)
        with context():
            encoded = model.encode_video(video)
        vectors.append(encoded.float().cpu()[good])
        entries += batch["index"][good].tolist()
        if progress is not None:
            progress(len(batch["index"]))
        failures += batch["failures"]
    if ranks.alone:
        return torch.cat(vectors), entries
    every = ranks.gather((torch.cat(vectors), entries, failures))
    for _, _, found in every:
        dataset.record_failures(found)
    entries = [entry for _, some, _ in every for entry in some]
    place = {entry: number for number, entry in enumerate(range(len(dataset)) if wanted is None else wanted)}
    order = sorted(range(len(entries)), key=lambda row: place[entries[row]])
    return torch.cat([some for some, _, _ in every])[order], [entries[row] for row in order]


@torch.no_grad()
def evaluate(
    model: VideoTextModel,
    dataset: ClipDataset,
    *,
    batch_size: int,
    workers: int = 0,
    progress: Callable[[int], Any] | None = None,
    ranks: Ranks | None = None,
    context: Callable[[], AbstractContextManager] = nullcontext,
) -> Evaluation:
    """Score a model; it is left in the mode it was in. ``progress`` is called with the clips of each batch.

    The encoders run inside of ``context()``; cosines are taken in float32 in any case.

    Entries of the same part of the same file are one clip with the captions of all: a manifest may have a line a
    caption, and as clips of their own they would tie with each other. Ranks of a run share the clips, and each returns
    the whole.

    ``twin`` is the share of clips that are nearer to their own (first) caption than to their twin's; a tie is
    a miss.

    Raises:
        ValueError: no clip can be read.
    """
    clips = clips_of(dataset.entries)
    training = model.training
    model.eval()
    try:
        video, entries = encode_clips(
            model,
            dataset,
            batch_size=batch_size,
            workers=workers,
            wanted=list(clips),
            progress=progress,
            ranks=ranks,
            context=context,
        )
        captions, owners = [], []
        for place, entry in enumerate(entries):
            captions += clips[entry].captions
            owners += [place] * len(clips[entry].captions)
        parts = [captions[i : i + batch_size] for i in range(0, len(captions), batch_size)]
        with context():
            text = torch.cat([model.encode_text(part).float().cpu() for part in parts])
    finally:
        model.train(training)
    similarity = text @ video.T
    scores = metrics.retrieval(similarity, owners)
    chance = {f"{way}_r{k}": 100.0 * min(k / len(entries), 1.0) for way in ("t2v", "v2t") for k in (1, 5, 10)}
    first = {place: caption for caption, place in reversed(list(enumerate(owners)))}
    place_of = {entry: place for place, entry in enumerate(entries)}
    firsts = list(clips)
    twins = {firsts[own]: firsts[twin] for own, twin in enumerate(twins_of(list(clips.values()))) if twin >= 0}
    pairs = [(place, place_of[twins[entry]]) for place, entry in enumerate(entries) if twins.get(entry) in place_of]
    if pairs:
        right = [bool(similarity[first[own], own] > similarity[first[twin], own]) for own, twin in pairs]
        scores["twin"], chance["twin"] = 100.0 * sum(right) / len(right), 50.0
    scores |= {"clips": float(len(entries)), "broken": float(len(clips) - len(entries))}
    return Evaluation(
        scores=scores, chance=chance, entries=entries, captions=captions, owners=owners, similarity=similarity
    )
