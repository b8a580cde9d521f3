"""What can be evaluated: a captioner on the whole clip, on chosen frames, or on segments merged by a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from fastvivit.caption import Vision
from fastvivit.evaluation.clips import Clip
from fastvivit.modular import CaptionAggregator, FrameSelector, fit_frames
from fastvivit.modular.aggregator import clip_frames

TEMPLATE = "Question: {question} Answer:"


@dataclass(frozen=True, kw_only=True)
class Asking:
    """What every system of a comparison is asked.

    Attributes:
        frames: the most pictures of a clip.
        prompt: what descriptions begin after.
        max_new_tokens: the longest description.
        mask_ratio: share of the video's tokens that is dropped.
        seed: masks are drawn from it and the clip's place in the manifest.
        normalise: "sum" or "tokens": how an option's log-likelihood counts.
        template: the prompt of a question for a captioner; ``{question}`` stands for it.
    """

    frames: int
    prompt: str = ""
    max_new_tokens: int = 32
    mask_ratio: float = 0.3
    seed: int = 0
    normalise: str = "sum"
    template: str = TEMPLATE

    def __post_init__(self) -> None:
        """Check the fields."""
        if not 0 <= self.mask_ratio < 1:
            raise ValueError(f"mask_ratio: wanted 0 <= ratio < 1, got {self.mask_ratio}")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: wanted at least 1, got {self.max_new_tokens}")
        if self.normalise not in ("sum", "tokens"):
            raise ValueError(f"normalise: wanted 'sum' or 'tokens', got {self.normalise!r}")
        if "{question}" not in self.template:
            raise ValueError(f"template: wanted {{question}} in it, got {self.template!r}")


class System(Protocol):
    """What ``compare`` evaluates.

    Attributes:
        captioner: the ``VideoCaptioner`` inside, or None; says how large and long its clips are.
    """

    captioner: Any

    def describe(self, clips: Sequence[Clip], asking: Asking) -> list[str]:
        """A text for each clip."""
        ...

    def choose(
        self, clips: Sequence[Clip], questions: Sequence[str], options: Sequence[Sequence[str]], asking: Asking
    ) -> list[Tensor]:
        """For each clip the scores (n,) of its question's n options."""
        ...


class Direct:
    """A captioner that sees the whole clip at once: what the paper argues for.

    Clips are brought to the captioner's length by ``fit_frames`` and encoded one by one, each with the mask
    of its own, so that a score doesn't depend on the batch.

    Args:
        captioner: a ``VideoCaptioner``, or anything with its ``encode_video``, ``generate``, ``score`` and
            ``video.config``. Used in eval mode, left in the mode it was in.
    """

    def __init__(self, captioner: Any) -> None:
        self.captioner = captioner

    def describe(self, clips: Sequence[Clip], asking: Asking) -> list[str]:
        """See ``System``."""
        with _evaluating(self.captioner):
            vision = Vision.stack(self._encode(clips, asking))
            texts = self.captioner.generate(vision, asking.prompt, asking.max_new_tokens)
        return [text.strip() for text in texts]

    def choose(
        self, clips: Sequence[Clip], questions: Sequence[str], options: Sequence[Sequence[str]], asking: Asking
    ) -> list[Tensor]:
        """See ``System``: the options' log-likelihoods after the templated question."""
        # Not str.format, for which every other brace would be a field, too.
        prompts = [asking.template.replace("{question}", question) for question in questions]
        with _evaluating(self.captioner):
            vision = Vision.stack(self._encode(clips, asking))
            scores = self.captioner.score(vision, prompts, [list(several) for several in options], asking.normalise)
        return [row[: len(several)] for row, several in zip(scores.float().cpu(), options, strict=True)]

    def _encode(self, clips: Sequence[Clip], asking: Asking) -> list[Vision]:
        frames = clip_frames(self.captioner, asking.frames)
        device = next(self.captioner.video.parameters()).device
        return [
            self.captioner.encode_video(
                fit_frames(clip.video, frames)[None].to(device),
                asking.mask_ratio,
                generator=clip.generator(asking.seed),
            )
            for clip in clips
        ]


class Selected:
    """A captioner that sees the frames that a selector chose (SeViLA's way).

    Args:
        selector: chooses the frames.
        captioner: as in ``Direct``; a 16-frame model in the paper.
        query: what to look for in a clip that is to be described. The paper takes a summary by another system
            (its footnote 8). None takes the prompt. Where a question is asked, the question is the query.
    """

    def __init__(
        self, selector: FrameSelector, captioner: Any, query: Callable[[Clip, Asking], str] | None = None
    ) -> None:
        self.selector, self.query, self.direct = selector, query, Direct(captioner)
        self.captioner = captioner

    def describe(self, clips: Sequence[Clip], asking: Asking) -> list[str]:
        """See ``System``.

        Raises:
            ValueError: neither a query nor a prompt.
        """
        if self.query is None and not asking.prompt.strip():
            raise ValueError("query: wanted a function of the clip, or a prompt to look for, got neither")
        queries = [asking.prompt if self.query is None else self.query(clip, asking) for clip in clips]
        return self.direct.describe(self._chosen(clips, queries), self._fewer(asking))

    def choose(
        self, clips: Sequence[Clip], questions: Sequence[str], options: Sequence[Sequence[str]], asking: Asking
    ) -> list[Tensor]:
        """See ``System``."""
        return self.direct.choose(self._chosen(clips, questions), questions, options, self._fewer(asking))

    def _chosen(self, clips: Sequence[Clip], queries: Sequence[str]) -> list[Clip]:
        pairs = zip(clips, queries, strict=True)
        return [replace(clip, video=self.selector(clip.video, query).video) for clip, query in pairs]

    def _fewer(self, asking: Asking) -> Asking:
        return replace(asking, frames=min(asking.frames, self.selector.k))


class Aggregated:
    """Captions of segments, merged by a language model.

    It words its prompts itself: the template of ``Asking`` isn't used, nor its ``max_new_tokens``, which the
    aggregator and its ``ChatModel`` have of their own. A prompt is a question to the language model; without
    one it writes a summary. A plain callable as captioner masks nothing, whatever ``mask_ratio``.

    Args:
        aggregator: cuts, captions and merges.
        oracle: cut at the entry's field ``segments`` "when available", as the paper has it, else every
            ``aggregator.seconds``. ``compare`` wants it in one entry at least.
    """

    def __init__(self, aggregator: CaptionAggregator, *, oracle: bool = False) -> None:
        self.aggregator, self.oracle = aggregator, oracle
        self.captioner = aggregator.captioner if hasattr(aggregator.captioner, "generate") else None

    def describe(self, clips: Sequence[Clip], asking: Asking) -> list[str]:
        """See ``System``."""
        with _evaluating(self.captioner):
            return [
                self.aggregator(
                    self._video(clip), clip.fps, asking.prompt.strip() or None, **self._options(clip, asking)
                ).text
                for clip in clips
            ]

    def choose(
        self, clips: Sequence[Clip], questions: Sequence[str], options: Sequence[Sequence[str]], asking: Asking
    ) -> list[Tensor]:
        """See ``System``: ``CaptionAggregator.choose``."""
        with _evaluating(self.captioner):
            return [
                self.aggregator.choose(
                    self._video(clip), question, several, clip.fps, asking.normalise, **self._options(clip, asking)
                )
                for clip, question, several in zip(clips, questions, options, strict=True)
            ]

    def _video(self, clip: Clip) -> Tensor:
        if self.captioner is None:
            return clip.video
        return clip.video.to(next(self.captioner.video.parameters()).device)

    def _options(self, clip: Clip, asking: Asking) -> dict[str, Any]:
        segments = clip.segments() if self.oracle else None
        if self.captioner is None:
            return {"segments": segments}
        generator = clip.generator(asking.seed)
        return {"segments": segments, "mask_ratio": asking.mask_ratio, "generator": generator}


def as_system(value: Any) -> System:
    """A ``System`` of a system, a ``CaptionAggregator``, or anything with a captioner's interface.

    Raises:
        ValueError: none of these.
    """
    if isinstance(value, CaptionAggregator):
        return Aggregated(value)
    if hasattr(value, "describe") and hasattr(value, "choose"):
        return value
    missing = [name for name in ("encode_video", "generate", "score", "video") if not hasattr(value, name)]
    if missing:
        raise ValueError(
            f"system: wanted a VideoCaptioner, a CaptionAggregator or a System, got {type(value).__name__} "
            f"without {', '.join(missing)}"
        )
    return Direct(value)


@contextmanager
def _evaluating(captioner: Any) -> Iterator[None]:
    """A captioner in eval mode, without gradients; None is let through."""
    training = captioner is not None and captioner.training
    if training:
        captioner.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if training:
            captioner.train()
