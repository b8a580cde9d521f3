"""Scores of systems on the clips of a manifest: captions, summaries, multiple choice (paper, tables 2 and 3)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastvivit.data import Entry, one_a_clip
from fastvivit.evaluation.clips import Clip, Manifest, Reading, entries_of, read_clips
from fastvivit.evaluation.rows import (
    Row,
    broken_rows,
    check_events,
    check_question,
    choice_rows,
    score_rows,
    text_rows,
    write_rows,
)
from fastvivit.evaluation.setups import CAPTIONING, CHOICE, SUMMARIES
from fastvivit.evaluation.systems import TEMPLATE, Aggregated, Asking, System, as_system


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What some systems scored on the same clips.

    Attributes:
        task: "captioning", "summaries" or "multiple_choice"; of ``fastvivit evaluate`` "retrieval", too.
        scores: for each system its scores, beside ``clips`` (how many they are of), ``broken`` (files that
            could not be read), and ``seconds_per_clip`` (the system's own time, without decoding).
        broken: path and reason of each of these files.
    """

    task: str
    scores: dict[str, dict[str, float | str]]
    broken: list[tuple[str, str]]

    def table(self) -> str:
        """A line a score, a column a system, as plain text."""
        fields = list(next(iter(self.scores.values())))
        rows = [["", *self.scores]]
        rows += [[field, *(_written(scores[field]) for scores in self.scores.values())] for field in fields]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = []
        for first, *rest in rows:
            cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
            lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
        return "\n".join(lines)


def captioning(
    captioner: Any,
    manifest: Manifest,
    prompt: str = "",
    mask_ratio: float = 0.3,
    seed: int = 0,
    *,
    max_new_tokens: int = 32,
    reading: Reading | None = None,
    predictions: str | os.PathLike[str] | None = None,
) -> dict[str, float | str]:
    """CIDEr-D, ROUGE-L and BLEU of a system's captions: ``fv.metrics.captions`` with its tokenisers.

    Arguments, errors and the rest of the result are those of ``compare``.
    """
    asking = {"prompt": prompt, "mask_ratio": mask_ratio, "seed": seed, "max_new_tokens": max_new_tokens}
    return compare({"": captioner}, manifest, CAPTIONING, reading=reading, predictions=predictions, **asking).scores[""]


def summarise(
    captioner: Any,
    manifest: Manifest,
    prompt: str = "",
    mask_ratio: float = 0.3,
    seed: int = 0,
    *,
    max_new_tokens: int = 128,
    reading: Reading | None = None,
    predictions: str | os.PathLike[str] | None = None,
) -> dict[str, float | str]:
    """ROUGE-L of a system's texts about whole videos, averaged over a video's references (paper, appendix B).

    ``rouge_l_f1`` is rouge-score's F1 (``fv.metrics.rouge_l`` with flavour "rouge_score"), in 0..1. Arguments,
    errors and the rest of the result are those of ``compare``.
    """
    asking = {"prompt": prompt, "mask_ratio": mask_ratio, "seed": seed, "max_new_tokens": max_new_tokens}
    return compare({"": captioner}, manifest, SUMMARIES, reading=reading, predictions=predictions, **asking).scores[""]


def multiple_choice(
    captioner: Any,
    manifest: Manifest,
    normalise: str = "sum",
    template: str = TEMPLATE,
    mask_ratio: float = 0.3,
    seed: int = 0,
    *,
    reading: Reading | None = None,
    predictions: str | os.PathLike[str] | None = None,
) -> dict[str, float | str]:
    """Accuracy in questions with options: the option of the largest log-likelihood (``fv.metrics.multiple_choice``).

    An entry says them in its further fields: ``question``, ``options`` (a list), ``answer`` (its place from 0;
    absent where it is secret: such questions are predicted and not scored). Arguments, errors and the rest of
    the result are those of ``compare``.
    """
    asking = {"normalise": normalise, "template": template, "mask_ratio": mask_ratio, "seed": seed}
    return compare({"": captioner}, manifest, CHOICE, reading=reading, predictions=predictions, **asking).scores[""]


def compare(
    systems: Mapping[str, Any],
    manifest: Manifest,
    task: str,
    *,
    prompt: str = "",
    mask_ratio: float = 0.3,
    seed: int = 0,
    normalise: str = "sum",
    template: str = TEMPLATE,
    max_new_tokens: int = 32,
    reading: Reading | None = None,
    predictions: str | os.PathLike[str] | None = None,
) -> Comparison:
    """Evaluate systems on the same clips, each decoded once (paper, table 3).

    Args:
        systems: by name: a ``VideoCaptioner``, a ``fv.modular.CaptionAggregator``, a ``Selected``, or any
            ``System``.
        manifest: a manifest's path, or its entries. Those of the same part of the same file are one clip with
            several references; of multiple choice each is a question of its own.
        task: "captioning", "summaries" or "multiple_choice".
        prompt: what descriptions begin after; see ``Selected`` and ``Aggregated`` for what they make of it.
        mask_ratio: share of the video's tokens that is dropped, as the paper does at inference, too.
        seed: a clip's mask depends on it and on the clip's place among the manifest's clips alone.
        normalise: "sum" or "tokens": whether an option's log-likelihood is divided by its tokens.
        template: the prompt of a question; ``{question}`` stands for it.
        max_new_tokens: the longest description.
        reading: how clips are read.
        predictions: a file to write a JSON line a clip and system to, and one a broken file.

    Returns:
        ``Comparison``.

    Raises:
        ValueError: an unknown task or setting, something that is no system, models of different sizes where
            ``reading`` gives none, a bad manifest, an entry without question and options, or with
            bad segments, where they are needed, no video that can be read.
    """
    if task not in (CAPTIONING, SUMMARIES, CHOICE):
        raise ValueError(f"task: wanted {CAPTIONING!r}, {SUMMARIES!r} or {CHOICE!r}, got {task!r}")
    if not systems:
        raise ValueError("systems: wanted at least one, got none")
    named = {name: as_system(system) for name, system in systems.items()}
    reading = _resolved(reading or Reading(), named.values())
    asking = Asking(
        frames=reading.frames,
        prompt=prompt,
        max_new_tokens=max_new_tokens,
        mask_ratio=mask_ratio,
        seed=seed,
        normalise=normalise,
        template=template,
    )
    entries = entries_of(manifest)
    if any(entry.kind == "image" for entry in entries):
        raise ValueError(f"manifest: wanted clips for task {task!r}, got images among them")
    if task == CHOICE:
        for number, entry in enumerate(entries):
            check_question(number, entry)
    else:
        entries = one_a_clip(entries)
    oracle = any(isinstance(system, Aggregated) and system.oracle for system in named.values())
    if oracle and not any(entry.extra.get("segments") for entry in entries):
        raise ValueError("oracle: wanted entries with a field 'segments', got none in the manifest")
    for number, entry in enumerate(entries if oracle else ()):
        check_events(number, entry)
    answers, broken, seconds = _answers(named, entries, task, reading, asking)
    if predictions is not None:
        rows = [row | ({"system": name} if name else {}) for name, rows in answers.items() for row in rows]
        write_rows(predictions, [*rows, *broken_rows(broken)])
    read = len(entries) - len(broken)
    if not read:
        raise ValueError(f"manifest: wanted a video that can be read, got none of {len(entries)}: {broken[0][1]}")
    about = {"clips": float(read), "broken": float(len(broken))}
    scores = {
        name: score_rows(task, rows) | about | {"seconds_per_clip": seconds[name] / read}
        for name, rows in answers.items()
    }
    return Comparison(task=task, scores=scores, broken=broken)


def _answers(
    systems: Mapping[str, System], entries: Sequence[Entry], task: str, reading: Reading, asking: Asking
) -> tuple[dict[str, list[Row]], list[tuple[str, str]], dict[str, float]]:
    """What each system said of each clip; the files that could not be read; each system's seconds."""
    answers: dict[str, list[Row]] = {name: [] for name in systems}
    seconds = dict.fromkeys(systems, 0.0)
    broken = []
    for several in _groups(read_clips(entries, reading), reading.batch_size):
        broken += [(str(clip.entry.video), clip.error) for clip in several if clip.video is None]
        clips = [clip for clip in several if clip.video is not None]
        for name, system in systems.items() if clips else ():
            began = time.perf_counter()
            answers[name] += choice_rows(system, clips, asking) if task == CHOICE else text_rows(system, clips, asking)
            seconds[name] += time.perf_counter() - began
        reading.done(len(several))
    return answers, broken, seconds


def _groups(clips: Iterable[Clip], size: int) -> Iterable[list[Clip]]:
    group: list[Clip] = []
    for clip in clips:
        group.append(clip)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _resolved(reading: Reading, systems: Iterable[System]) -> Reading:
    """With the frames and the size that the models take, where none are given."""
    configs = [system.captioner.video.config for system in systems if system.captioner is not None]
    frames, size = reading.frames, reading.size
    if frames is None:
        frames = max((config.frames for config in configs), default=None)
    if size is None:
        sizes = sorted({tuple(config.size) for config in configs})
        if len(sizes) > 1:
            raise ValueError(f"reading.size: wanted one, because the models' differ, got None for {sizes}")
        size = sizes[0] if sizes else None
    if frames is None or size is None:
        raise ValueError("reading: wanted frames and size, because no system has a VideoCaptioner that says them")
    return replace(reading, frames=frames, size=size)


def _written(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
