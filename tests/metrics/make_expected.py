"""Writes expected.json: scores of pycocoevalcap and rouge-score on the corpora of cases.py.

    python -m tests.metrics.make_expected

in an environment that has both packages, and Java for the tokens.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

from tests.metrics import cases, packages

EXPECTED = Path(__file__).parent / "expected.json"


def digits(values: list[float]) -> list[float]:
    return [float(f"{value:.13g}") for value in values]


def coco_row(seed: int) -> list[float]:
    """CIDEr, ROUGE-L, BLEU-1 to 4 of the corpus, then of its last clip."""
    found = packages.coco(*cases.corpus(seed))
    return digits([score for score, _ in found.values()] + [scores[-1] for _, scores in found.values()])


def rouge_row(seed: int, *, raw: bool) -> list[float]:
    """rouge-score's F1 averaged over the references and of the best one, means over the clips."""
    corpus = cases.raw_corpus(seed) if raw else cases.corpus(seed)
    each, best = packages.rouge_f1(*corpus, tokenize=raw)
    return digits([sum(sum(row) / len(row) for row in each) / len(each), sum(best) / len(best)])


def main() -> None:
    seeds = range(cases.CORPORA)
    found = {
        "versions": {name: version(name) for name in ("pycocoevalcap", "rouge-score")},
        "coco": [coco_row(seed) for seed in seeds],
        "rouge_score_spaces": [rouge_row(seed, raw=False) for seed in seeds],
        "rouge_score_tokens": [rouge_row(seed, raw=True) for seed in seeds],
        "ptb": packages.ptb([cases.caption(seed) for seed in seeds]),
    }
    lines = [f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in found.items()]
    EXPECTED.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
