"""ROUGE-L: the longest common subsequence with the references, in the two flavours that go by the name."""

from __future__ import annotations

from collections.abc import Sequence

from fastvivit.metrics.texts import split
from fastvivit.metrics.tokens import ptb_tokens, rouge_tokens

_BETA = 1.2


def rouge_l(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    flavour: str = "coco",
    multiple: str | None = None,
    tokenize: bool = False,
) -> float:
    """ROUGE-L of a corpus, from 0 to 1, the mean over clips; name the flavour beside the figure.

    Lin, *ROUGE: A Package for Automatic Evaluation of Summaries* (ACL 2004), section 3.1: with the longest
    common subsequence L of hypothesis and reference, precision P = L / len(hypothesis) and recall
    R = L / len(reference).

    - ``"coco"``, the numerics of pycocoevalcap's ``Rouge``: (1 + b²) P R / (R + b² P) with b = 1.2, of the
      largest P and the largest R over the references, each on its own. As there, every single space parts
      two tokens, so an empty text is one empty token, which an empty reference has too.
    - ``"rouge_score"``, the numerics of the package rouge-score without stemmer (``rougeL``, whole texts
      whatever their lines): F1 = 2 P R / (P + R) with each reference; an empty text scores 0.

    Args:
        hypotheses: one text a clip.
        references: for each clip its texts, at least one.
        flavour: "coco" or "rouge_score".
        multiple: for "rouge_score", what several references count: "average", the default and what the paper
            reports for summaries, or "best", the package's ``score_multi``.
        tokenize: False splits texts at spaces as they stand; True takes :func:`ptb_tokens` for "coco" and
            :func:`rouge_tokens`, the package's own, for "rouge_score".

    Returns:
        The score.

    Raises:
        ValueError: an unknown ``flavour`` or ``multiple``, ``multiple`` for "coco", no hypotheses, not one
            list of references for each, a clip without a reference.
    """
    scores = rouge_l_scores(hypotheses, references, flavour=flavour, multiple=multiple, tokenize=tokenize)
    return sum(scores) / len(scores)


def rouge_l_scores(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    flavour: str = "coco",
    multiple: str | None = None,
    tokenize: bool = False,
) -> list[float]:
    """ROUGE-L of each clip, whose mean is :func:`rouge_l`: same arguments and errors."""
    if flavour == "coco":
        if multiple is not None:
            raise ValueError(f"multiple: wanted None, as 'coco' has one rule for several references, got {multiple!r}")
        clips = split(hypotheses, references, tokenize, _ptb_or_empty, lambda text: text.split(" "))
        return [_coco(*clip) for clip in clips]
    if flavour != "rouge_score":
        raise ValueError(f"flavour: wanted 'coco' or 'rouge_score', got {flavour!r}")
    if multiple not in (None, "average", "best"):
        raise ValueError(f"multiple: wanted 'average' or 'best', got {multiple!r}")
    clips = split(hypotheses, references, tokenize, rouge_tokens)
    scores = [[_f1(mine, one) for one in several] for mine, several in clips]
    return [max(row) if multiple == "best" else sum(row) / len(row) for row in scores]


def _ptb_or_empty(text: str) -> list[str]:
    """Tokens as pycocoevalcap sees them: it joins them by spaces and splits them again."""
    return ptb_tokens(text) or [""]


def _coco(mine: list[str], several: list[list[str]]) -> float:
    common = [_common(mine, one) for one in several]
    precision = max(common) / len(mine)
    recall = max(length / len(one) for length, one in zip(common, several, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _f1(mine: list[str], reference: list[str]) -> float:
    common = _common(mine, reference)
    return 2.0 * common / (len(mine) + len(reference)) if common else 0.0


def _common(first: list[str], second: list[str]) -> int:
    """Length of the longest common subsequence, a row of the table at once in the bits of an integer.

    Hyyrö, *Bit-parallel LCS-length computation revisited* (2004): a bit is 0 where the length grows.
    """
    places: dict[str, int] = {}
    for place, token in enumerate(second):
        places[token] = places.get(token, 0) | 1 << place
    whole = (1 << len(second)) - 1
    row = whole
    for token in first:
        equal = row & places.get(token, 0)
        row = ((row + equal) | (row - equal)) & whole
    return len(second) - row.bit_count()
