"""What systems said, as rows that JSON can hold, and the scores of such rows."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from fastvivit import metrics
from fastvivit._folders import file_written_whole
from fastvivit.data import Entry
from fastvivit.evaluation.clips import Clip
from fastvivit.evaluation.setups import CHOICE, SUMMARIES
from fastvivit.evaluation.systems import Asking, System

Row = dict[str, Any]


def text_rows(system: System, clips: Sequence[Clip], asking: Asking) -> list[Row]:
    """A row a clip: what the system said of it, beside the references."""
    texts = system.describe(clips, asking)
    return [
        _about(clip) | {"references": list(clip.entry.captions), "prediction": text}
        for clip, text in zip(clips, texts, strict=True)
    ]


def choice_rows(system: System, clips: Sequence[Clip], asking: Asking) -> list[Row]:
    """A row a clip: each option's score and the option chosen; None for NaN, which JSON hasn't."""
    questions = [clip.entry.extra["question"] for clip in clips]
    options = [clip.entry.extra["options"] for clip in clips]
    rows = []
    for clip, scores in zip(clips, system.choose(clips, questions, options, asking), strict=True):
        row = _about(clip) | {name: clip.entry.extra[name] for name in ("question", "options")}
        chosen = None if scores.isnan().any() else int(scores.argmax())
        written = [None if score != score else score for score in scores.tolist()]
        rows.append(row | {"answer": clip.entry.extra.get("answer"), "scores": written, "prediction": chosen})
    return rows


def score_rows(task: str, rows: Sequence[Row]) -> dict[str, float | str]:
    """The task's scores; of questions those whose answer is known."""
    if task == CHOICE:
        return _accuracy([row for row in rows if row["answer"] is not None])
    texts, references = [row["prediction"] for row in rows], [row["references"] for row in rows]
    if task == SUMMARIES:
        return {"rouge_l_f1": metrics.rouge_l(texts, references, flavour="rouge_score", tokenize=True)}
    return metrics.captions(texts, references, tokenize=True)


def _accuracy(rows: Sequence[Row]) -> dict[str, float]:
    if not rows:
        return {"count": 0.0}
    scores = torch.full((len(rows), max(len(row["scores"]) for row in rows)), float("-inf"))
    for place, row in enumerate(rows):
        scores[place, : len(row["scores"])] = torch.tensor(
            [float("nan") if score is None else score for score in row["scores"]]
        )
    return metrics.multiple_choice(scores, [row["answer"] for row in rows])


def check_question(number: int, entry: Entry) -> None:
    """Refuse an entry that asks nothing, before anything runs."""
    question, options, answer = (entry.extra.get(name) for name in ("question", "options", "answer"))
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"manifest: wanted a string 'question' in every entry, got {question!r} in entry {number}")
    if not isinstance(options, list) or len(options) < 2 or not all(isinstance(o, str) and o for o in options):
        raise ValueError(f"manifest: wanted 'options', at least two strings, got {options!r} in entry {number}")
    fits = isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(options)
    if answer is not None and not fits:
        raise ValueError(
            f"manifest: wanted 'answer' in 0..{len(options) - 1} or none, got {answer!r} in entry {number}"
        )


def _about(clip: Clip) -> Row:
    return {"video": str(clip.entry.video), "start": clip.entry.start, "end": clip.entry.end}


def broken_rows(broken: Iterable[tuple[str, str]]) -> Iterable[Row]:
    """A row a file that could not be read."""
    return ({"video": video, "error": reason} for video, reason in broken)


def write_rows(path: str | os.PathLike[str], rows: Iterable[Row]) -> None:
    """Write JSON lines, all of them or nothing."""
    with file_written_whole(Path(path)) as scratch, scratch.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
