"""The scores of pycocoevalcap and rouge-score, for whoever has them: neither is needed to run the tests."""

from __future__ import annotations

import os
from unittest.mock import patch


class Spaces:
    """A tokeniser for rouge-score that leaves words as they are."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()


def coco(hypotheses: list[str], references: list[list[str]]) -> dict[str, tuple[float, list[float]]]:
    """Of each of pycocoevalcap's scores the corpus's and the clips'."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    truth, said = dict(enumerate(references)), {i: [text] for i, text in enumerate(hypotheses)}
    found = {"cider": Cider().compute_score(truth, said), "rouge_l": Rouge().compute_score(truth, said)}
    corpus, clips = Bleu(4).compute_score(truth, said, verbose=0)
    found |= {f"bleu_{n}": (corpus[n - 1], clips[n - 1]) for n in (1, 2, 3, 4)}
    return {name: (float(score), [float(one) for one in scores]) for name, (score, scores) in found.items()}


def rouge_f1(
    hypotheses: list[str], references: list[list[str]], *, tokenize: bool
) -> tuple[list[list[float]], list[float]]:
    """rouge-score's F1 of each clip: with each reference, and its own choice among them."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=None if tokenize else Spaces())
    pairs = list(zip(hypotheses, references, strict=True))
    each = [[scorer.score(one, mine)["rougeL"].fmeasure for one in several] for mine, several in pairs]
    return each, [scorer.score_multi(several, mine)["rougeL"].fmeasure for mine, several in pairs]


def ptb(captions: list[str]) -> list[str]:
    """Tokens of Stanford's PTBTokenizer less pycocoevalcap's punctuation, joined by spaces; needs Java."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    with patch.dict(os.environ, JAVA_TOOL_OPTIONS="-Dfile.encoding=UTF-8"):
        found = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(captions)})
    return [found[i][0] for i in range(len(captions))]
