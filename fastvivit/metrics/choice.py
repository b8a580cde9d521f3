"""Multiple choice by the log-likelihood of each option."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastvivit import _checks


def multiple_choice(scores: Tensor, answers: Sequence[int] | Tensor) -> dict[str, float]:
    """Share of questions whose right option scores above every other, in percent.

    A tie is a miss, so that equal scores are as bad as they should be; so is a NaN among the options.

    Args:
        scores: (B, n) floating point, the larger the likelier, such as ``cap.score(...)``. Rows of questions
            with fewer than n options end in -inf, which is no option.
        answers: (B,) integers, the right option of each question.

    Returns:
        ``accuracy`` and ``chance`` (what guessing gives: the mean of 100 / options) in percent, ``count`` the
        questions.

    Raises:
        ValueError: scores that are not a floating-point matrix with a question and an option, answers that
            are not one integer in 0..n-1 for each question, or that point at -inf.
    """
    _checks.require_tensor("scores", scores, (2,))
    questions, options = scores.shape
    if 0 in scores.shape:
        raise ValueError(f"scores: wanted (questions, options), both above 0, got shape {tuple(scores.shape)}")
    if not isinstance(answers, Tensor) and any(answer is None for answer in answers):
        raise ValueError("answers: wanted integers, got None; leave out questions whose answer is secret")
    answers = torch.as_tensor(answers, device=scores.device)
    if answers.shape != (questions,):
        raise ValueError(f"answers: wanted one for each of {questions} questions, got shape {tuple(answers.shape)}")
    if answers.is_floating_point() or answers.is_complex() or answers.dtype == torch.bool:
        raise ValueError(f"answers: wanted integers, got {str(answers.dtype).removeprefix('torch.')}")
    if int(answers.min()) < 0 or int(answers.max()) >= options:
        raise ValueError(
            f"answers: wanted options in 0..{options - 1}, got {int(answers.min())} to {int(answers.max())}"
        )
    answers = answers.long().unsqueeze(1)
    right = scores.gather(1, answers)
    absent = scores == float("-inf")
    if absent.gather(1, answers).any():
        place = int(absent.gather(1, answers).view(-1).nonzero()[0])
        raise ValueError(
            f"answers: wanted an option of its question, got {int(answers[place])} for question {place}, "
            "which has a score of -inf there"
        )
    ahead = ~(scores < right)
    ahead.scatter_(1, answers, right.isnan())
    return {
        "accuracy": 100.0 * (~ahead.any(1)).double().mean().item(),
        "chance": 100.0 * (1.0 / (~absent).sum(1).double()).mean().item(),
        "count": float(questions),
    }
