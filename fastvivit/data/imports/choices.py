"""Questions with options: the fields that an entry has for one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastvivit.data.imports.reading import Node


def choice(question: Node, options: Sequence[Node], answer: Node | None) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Captions and further fields of a multiple-choice entry.

    Returns:
        The caption is the right option, and the question where the answer is secret. The fields are
        ``question``, ``options`` (in the file's order) and ``answer`` (an index, absent where secret).

    Raises:
        ValueError: fewer than two options, an empty text, or an answer that is none of the options.
    """
    asked = _said(question)
    texts = [_said(option) for option in options]
    if len(texts) < 2:
        raise ValueError(f"{question.place}: wanted a question with at least two options, got {len(texts)}")
    fields: dict[str, Any] = {"question": asked, "options": texts}
    if answer is None:
        return (asked,), fields
    fields["answer"] = answer.index(len(texts))
    return (texts[fields["answer"]],), fields


def _said(node: Node) -> str:
    text = node.text()
    if not text:
        raise node.wrong("words")
    return text
