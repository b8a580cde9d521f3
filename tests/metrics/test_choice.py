"""Multiple choice against a loop."""

import pytest
import torch

from fastvivit.metrics import multiple_choice

INF, NAN = float("inf"), float("nan")


def test_accuracy_is_a_loops():
    scores, answers = torch.randn(200, 5), torch.randint(5, (200,))
    right = sum(
        max(range(5), key=row.__getitem__) == a for row, a in zip(scores.tolist(), answers.tolist(), strict=True)
    )
    got = multiple_choice(scores, answers)
    assert got == {"accuracy": pytest.approx(right / 2), "chance": pytest.approx(20), "count": 200}
    assert 0 < right < 200
    assert multiple_choice(scores.double(), answers.tolist()) == got


def test_ties_and_nan_count_against():
    for row, accuracy in (
        ([1.0, 0.0, 0.0], 100),
        ([1.0, 1.0, 0.0], 0),
        ([0.0, 0.0, 0.0], 0),
        ([NAN, 0.0, 0.0], 0),
        ([1.0, NAN, 0.0], 0),
        ([NAN, -INF, -INF], 0),
        ([-5.0, -INF, -INF], 100),
        ([-5.0], 100),
        ([NAN], 0),
    ):
        assert multiple_choice(torch.tensor([row]), [0])["accuracy"] == accuracy, row


def test_fewer_options():
    scores = torch.tensor([[0.0, 1.0, -INF, -INF], [3.0, 1.0, 2.0, 0.0]])
    assert multiple_choice(scores, [1, 2]) == {"accuracy": 50, "chance": (50 + 25) / 2, "count": 2}


def test_refuses():
    two = torch.zeros(2, 3)
    for args, message in (
        (([[0.0]], [0]), "scores: wanted a tensor, got list"),
        ((torch.zeros(3), [0]), "scores: wanted 2 dimensions"),
        ((two.long(), [0, 0]), "scores: wanted float32"),
        ((torch.zeros(0, 3), []), "scores: wanted (questions, options), both above 0"),
        ((two, [0]), "answers: wanted one for each of 2 questions"),
        ((two, [0, 3]), "answers: wanted options in 0..2, got 0 to 3"),
        ((two, []), "answers: wanted one for each of 2 questions, got shape (0,)"),
        ((two, [None, 0]), "answers: wanted integers, got None"),
        ((two, [-1, 0]), "answers: wanted options in 0..2"),
        ((two, [0.0, 1.0]), "answers: wanted integers, got float32"),
        ((two, [True, False]), "answers: wanted integers, got bool"),
        ((torch.tensor([[0.0, 1.0], [0.0, -INF]]), [0, 1]), "answers: wanted an option of its question, got 1 for"),
    ):
        with pytest.raises(ValueError) as caught:
            multiple_choice(*args)
        assert message in str(caught.value)
