"""Multiple choice by log-likelihood."""

import json

import pytest
import torch

import fastvivit as fv
from fastvivit.evaluation import Selected, compare, multiple_choice
from fastvivit.modular import CaptionAggregator, ChatModel, FrameSelector
from tests.tiny_captioner import make_captioner, make_lm, make_tokenizer


def question(name, options, answer, text="which way ?"):
    extra = {"question": text, "options": options} | ({} if answer is None else {"answer": answer})
    return (str(name), ["x"], {"extra": extra})


def letters(option, normalise):
    """A log-likelihood of -1 a letter, of a token a word."""
    total = -float(sum(len(word) for word in option.split()))
    return total / len(option.split()) if normalise == "tokens" else total


def test_the_likeliest_option_by_sum_or_by_token(manifest, teller, tmp_path):
    options = ["up down", "bottom"]  # 6 letters each... by token 3 against 6
    path = manifest(
        question(0, ["ab cd", "abc"], 1),
        question(1, ["ab cd", "abc"], 0),
        question(2, ["longest of all", "ab", "a"], 2),
        question(3, options, 0),
        question(4, ["a", "b c"], None),
    )
    sums = multiple_choice(teller(likes=letters), path, predictions=tmp_path / "said.jsonl")
    means = multiple_choice(teller(likes=letters), path, "tokens")
    # Sums: "abc" twice, so one right and one wrong; "a"; a tie of 6 letters each is a miss.
    assert sums["accuracy"] == 50.0 and sums["count"] == 4 and sums["clips"] == 5
    # By token: "ab cd" at 2 a word; "a"; "up down" at 3.
    assert means["accuracy"] == 75.0
    assert sums["chance"] == pytest.approx((50 + 50 + 100 / 3 + 50) / 4)
    rows = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert [row["prediction"] for row in rows] == [1, 1, 2, 0, 0] and rows[4]["answer"] is None
    assert rows[2]["scores"] == [-12.0, -2.0, -1.0]


def test_the_template_words_the_question(manifest, teller):
    path, cap = manifest(question(0, ["a", "b c"], 0, "what {is} it?")), teller(likes=letters)
    multiple_choice(cap, path)
    multiple_choice(cap, path, template="{json} Q: {question}")
    assert cap.prompts == ["Question: what {is} it? Answer:", "{json} Q: what {is} it?"]


def test_a_real_captioner_picks_by_log_likelihood(manifest):
    cap = make_captioner(frames=8)
    options = [["up", "the digit moves down", "left then right"], ["two", "one"], ["a", "the", "right"]]
    path = manifest(*(question(i, several, 0) for i, several in enumerate(options)))
    for normalise in ("sum", "tokens"):
        found = multiple_choice(cap, path, normalise, "which {question}", mask_ratio=0.0)
        right = []
        for number, several in enumerate(options):
            video = fv.data.read_clip(fv.data.read_manifest(path)[number].video, 8, size=32)[None]
            scores = cap.score(video, "which which way ?", [several], normalise)[0]
            right.append(int(scores.argmax()) == 0)
        assert found["accuracy"] == pytest.approx(100 * sum(right) / 3)


def test_three_systems_answer(manifest, teller):
    path = manifest(question(0, ["up", "down"], 0), question(1, ["up", "down", "left"], 2, "who ?"))
    looked = []

    def scorer(frames, query):
        looked.append(query)
        return torch.zeros(len(frames))

    chat = ChatModel(make_lm(make_tokenizer(), 512), make_tokenizer())
    systems = {
        "long": teller(likes=letters),
        "selector": Selected(FrameSelector(scorer, 4), teller(likes=letters), lambda clip, asking: "unused"),
        "chat": CaptionAggregator(lambda clip: "the digit", chat),
        "letter": CaptionAggregator(lambda clip: "the digit", lambda prompt: "C" if "C." in prompt else "A"),
        "mute": CaptionAggregator(lambda clip: "the digit", lambda prompt: "I can't tell"),
    }
    found = compare(systems, path, "multiple_choice")
    assert looked == ["which way ?", "who ?"]
    assert found.scores["letter"]["accuracy"] == 100.0 and found.scores["mute"]["accuracy"] == 0.0
    assert found.scores["mute"]["chance"] == found.scores["long"]["chance"]
    assert found.scores["chat"]["count"] == 2


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"options": ["a", "b"]}, "wanted a string 'question' in every entry, got None in entry 1"),
        ({"question": "?", "options": ["a"]}, "wanted 'options', at least two strings, got ['a'] in entry 1"),
        ({"question": "?", "options": "ab"}, "wanted 'options', at least two strings, got 'ab' in entry 1"),
        ({"question": "?", "options": ["a", "b"], "answer": 2}, "wanted 'answer' in 0..1 or none, got 2 in entry 1"),
        ({"question": "?", "options": ["a", "b"], "answer": "a"}, "wanted 'answer' in 0..1 or none, got 'a' in entry"),
    ],
)
def test_entries_that_ask_nothing_are_refused_before_anything_runs(manifest, teller, extra, words):
    cap = teller(likes=letters)
    with pytest.raises(ValueError) as error:
        multiple_choice(cap, manifest(question(0, ["a", "b"], 0), ("1", ["x"], {"extra": extra})))
    assert words in str(error.value) and not cap.clips


def test_all_answers_secret(manifest, teller):
    found = multiple_choice(teller(likes=letters), manifest(question(0, ["a", "b"], None)))
    assert found["count"] == 0 and "accuracy" not in found and found["clips"] == 1
