"""Captions of a long clip's parts, merged by a language model (paper section 6.2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from string import Formatter, ascii_uppercase
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as nnf

from fastvivit.modular.chat import read_choice
from fastvivit.modular.frames import Segment, check_segments, cut, fit_frames, uniform_segments

_CAPTIONS = "These captions describe parts of one video in the order of time, with seconds:\n\n{captions}\n\n"
SUMMARY = _CAPTIONS + "Write a short summary of the whole video. Answer with the summary only."
QUESTION = _CAPTIONS + "Question: {question}\nAnswer briefly, with the answer only."
CHOICE = _CAPTIONS + "Question: {question}\n{options}\nAnswer with the letter of the right answer only."


@dataclass(frozen=True, kw_only=True)
class Aggregate:
    """What became of one clip.

    Attributes:
        text: the language model's reply.
        captions: what was said of each segment.
        segments: (start, end) of each, in seconds of the clip.
        prompt: what the language model was asked.
    """

    text: str
    captions: list[str]
    segments: list[Segment]
    prompt: str


class CaptionAggregator:
    """Cuts a clip into segments, captions each, and has a language model merge the captions.

    Args:
        captioner: a ``VideoCaptioner`` (anything with its ``generate``), or a callable clip (C, t, H, W) -> str.
            A callable gets each segment as it was cut. A ``VideoCaptioner`` gets all in one batch, by
            ``fit_frames`` as long as a segment of ``seconds`` or as its encoder's clips, whichever is less.
        llm: a callable str -> str; ``ChatModel`` makes one of a transformers chat model.
        seconds: length of a segment.
        template: the prompt of a summary; ``{captions}`` becomes a line for each segment, such as
            ``16-32 s: a man walks``. Braces meant as such are doubled.
        question: the prompt where a question is asked, with ``{captions}`` and ``{question}``.
        choice: the prompt of ``choose`` for a plain callable, with ``{options}``, too: lines such as
            ``A. up``.
        prompt: what the captioner's texts begin after.
        max_new_tokens: the longest caption of a ``VideoCaptioner``.

    Raises:
        ValueError: a captioner or llm that can't be called, seconds not above 0, a template without its fields.
    """

    def __init__(
        self,
        captioner: Any,
        llm: Callable[[str], str],
        seconds: float = 16.0,
        *,
        template: str = SUMMARY,
        question: str = QUESTION,
        choice: str = CHOICE,
        prompt: str = "",
        max_new_tokens: int = 32,
    ) -> None:
        for name, value in (("captioner", captioner), ("llm", llm)):
            if not callable(value):
                raise ValueError(f"{name}: wanted a callable, got {type(value).__name__}")
        if not seconds > 0 or math.isinf(seconds):
            raise ValueError(f"seconds: wanted a finite number above 0, got {seconds!r}")
        _check_template("template", template, {"captions"})
        _check_template("question", question, {"captions", "question"})
        _check_template("choice", choice, {"captions", "question", "options"})
        self.captioner, self.llm, self.seconds = captioner, llm, float(seconds)
        self.template, self.question, self.choice = template, question, choice
        self.prompt, self.max_new_tokens = prompt, max_new_tokens

    def __call__(
        self,
        video: Tensor,
        fps: float = 1.0,
        question: str | None = None,
        *,
        segments: Sequence[Segment] | None = None,
        mask_ratio: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Aggregate:
        """Summarise a clip, or answer a question about it.

        Args:
            video: (C, T, H, W), picture i at ``i / fps`` seconds.
            fps: pictures per second.
            question: what to ask; None asks for a summary.
            segments: (start, end) in seconds instead of equal parts (the paper's oracle segments). Ends are cut
                at the clip's end; segments that begin after it are left out, as ``Aggregate.segments`` shows.
            mask_ratio: share of each segment's tokens that a ``VideoCaptioner`` drops.
            generator: source of randomness for ``mask_ratio``.

        Returns:
            ``Aggregate``.

        Raises:
            ValueError: a wrong shape, fps not above 0, no segment within the clip, a mask for a plain callable,
                a reply or caption that is no string.
        """
        captions, segments = self.captions(video, fps, segments=segments, mask_ratio=mask_ratio, generator=generator)
        lines = caption_lines(captions, segments)
        if question is None:
            prompt = self.template.format(captions=lines)
        else:
            prompt = self.question.format(captions=lines, question=question)
        return Aggregate(text=_string("llm", self.llm(prompt)), captions=captions, segments=segments, prompt=prompt)

    def choose(
        self,
        video: Tensor,
        question: str,
        options: Sequence[str],
        fps: float = 1.0,
        normalise: str = "sum",
        *,
        segments: Sequence[Segment] | None = None,
        mask_ratio: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """(n,) float32 scores of a question's options, the largest being the answer.

        A ``ChatModel`` (anything with its ``score``) is asked the question alone and gives each option's
        log-likelihood as the reply. A plain callable is shown lettered options; the one that its reply means
        (``read_choice``) scores 1 and the others 0; a reply that means none gives NaN for all, which
        ``fv.metrics.multiple_choice`` counts as wrong.

        Args:
            video: (C, T, H, W).
            question: what is asked.
            options: n answers, at most 26.
            fps: pictures per second.
            normalise: "sum" or "tokens", of a ``ChatModel``.
            segments: see the call.
            mask_ratio: see the call.
            generator: see the call.

        Raises:
            ValueError: as the call, and numbers of options outside 1 to 26.
        """
        if not 1 <= len(options) <= len(ascii_uppercase):
            raise ValueError(f"options: wanted 1 to {len(ascii_uppercase)}, got {len(options)}")
        captions, segments = self.captions(video, fps, segments=segments, mask_ratio=mask_ratio, generator=generator)
        lines = caption_lines(captions, segments)
        if hasattr(self.llm, "score"):
            return self.llm.score(self.question.format(captions=lines, question=question), options, normalise)
        lettered = "\n".join(f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options, strict=False))
        reply = self.llm(self.choice.format(captions=lines, question=question, options=lettered))
        chosen = read_choice(_string("llm", reply), options)
        if chosen is None:
            return torch.full((len(options),), float("nan"))
        return nnf.one_hot(torch.tensor(chosen), len(options)).float()

    def captions(
        self,
        video: Tensor,
        fps: float = 1.0,
        *,
        segments: Sequence[Segment] | None = None,
        mask_ratio: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> tuple[list[str], list[Segment]]:
        """The captions alone, and the segments they belong to; arguments as in the call."""
        if video.dim() != 4 or video.shape[1] == 0:
            raise ValueError(f"video: wanted (C, T, H, W) with T > 0, got shape {tuple(video.shape)}")
        places = uniform_segments(video.shape[1], fps, self.seconds)
        if segments is not None:
            places = check_segments(segments, video.shape[1] / fps)
        clips = [cut(video, fps, place) for place in places]
        if not hasattr(self.captioner, "generate"):
            if mask_ratio:
                raise ValueError(f"mask_ratio: wanted 0 with a plain callable, which masks nothing, got {mask_ratio}")
            return [_string("captioner", self.captioner(clip)) for clip in clips], places
        frames = clip_frames(self.captioner, math.ceil(self.seconds * fps - 1e-7))
        batch = torch.stack([fit_frames(clip, frames) for clip in clips])
        found = self.captioner.generate(
            batch, self.prompt, self.max_new_tokens, mask_ratio=mask_ratio, generator=generator
        )
        return [text.strip() for text in found], places


def clip_frames(captioner: Any, wanted: int) -> int:
    """Frames of the clips that a ``VideoCaptioner`` is given where there are ``wanted``.

    No more than its encoder has positions for, and whole tubelets of them.
    """
    config = captioner.video.config
    slot = 1 if config.attention == "tubes" else config.tubelet[0]
    return min(config.frames, -(-wanted // slot) * slot)


def caption_lines(captions: Sequence[str], segments: Sequence[Segment]) -> str:
    """Captions with the seconds they hold for, to a tenth, a line each."""
    pairs = zip(captions, segments, strict=True)
    return "\n".join(f"{round(start, 1):g}-{round(end, 1):g} s: {caption}" for caption, (start, end) in pairs)


def _check_template(name: str, template: str, wanted: set[str]) -> None:
    try:
        fields = {field for _, field, _, _ in Formatter().parse(template) if field is not None}
    except ValueError as error:
        raise ValueError(f"{name}: wanted braces in pairs around field names, got {template!r}: {error}") from None
    if fields != wanted:
        raise ValueError(f"{name}: wanted the fields {sorted(wanted)}, each in braces, got {sorted(fields)}")


def _string(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name}: wanted a string back, got {type(value).__name__}")
    return value.strip()
