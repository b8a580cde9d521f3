"""Frames of a long clip that fit a query best (SeViLA's localizer, Yu et al. 2023; paper section 6.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastvivit.modules.dual import VideoTextModel

Scorer = Callable[[Tensor, str], Tensor]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The frames chosen from one clip.

    Attributes:
        video: (C, k, H, W), in the order of time.
        indices: (k,) int64 places of these frames in the clip, ascending.
        scores: (T,) float32 scores of all its frames.
    """

    video: Tensor
    indices: Tensor
    scores: Tensor


class FrameSelector:
    """Scores every frame of a clip against a query and keeps the best ``k``, in the order of time.

    The paper keeps 16 frames of SeViLA's pretrained localizer; the scorer here is any callable. Of frames with
    the same score the earlier one is taken. A clip of at most ``k`` frames is kept whole.

    Args:
        scorer: ``scorer(frames (T, C, H, W), query) -> (T,)`` scores, larger is better.
        k: frames to keep, at least 1.

    Raises:
        ValueError: a scorer that can't be called, a ``k`` below 1.
    """

    def __init__(self, scorer: Scorer, k: int = 16) -> None:
        if not callable(scorer):
            raise ValueError(f"scorer: wanted a callable (frames, query) -> scores, got {type(scorer).__name__}")
        if not isinstance(k, int) or k < 1:
            raise ValueError(f"k: wanted an int of at least 1, got {k!r}")
        self.scorer, self.k = scorer, k

    @classmethod
    def from_model(cls, model: VideoTextModel, k: int = 16, *, batch_size: int = 64) -> FrameSelector:
        """A selector whose scores are the cosines of single frames and the query: ``ModelScorer``."""
        return cls(ModelScorer(model, batch_size=batch_size), k)

    def __call__(self, video: Tensor | Sequence[Tensor], query: str | Sequence[str]) -> Selection | list[Selection]:
        """Choose frames.

        Args:
            video: one clip (C, T, H, W), or B of them: (B, C, T, H, W), or a list of (C, T_i, H_i, W_i).
            query: what to look for; for B clips one string for all, or B strings.

        Returns:
            A ``Selection`` of one clip, a list of B of several.

        Raises:
            ValueError: a wrong shape, a number of queries that doesn't match, scores of another shape or NaN.
        """
        if isinstance(video, Tensor) and video.dim() == 4:
            if not isinstance(query, str):
                raise ValueError(f"query: wanted a string for one clip, got {type(query).__name__}")
            return self._select(video, query)
        if isinstance(video, Tensor) and video.dim() != 5:
            raise ValueError(f"video: wanted (C, T, H, W) or (B, C, T, H, W), got shape {tuple(video.shape)}")
        queries = [query] * len(video) if isinstance(query, str) else list(query)
        if len(queries) != len(video):
            raise ValueError(f"query: wanted one string or {len(video)}, one a clip, got {len(queries)}")
        return [self._select(clip, one) for clip, one in zip(video, queries, strict=True)]

    def _select(self, clip: Tensor, query: str) -> Selection:
        if clip.dim() != 4 or clip.shape[1] == 0:
            raise ValueError(f"video: wanted clips (C, T, H, W) with T > 0, got shape {tuple(clip.shape)}")
        frames = clip.transpose(0, 1)
        scores = torch.as_tensor(self.scorer(frames, query)).detach().float().cpu()
        if scores.shape != (len(frames),):
            raise ValueError(f"scorer: wanted scores ({len(frames)},), got shape {tuple(scores.shape)}")
        if scores.isnan().any():
            raise ValueError(f"scorer: wanted a score for each frame, got NaN for {int(scores.isnan().sum())}")
        # A stable sort, so that of equals the earlier stands first; topk promises no order among them.
        best = scores.argsort(descending=True, stable=True)[: self.k].sort().values
        return Selection(video=clip.index_select(1, best.to(clip.device)), indices=best, scores=scores)


class ModelScorer:
    """Cosine of single frames and a query in a ``VideoTextModel``.

    A frame goes through the image path if the encoder has one, else as a clip in which it stands still: one
    tubelet long (the first time slot), or with tubes as long as the model's clips.

    Args:
        model: the dual encoder; used in eval mode, left in the mode it was in.
        batch_size: frames encoded at a time.

    Raises:
        ValueError: another model, a batch size below 1.
    """

    def __init__(self, model: VideoTextModel, *, batch_size: int = 64) -> None:
        if not isinstance(model, VideoTextModel):
            raise ValueError(f"model: wanted a VideoTextModel, got {type(model).__name__}")
        if batch_size < 1:
            raise ValueError(f"batch_size: wanted at least 1, got {batch_size}")
        self.model, self.batch_size = model, batch_size

    @torch.no_grad()
    def __call__(self, frames: Tensor, query: str) -> Tensor:
        """(T,) float32 cosines of frames (T, C, H, W) and a query."""
        model, training = self.model, self.model.training
        device = model.logit_scale.device
        model.eval()
        try:
            parts = [model.encode_video(self._still(part.to(device))) for part in frames.split(self.batch_size)]
            return (torch.cat(parts) @ model.encode_text([query])[0]).float()
        finally:
            model.train(training)

    def _still(self, frames: Tensor) -> Tensor:
        """What the encoder is given for frames (n, C, H, W)."""
        config = self.model.video.config
        if config.images:
            return frames
        length = config.frames if config.attention == "tubes" else config.tubelet[0]
        return frames.unsqueeze(2).expand(-1, -1, length, -1, -1)
