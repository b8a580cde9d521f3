"""BLEU: precision of n-grams over a corpus, with the brevity penalty."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from fastvivit.metrics.texts import ngrams, split

_ORDERS = 4
# pycocoevalcap's: no division by zero, and a score just above zero where no n-gram is right.
_TINY, _SMALL = 1e-15, 1e-9


def bleu(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], n: int = 4, *, tokenize: bool = False
) -> float:
    """BLEU-n of a corpus, from 0 to 1, with the numerics of pycocoevalcap's ``Bleu``.

    Papineni et al., *BLEU: a Method for Automatic Evaluation of Machine Translation* (ACL 2002): the geometric
    mean of the clipped precisions of n-grams of orders 1 to n, counted over all clips, times
    exp(1 - r / c) where the hypotheses' length c is below r, the sum of the lengths of the references that
    are closest in length (the shorter of two as close).

    Args:
        hypotheses: one text a clip.
        references: for each clip its texts, at least one.
        n: the largest order, 1 to 4.
        tokenize: False splits texts at white space as they stand; True takes :func:`ptb_tokens`.

    Returns:
        The score.

    Raises:
        ValueError: ``n`` outside 1 to 4, no hypotheses, not one list of references for each, a clip without a
            reference.
    """
    _require_order(n)
    return corpus_bleu(hypotheses, references, tokenize=tokenize)[n - 1]


def bleu_scores(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], n: int = 4, *, tokenize: bool = False
) -> list[float]:
    """BLEU-n of each clip by itself, as pycocoevalcap's; their mean is not :func:`bleu`. Same arguments, errors."""
    _require_order(n)
    return [_orders(_count(*clip))[n - 1] for clip in split(hypotheses, references, tokenize)]


def corpus_bleu(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: bool = False
) -> list[float]:
    """BLEU-1 to BLEU-4 of a corpus."""
    total: Counter[str] = Counter()
    for clip in split(hypotheses, references, tokenize):
        total.update(_count(*clip))
    return _orders(total)


def _require_order(n: int) -> None:
    if n not in range(1, _ORDERS + 1):
        raise ValueError(f"n: wanted 1 to {_ORDERS}, got {n!r}")


def _count(mine: list[str], several: list[list[str]]) -> Counter[str]:
    """A clip's lengths, and for each order the n-grams and the right ones among them."""
    allowed: Counter[tuple[str, ...]] = Counter()
    for one in several:
        allowed |= ngrams(one, _ORDERS)
    counts = Counter({"length": len(mine)})
    counts["reference"] = min((abs(len(one) - len(mine)), len(one)) for one in several)[1]
    for gram, count in ngrams(mine, _ORDERS).items():
        counts[f"grams {len(gram)}"] += count
        counts[f"right {len(gram)}"] += min(count, allowed[gram])
    return counts


def _orders(counts: Counter[str]) -> list[float]:
    ratio = (counts["length"] + _TINY) / (counts["reference"] + _SMALL)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, scores = 1.0, []
    for n in range(1, _ORDERS + 1):
        product *= (counts[f"right {n}"] + _TINY) / (counts[f"grams {n}"] + _SMALL)
        scores.append(product ** (1 / n) * penalty)
    return scores
