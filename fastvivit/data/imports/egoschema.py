"""EgoSchema: three minutes of a day seen by who lives it, a question and five options."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fastvivit.data.imports.annotated import Annotated, Annotations, Source
from fastvivit.data.imports.choices import choice
from fastvivit.data.imports.reading import Node, read_json


def read(path: Path, *, answers: Path | None = None) -> Annotations:
    """Read ``questions.json``, and ``subset_answers.json`` with the answers of 500 questions.

    ``[{"q_uid", "question", "option 0", ..., "option 4"}]``, or an object of such by ``q_uid``; and
    ``{q_uid: index}``. A question that has ``truth`` or ``answer`` itself needs no other file. What has an answer
    is split ``"subset"``, the rest ``"secret"``. The file is named by the ``q_uid``.

    Args:
        path: the questions.
        answers: the answers.

    Raises:
        ValueError: files of another form; answers to no known question are skipped.
    """
    found = Annotations()
    known = dict(read_json(answers, "answers").fields()) if answers is not None else {}
    for name, node in _questions(read_json(path)):
        options = [node.at(field) for field in _options(node)]
        own = next((node.at(field) for field in ("truth", "answer") if node.has(field)), None)
        answer = known.pop(name, own)
        captions, extra = choice(node.at("question"), options, answer)
        split = "secret" if answer is None else "subset"
        found.clips.append(Annotated(id=name, captions=captions, sources=(Source(name),), split=split, extra=extra))
    found.skipped.extend(f"{node.place}: no question has this id" for node in known.values())
    return found


def _questions(root: Node) -> Iterator[tuple[str, Node]]:
    if isinstance(root.value, dict):
        yield from root.fields()
    else:
        for node in root.elements():
            yield node.at("q_uid").name(), node


def _options(node: Node) -> list[str]:
    count = 0
    while node.has(f"option {count}"):
        count += 1
    return [f"option {index}" for index in range(max(count, 2))]
