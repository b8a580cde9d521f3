"""Caption scores against pycocoevalcap's and rouge-score's, from a file and, where they are installed, themselves."""

import json
import warnings
from functools import cache

import pytest

import fastvivit as fv
from tests.metrics import cases, packages
from tests.metrics.make_expected import EXPECTED

M = fv.metrics
SEEDS = range(cases.CORPORA)
NAMES = ("cider", "rouge_l", "bleu_1", "bleu_2", "bleu_3", "bleu_4")
FEW = pytest.mark.filterwarnings("ignore:cider. document frequencies")


@cache
def expected():
    return json.loads(EXPECTED.read_text(encoding="utf-8"))


def close(value):
    return pytest.approx(value, rel=1e-9, abs=1e-9)


def ours(hypotheses, references):
    """For each of NAMES the corpus's score and the clips'."""
    both = (hypotheses, references)
    found = {"cider": (M.cider(*both), M.cider_scores(*both)), "rouge_l": (M.rouge_l(*both), M.rouge_l_scores(*both))}
    return found | {f"bleu_{n}": (M.bleu(*both, n), M.bleu_scores(*both, n)) for n in (1, 2, 3, 4)}


def ours_f1(corpus, multiple, tokenize):
    return M.rouge_l(*corpus, flavour="rouge_score", multiple=multiple, tokenize=tokenize)


@FEW
def test_coco_scores_are_the_files():
    rows = expected()["coco"]
    assert len(rows) == len(SEEDS) >= 200
    for seed, row in zip(SEEDS, rows, strict=True):
        found = ours(*cases.corpus(seed))
        assert [found[name][0] for name in NAMES] + [found[name][1][-1] for name in NAMES] == close(row), seed


@pytest.mark.parametrize(
    ("key", "make", "tokenize"), [("spaces", cases.corpus, False), ("tokens", cases.raw_corpus, True)]
)
def test_rouge_score_is_the_files(key, make, tokenize):
    rows = expected()[f"rouge_score_{key}"]
    assert len(rows) == len(SEEDS) >= 200
    for seed, row in zip(SEEDS, rows, strict=True):
        got = [ours_f1(make(seed), multiple, tokenize) for multiple in ("average", "best")]
        assert got == close(row), seed
        assert ours_f1(make(seed), None, tokenize) == got[0]


def test_the_cases_tell_scores_apart():
    """Scores are spread, so that agreement means something."""
    for column in zip(*expected()["coco"], strict=True):
        assert len(set(column)) > 100
    assert sum(average != best for average, best in expected()["rouge_score_tokens"]) > 100


@FEW
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_coco_scores_are_the_packages_clip_by_clip():
    pytest.importorskip("pycocoevalcap.cider.cider")
    for seed in range(1000, 1200):
        corpus = cases.corpus(seed)
        found = ours(*corpus)
        for name, (score, scores) in packages.coco(*corpus).items():
            assert found[name][0] == close(score), (seed, name)
            assert found[name][1] == close(scores), (seed, name)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("make", "tokenize"), [(cases.corpus, False), (cases.raw_corpus, True)])
def test_rouge_score_is_the_packages_clip_by_clip(make, tokenize):
    pytest.importorskip("rouge_score.rouge_scorer")
    for seed in range(1000, 1200):
        corpus = make(seed)
        each, best = packages.rouge_f1(*corpus, tokenize=tokenize)
        how = {"flavour": "rouge_score", "tokenize": tokenize}
        assert M.rouge_l_scores(*corpus, **how) == close([sum(row) / len(row) for row in each])
        assert M.rouge_l_scores(*corpus, multiple="best", **how) == close(best)


def test_one_clip_by_hand():
    hypotheses, references = ["a cat sat"], [["a cat sat down", "the cat sat"]]
    # L 3 and 2: P = max(3/3, 2/3), R = max(3/4, 2/3).
    assert M.rouge_l(hypotheses, references) == pytest.approx(2.44 * 0.75 / (0.75 + 1.44))
    assert ours_f1((hypotheses, references), "average", False) == pytest.approx((6 / 7 + 4 / 6) / 2)
    assert ours_f1((hypotheses, references), "best", False) == pytest.approx(6 / 7)
    assert M.bleu(hypotheses, references, 1) == pytest.approx(1)
    assert M.bleu(["a a a"], references, 1) == pytest.approx(1 / 3)
    # The closest length is 4 of 2 and 4 words for 3 as the tie goes to the shorter: no penalty.
    assert M.bleu(["x y z"], [["x y", "x y z w"]], 2) == pytest.approx(1)
    assert M.bleu(["x y"], [["x y z w"]], 2) == pytest.approx(2.718281828459045**-1)


def test_tokenize_is_tokenising_first():
    hypotheses = [cases.caption(i) for i in range(24)]
    references = [[cases.caption(i + 3), cases.caption(i + 50)] for i in range(24)]
    said = [" ".join(M.ptb_tokens(text)) for text in hypotheses]
    truth = [[" ".join(M.ptb_tokens(text)) for text in several] for several in references]
    for score in (M.cider, M.rouge_l, M.bleu, M.cider_scores, M.rouge_l_scores, M.bleu_scores):
        assert score(hypotheses, references, tokenize=True) == score(said, truth)
    assert M.bleu(hypotheses, references, tokenize=True) != M.bleu(hypotheses, references)


def test_captions_names_flavours_and_tokens():
    hypotheses = [cases.caption(i) for i in range(20)]
    references = [[cases.caption(i + 7), cases.caption(i)] for i in range(20)]
    for tokenize, tokens, f1_tokens in ((False, "spaces", "spaces"), (True, "fastvivit_ptb", "rouge_score")):
        got = M.captions(hypotheses, references, tokenize=tokenize)
        assert got == {
            "clips": 20,
            "cider_d": M.cider(hypotheses, references, tokenize=tokenize),
            "rouge_l_coco": M.rouge_l(hypotheses, references, tokenize=tokenize),
            "rouge_l_f1": ours_f1((hypotheses, references), "average", tokenize),
            **{f"bleu_{n}": M.bleu(hypotheses, references, n, tokenize=tokenize) for n in (1, 2, 3, 4)},
            "tokens": tokens,
            "rouge_l_f1_tokens": f1_tokens,
        }


def test_few_clips_are_warned_of():
    texts = [f"clip number {i}" for i in range(20)]
    with pytest.warns(UserWarning, match="cider: document frequencies of 19 clips") as caught:
        M.cider(texts[:19], [[text] for text in texts[:19]])
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="of 1 clips"):
        assert M.cider_scores(texts[:1], [texts[:1]]) == [0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # The same text as its only reference scores 10 where the four orders have a word of its own.
        assert M.cider(["x " + text for text in texts], [["x " + text] for text in texts]) == pytest.approx(10)


@FEW
def test_empty_texts_score_nothing():
    assert M.cider(["", "b"], [["a b"], [""]]) == 0
    assert M.bleu([""], [["a b"]]) == M.bleu([""], [[""]]) == 0
    assert M.rouge_l(["", "b"], [["a b"], [""]]) == 0
    assert M.rouge_l([""], [[""]]) == 1  # pycocoevalcap's: one empty token each
    assert M.rouge_l([" . "], [["!"]], tokenize=True) == 1
    assert ours_f1(([""], [[""]]), "average", False) == 0


def test_refuses():
    for score in (M.cider, M.rouge_l, M.bleu, M.cider_scores, M.rouge_l_scores, M.bleu_scores, M.captions):
        for args, message in (
            (([], []), "hypotheses: wanted at least one, got none"),
            (("a b", [["a"]] * 3), "hypotheses: wanted a str for each clip, got one str"),
            (([1, "a"], [["a"]] * 2), "hypotheses: wanted a str for each clip, got list of int, str"),
            ((["a", "b"], [["a"]]), "references: wanted a list for each of 2 hypotheses, got 1"),
            ((["a"], "a"), "references: wanted a list for each of 1 hypotheses, got one str"),
            ((["a", "b"], [["a"], "b"]), "references: wanted a list of str for each clip, got one str for clip 1"),
            ((["a"], [[2]]), "references: wanted a list of str for each clip, got list of int for clip 0"),
            ((["a", "b"], [["a"], []]), "references: wanted at least one for each clip, got none for clip 1"),
        ):
            with pytest.raises(ValueError) as caught:
                score(*args)
            assert message in str(caught.value)
    one = (["a"], [["a"]])
    for call, message in (
        (lambda: M.bleu(*one, 5), "n: wanted 1 to 4, got 5"),
        (lambda: M.bleu_scores(*one, 0), "n: wanted 1 to 4, got 0"),
        (lambda: M.rouge_l(*one, flavour="f1"), "flavour: wanted 'coco' or 'rouge_score', got 'f1'"),
        (lambda: M.rouge_l(*one, multiple="best"), "multiple: wanted None, as 'coco'"),
        (
            lambda: M.rouge_l(*one, flavour="rouge_score", multiple="max"),
            "multiple: wanted 'average' or 'best', got 'max'",
        ),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        assert message in str(caught.value)
