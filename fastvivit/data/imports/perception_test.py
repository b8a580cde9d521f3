"""Perception Test, multiple-choice questions: short videos, several questions each, three options."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastvivit.data.imports.annotated import Annotated, Annotations, Source
from fastvivit.data.imports.choices import choice
from fastvivit.data.imports.reading import Node, read_json

_KEPT = ("area", "reasoning", "tag")


def read(path: Path, *, cut_frames: Path | None = None) -> Annotations:
    """Read ``mc_question_valid.json``, or another file with these fields, such as ``all_valid.json``.

    ``{video: {"metadata": {"split", "frame_rate", "num_frames", ...}, "mc_question": [{"id", "question",
    "options", "answer_id", "area", "reasoning", "tag"}]}}``; the test set has no ``answer_id``. An entry is a
    question. The file is named by the video's id.

    Args:
        path: the file.
        cut_frames: ``cut_frame_mapping_valid.json``, ``{video: picture}``: there the video must end, because what
            follows shows the answer; -1 is no cut. The test set's videos are cut already.

    Raises:
        ValueError: files of another form.
    """
    found = Annotations()
    cuts = dict(read_json(cut_frames, "cut_frames").fields()) if cut_frames is not None else {}
    for name, node in _videos(read_json(path)):
        if not node.has("mc_question"):
            continue  # a file of all tasks also lists videos that have other annotations only
        about = node.at("metadata")
        source = _source(name, about, cuts.pop(name, None))
        split = about.at("split").name() if about.has("split") else None
        for question in node.at("mc_question").elements():
            answer = question.at("answer_id") if question.has("answer_id") else None
            captions, extra = choice(question.at("question"), question.at("options").elements(), answer)
            extra |= {"question_id": question.value["id"]} if question.has("id") else {}
            extra |= {field: question.value[field] for field in _KEPT if question.has(field)}
            found.clips.append(Annotated(id=name, captions=captions, sources=(source,), split=split, extra=extra))
    return found


def _videos(root: Node) -> Iterator[tuple[str, Node]]:
    if isinstance(root.value, dict):
        yield from root.fields()
    else:
        for node in root.elements():
            yield node.at("metadata").at("video_id").name(), node


def _source(name: str, about: Node, cut: Node | None) -> Source:
    known = about.has("frame_rate") and about.has("num_frames")
    seconds: Any = about.at("num_frames").number() / _rate(about) if known else None
    if cut is None:
        return Source(name, seconds=seconds)
    if isinstance(cut.value, bool) or not isinstance(cut.value, int):
        raise cut.wrong("the number of a picture, or -1")
    if cut.value <= 0:
        return Source(name, seconds=seconds)
    # The picture of the cut itself is left out: the safe side, as the data set doesn't say.
    end = cut.value / _rate(about)
    if seconds is not None and end >= seconds:
        return Source(name, seconds=seconds)
    return Source(name, end=end, seconds=end)


def _rate(about: Node) -> float:
    rate = about.at("frame_rate")
    if not rate.number():
        raise rate.wrong("pictures per second above 0")
    return rate.number()
