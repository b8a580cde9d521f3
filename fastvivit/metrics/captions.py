"""Every caption score of one set of clips."""

from __future__ import annotations

from collections.abc import Sequence

from fastvivit.metrics.bleu import corpus_bleu
from fastvivit.metrics.cider import cider
from fastvivit.metrics.rouge import rouge_l
from fastvivit.metrics.texts import split


def captions(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: bool = False
) -> dict[str, float | str]:
    """Every caption score, by keys that name the flavour, and how the texts were split.

    Args:
        hypotheses: one text a clip.
        references: for each clip its texts, at least one.
        tokenize: False splits texts at spaces as they stand; True takes our tokenisers.

    Returns:
        - ``clips``: how many.
        - ``cider_d``: :func:`cider`, where 1.0 is a paper's "100".
        - ``rouge_l_coco``: :func:`rouge_l` with flavour "coco"; ``rouge_l_f1``: with flavour "rouge_score",
          averaged over the references. 0 to 1.
        - ``bleu_1`` to ``bleu_4``: :func:`bleu`, 0 to 1.
        - ``tokens``: "spaces", or "fastvivit_ptb" for :func:`ptb_tokens`; ``rouge_l_f1_tokens``: "spaces", or
          "rouge_score" for :func:`rouge_tokens`.

    Raises:
        ValueError: no hypotheses, not one list of references for each, a clip without a reference.

    Warns:
        UserWarning: below 20 clips, where CIDEr-D means nothing.
    """
    said, truth = hypotheses, references
    if tokenize:
        # Once for the three scores that take the same tokens.
        clips = split(hypotheses, references, tokenize)
        said, truth = (
            [" ".join(mine) for mine, _ in clips],
            [[" ".join(one) for one in several] for _, several in clips],
        )
    found: dict[str, float | str] = {
        "clips": len(hypotheses),
        "cider_d": cider(said, truth),
        "rouge_l_coco": rouge_l(said, truth, flavour="coco"),
        "rouge_l_f1": rouge_l(hypotheses, references, flavour="rouge_score", tokenize=tokenize),
    }
    found |= {f"bleu_{n}": score for n, score in enumerate(corpus_bleu(said, truth), 1)}
    found["tokens"] = "fastvivit_ptb" if tokenize else "spaces"
    found["rouge_l_f1_tokens"] = "rouge_score" if tokenize else "spaces"
    return found
