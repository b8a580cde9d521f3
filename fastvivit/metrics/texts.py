"""What every caption score is given: a hypothesis a clip, several references a clip."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from fastvivit.metrics.tokens import ptb_tokens


def split(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    tokenize: bool,
    tokens: Callable[[str], list[str]] = ptb_tokens,
    spaces: Callable[[str], list[str]] = str.split,
) -> list[tuple[list[str], list[list[str]]]]:
    """Tokens of each clip's hypothesis and of its references, by ``tokens`` or, as they stand, by ``spaces``."""
    _require(hypotheses, references)
    by = tokens if tokenize else spaces
    return [(by(text), [by(one) for one in several]) for text, several in zip(hypotheses, references, strict=True)]


def ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """How often each n-gram of orders 1 to ``n`` occurs."""
    return Counter(tuple(tokens[i : i + k]) for k in range(1, n + 1) for i in range(len(tokens) - k + 1))


def _require(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Raise ``ValueError`` unless there is a hypothesis and at least one reference for each clip."""
    if not _are_texts(hypotheses):
        raise ValueError(f"hypotheses: wanted a str for each clip, got {_kind(hypotheses)}")
    if len(hypotheses) == 0:
        raise ValueError("hypotheses: wanted at least one, got none")
    listed = _is_list(references)
    if not listed or len(references) != len(hypotheses):
        got = len(references) if listed else _kind(references)
        raise ValueError(f"references: wanted a list for each of {len(hypotheses)} hypotheses, got {got}")
    for place, several in enumerate(references):
        if not _are_texts(several):
            raise ValueError(f"references: wanted a list of str for each clip, got {_kind(several)} for clip {place}")
        if len(several) == 0:
            raise ValueError(f"references: wanted at least one for each clip, got none for clip {place}")


def _is_list(value: object) -> bool:
    return hasattr(value, "__len__") and hasattr(value, "__iter__") and not isinstance(value, str)


def _are_texts(value: object) -> bool:
    return _is_list(value) and all(isinstance(text, str) for text in value)


def _kind(value: object) -> str:
    if not _is_list(value):
        return f"one {type(value).__name__}"
    return f"{type(value).__name__} of {', '.join(sorted({type(one).__name__ for one in value}))}"
