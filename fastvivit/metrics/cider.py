"""CIDEr-D: agreement with the references on the n-grams that tell one clip from another."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fastvivit.metrics.texts import ngrams, split

_ORDERS = 4
_SIGMA = 6.0
# Below this many clips nearly every n-gram is in one clip's references only: the weights say nothing.
_FEW = 20


def cider(hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: bool = False) -> float:
    """CIDEr-D of a corpus, with the numerics of pycocoevalcap's ``Cider``: 1.0 is a paper's "100", 10 the most.

    Vedantam et al., *CIDEr: Consensus-based Image Description Evaluation* (arXiv 1411.5726), equations 1 to 3
    and section 6: clipped n-grams of orders 1 to 4, weighted by their inverse document frequency over the
    clips, the Gaussian penalty of length with sigma 6, the mean over orders, references and clips, times 10.

    Document frequencies are those of the references given here, so scores of different sets of clips do not
    compare, and scores of few clips mean nothing: one clip alone scores 0 whatever it says. Below 20 clips
    there is a ``UserWarning``.

    Args:
        hypotheses: one text a clip; an empty one scores 0.
        references: for each clip its texts, at least one.
        tokenize: False splits texts at white space as they stand; True takes :func:`ptb_tokens`, which is
            not the Java tokeniser of published scores but stands close to it.

    Returns:
        The score.

    Raises:
        ValueError: no hypotheses, not one list of references for each, a clip without a reference.
    """
    scores = _scores(hypotheses, references, tokenize)
    return sum(scores) / len(scores)


def cider_scores(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: bool = False
) -> list[float]:
    """CIDEr-D of each clip, whose mean is :func:`cider`: same arguments, errors and warning."""
    return _scores(hypotheses, references, tokenize)


@dataclass(frozen=True)
class _Vector:
    """A text's weighted n-grams, the norm for each order, and its length."""

    weights: dict[tuple[str, ...], float]
    norms: list[float]
    length: int


def _scores(hypotheses: Sequence[str], references: Sequence[Sequence[str]], tokenize: bool) -> list[float]:
    clips = [
        (ngrams(mine, _ORDERS), [ngrams(one, _ORDERS) for one in several])
        for mine, several in split(hypotheses, references, tokenize)
    ]
    if len(clips) < _FEW:
        warnings.warn(
            f"cider: document frequencies of {len(clips)} clips say little: wanted at least {_FEW}", stacklevel=3
        )
    seen = Counter(gram for _, several in clips for gram in set().union(*several))
    scores = []
    for mine, several in clips:
        hypothesis = _weigh(mine, seen, len(clips))
        total = sum(_similarity(hypothesis, _weigh(one, seen, len(clips))) for one in several)
        scores.append(10.0 * total / (_ORDERS * len(several)))
    return scores


def _weigh(counts: Counter[tuple[str, ...]], seen: Counter[tuple[str, ...]], clips: int) -> _Vector:
    weights = {gram: count * (math.log(clips) - math.log(max(1, seen[gram]))) for gram, count in counts.items()}
    squares = [0.0] * _ORDERS
    for gram, weight in weights.items():
        squares[len(gram) - 1] += weight**2
    length = sum(count for gram, count in counts.items() if len(gram) == 1)
    return _Vector(weights, [math.sqrt(square) for square in squares], length)


def _similarity(hypothesis: _Vector, reference: _Vector) -> float:
    """Sum over the orders of the clipped cosine, times the penalty of length."""
    products = [0.0] * _ORDERS
    for gram, weight in hypothesis.weights.items():
        other = reference.weights.get(gram, 0.0)
        products[len(gram) - 1] += min(weight, other) * other
    norms = [a * b for a, b in zip(hypothesis.norms, reference.norms, strict=True)]
    cosine = sum(product / norm for product, norm in zip(products, norms, strict=True) if norm)
    return cosine * math.exp(-((hypothesis.length - reference.length) ** 2) / (2 * _SIGMA**2))
