"""Scores of retrieval."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastvivit import _checks

# Rows of the similarity matrix that are compared at once: bounds the memory of the comparison, not of the
# matrix.
_CHUNK = 1024


def retrieval(
    similarity: Tensor, groups: Sequence[int] | Tensor | None = None, *, per_caption: bool = False
) -> dict[str, float]:
    """Recall at 1, 5, 10 and median rank, text to video and video to text, in percent (ranks from 1).

    A query's rank is that of its best right answer; answers that score the same as it count as ahead of it,
    so that a constant similarity scores as badly as it should, and a NaN counts as ahead of everything.

    Args:
        similarity: (texts, videos), floating point.
        groups: for each text the index of its video, for several captions a video; None means text i goes
            with video i.
        per_caption: with several captions a video, which texts a search is among. False: all of them at once;
            each text is a query, and a video is found by the best of its captions. True: one caption of every
            video at a time, the first of each, then the second, and so on; every score is the mean over these
            draws, as the paper averages over MSR-VTT's 20 and VATEX's 10 captions (it leaves open which
            of the two it means). With as many texts for each video, recall of text to video is the same
            either way; median ranks and video to text are not.

    Returns:
        ``t2v_r1, t2v_r5, t2v_r10, t2v_medr, v2t_r1, v2t_r5, v2t_r10, v2t_medr``.

    Raises:
        ValueError: a similarity that is not a floating-point matrix, groups that are no integers, do not match it
            or leave a video without a text, or with ``per_caption`` give videos different numbers of texts.
    """
    _checks.require_tensor("similarity", similarity, (2,))
    if 0 in similarity.shape:
        raise ValueError(f"similarity: wanted (texts, videos), both above 0, got shape {tuple(similarity.shape)}")
    texts, videos = similarity.shape
    if groups is None:
        if texts != videos:
            raise ValueError(f"groups: wanted the video of each text, as there are {texts} texts and {videos} videos")
        groups = range(videos)
    groups = torch.as_tensor(list(groups) if not isinstance(groups, Tensor) else groups, device=similarity.device)
    if groups.shape != (texts,):
        raise ValueError(f"groups: wanted one for each of {texts} texts, got shape {tuple(groups.shape)}")
    if groups.is_floating_point() or groups.is_complex() or groups.dtype == torch.bool:
        raise ValueError(f"groups: wanted integers, got {str(groups.dtype).removeprefix('torch.')}")
    if int(groups.min()) < 0 or int(groups.max()) >= videos:
        raise ValueError(f"groups: wanted videos in 0..{videos - 1}, got {int(groups.min())} to {int(groups.max())}")
    if len(groups.unique()) != videos:
        raise ValueError(f"groups: wanted a text for each of {videos} videos, got texts for {len(groups.unique())}")
    if per_caption:
        return _drawn(similarity, groups)
    right = groups.unsqueeze(1) == torch.arange(videos, device=similarity.device)
    return _scores("t2v", _ranks(similarity, right)) | _scores("v2t", _ranks(similarity.T, right.T))


def _drawn(similarity: Tensor, groups: Tensor) -> dict[str, float]:
    """Mean of the scores over the draws of one text a video."""
    counts = groups.bincount()
    if int(counts.min()) != int(counts.max()):
        raise ValueError(
            "groups: per_caption wants as many texts for each video, "
            f"got {int(counts.min())} to {int(counts.max())} texts a video"
        )
    draws = groups.argsort(stable=True).view(len(counts), -1).T
    found = [retrieval(similarity[draw]) for draw in draws]
    return {name: sum(scores[name] for scores in found) / len(found) for name in found[0]}


def _ranks(similarity: Tensor, right: Tensor) -> Tensor:
    """(queries,) rank of the best right answer among the wrong ones, ties against it."""
    ranks = []
    for scores, mine in zip(similarity.split(_CHUNK), right.split(_CHUNK), strict=True):
        best = scores.masked_fill(~mine, float("-inf")).amax(1, keepdim=True)
        ranks.append(1 + (~(scores < best) & ~mine).sum(1))
    return torch.cat(ranks)


def _scores(prefix: str, ranks: Tensor) -> dict[str, float]:
    found = {f"{prefix}_r{k}": 100.0 * (ranks <= k).double().mean().item() for k in (1, 5, 10)}
    return found | {f"{prefix}_medr": ranks.double().quantile(0.5).item()}
