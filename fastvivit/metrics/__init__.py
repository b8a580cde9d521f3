"""Scores of retrieval, captions and multiple choice, in plain Python and torch."""

from fastvivit.metrics.bleu import bleu, bleu_scores
from fastvivit.metrics.captions import captions
from fastvivit.metrics.choice import multiple_choice
from fastvivit.metrics.cider import cider, cider_scores
from fastvivit.metrics.retrieval import retrieval
from fastvivit.metrics.rouge import rouge_l, rouge_l_scores
from fastvivit.metrics.tokens import ptb_tokens, rouge_tokens

__all__ = [
    "bleu",
    "bleu_scores",
    "captions",
    "cider",
    "cider_scores",
    "multiple_choice",
    "ptb_tokens",
    "retrieval",
    "rouge_l",
    "rouge_l_scores",
    "rouge_tokens",
]
