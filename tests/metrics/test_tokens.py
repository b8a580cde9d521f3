"""Our tokenisers against Stanford's tokens, from a file, and rouge-score's."""

import json
import shutil

import pytest

from fastvivit.metrics import ptb_tokens, rouge_tokens
from tests.metrics import cases, packages
from tests.metrics.make_expected import EXPECTED


def test_captions_part_as_stanfords_do():
    expected = json.loads(EXPECTED.read_text(encoding="utf-8"))["ptb"]
    assert len(expected) == cases.CORPORA >= 200
    for seed, tokens in enumerate(expected):
        assert " ".join(ptb_tokens(cases.caption(seed))) == tokens, cases.caption(seed)


def test_other_captions_part_as_stanfords_do():
    pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    if shutil.which("java") is None:
        pytest.skip("needs Java")
    captions = [cases.caption(seed) for seed in range(1000, 1500)]
    assert [" ".join(ptb_tokens(text)) for text in captions] == packages.ptb(captions)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", ""),
        (" .,;: ", ""),
        ("A man's dog ISN'T barking;\nhe won't.", "a man 's dog is n't barking he wo n't"),
        ("“It’s” – fine…", "it 's fine"),
        ("(left) [x] {y}", "-lrb- left -rrb- -lsb- x -rsb- -lcb- y -rcb-"),
        ("cannot gonna 'tis", "can not gon na 't is"),
        ("a 2-year-old in the U.S. at 5 p.m. with Mr. Smith.", "a 2-year-old in the u.s. at 5 p.m. with mr. smith"),
        ("$5.00, 1,000 and 50%", "$ 5.00 1,000 and 50 %"),
        ("wow 😀 ÉCOLE 漢字", "wow école 漢字"),
        ("can't 32.7k", "ca n't 32.7 k"),
        ("<b>bold</b> AT&T a&b", "<b> bold </b> at&t a & b"),
    ],
)
def test_one_by_one(text, tokens):
    assert ptb_tokens(text) == tokens.split()


def test_a_long_run_of_one_character_takes_no_time():
    """No pattern goes back and forth: these would take minutes in one that did."""
    for one in ("a", "1", "a.", "1,", "'", "-", "<a ", "a-", "http://", "n't", "@a", "1-a", "#"):
        ptb_tokens(one * 4000 + "x")


def test_rouge_tokens():
    assert rouge_tokens("The CAT's café, 3.5!") == ["the", "cat", "s", "caf", "3", "5"]
    assert rouge_tokens(" ") == []
