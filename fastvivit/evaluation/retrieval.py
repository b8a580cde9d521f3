"""Retrieval scores of a dual encoder on a manifest."""

from __future__ import annotations

import os
from collections.abc import Iterable

from fastvivit import metrics
from fastvivit.data import ClipDataset, one_a_clip
from fastvivit.evaluation.clips import Manifest, Reading, entries_of
from fastvivit.evaluation.rows import Row, broken_rows, write_rows
from fastvivit.modules.dual import VideoTextModel
from fastvivit.train.evaluate import Evaluation, evaluate


def retrieval(
    model: VideoTextModel,
    manifest: Manifest,
    *,
    per_caption: bool = False,
    reading: Reading | None = None,
    predictions: str | os.PathLike[str] | None = None,
) -> dict[str, float]:
    """Text-to-video and video-to-text retrieval of a dual encoder, unmasked: ``fv.metrics.retrieval``.

    Args:
        model: the dual encoder; left in the mode it was in.
        manifest: a manifest's path, or its entries. Those of the same part of the same file are one clip with
            several captions.
        per_caption: False: every caption is a query among all, a video is found by the best of its own. True:
            scores are averaged over draws of one caption a video, for which every video must have equally many.
            The paper averages over captions (appendix B) and leaves open which it means.
        reading: how clips are read; shorter ones repeat their last picture.
        predictions: a file to write a JSON line a caption to: its video, the rank of that, and the best video.

    Returns:
        ``t2v_r1`` and the like in percent, ``clips``, ``broken``; ``twin`` where the manifest names twins.

    Raises:
        ValueError: another model, a bad manifest, no video that can be read, videos with different numbers of
            captions and ``per_caption``.
    """
    if not isinstance(model, VideoTextModel):
        raise ValueError(f"model: wanted a VideoTextModel, got {type(model).__name__}")
    reading, config = reading or Reading(), model.video.config
    dataset = ClipDataset(
        one_a_clip(entries_of(manifest)),
        frames=config.frames if reading.frames is None else reading.frames,
        fps=reading.fps,
        size=config.size if reading.size is None else reading.size,
    )
    found = evaluate(model, dataset, batch_size=reading.batch_size, workers=reading.workers, progress=reading.done)
    if predictions is not None:
        write_rows(predictions, [*_ranks(found, dataset), *broken_rows(dataset.failures.items())])
    if per_caption:
        return found.scores | metrics.retrieval(found.similarity, found.owners, per_caption=True)
    return found.scores


def _ranks(found: Evaluation, dataset: ClipDataset) -> Iterable[Row]:
    files = [str(dataset.entries[entry].video) for entry in found.entries]
    for caption, owner, scores in zip(found.captions, found.owners, found.similarity, strict=True):
        # As fv.metrics.retrieval counts: ties are ahead.
        rank = int((~(scores < scores[owner])).sum())
        yield {"caption": caption, "video": files[owner], "rank": rank, "best": files[int(scores.argmax())]}
