"""Words that a text tower from scratch learns, and what is said of those it can't read."""

import re
from dataclasses import replace

import pytest
import torch

import fastvivit as fv
from fastvivit.data import read_manifest, write_manifest
from fastvivit.train import fit
from fastvivit.train.build import scratch_tower
from fastvivit.train.tables import TextConfig
from fastvivit.train.words import learn_words, unread

NARROW = TextConfig(width=16, depth=1, heads=2, max_length=8)


def states(tower, text):
    with torch.no_grad():
        return tower.eval()(tower.tokenize([text]))


@pytest.fixture
def tower():
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    return scratch_tower(NARROW, ["The digit nine", "the digit six"])


def test_new_words_are_learned_and_old_ones_stay(tower):
    before, ids = states(tower, "the digit six"), tower.tokenizer("the digit six")["input_ids"]
    assert learn_words(tower, ["the digit six moves up", "Up, then left"]) == [",", "left", "moves", "then", "up"]
    assert tower.tokenizer("the digit six")["input_ids"] == ids
    assert torch.equal(states(tower, "the digit six"), before)
    assert tower.embeddings.weight.shape == (len(tower.tokenizer), 16)
    assert tower.embeddings.weight[-5:].std() > 0.1  # drawn as the others were, and not zero or a mean
    assert tower.tokenizer.unk_token_id not in tower.tokenizer("then the digit nine moves left, up")["input_ids"]
    assert learn_words(tower, ["the digit six moves up"]) == []


def test_a_tokenizer_of_pieces_learns_nothing(tower):
    from tokenizers.models import WordPiece

    tower.tokenizer.backend_tokenizer.model = WordPiece({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]")
    rows = tower.embeddings.weight
    assert learn_words(tower, ["anything"]) == [] and tower.embeddings.weight is rows


def test_what_is_cut_and_what_is_unknown_is_said(tower):
    assert unread(tower, ["the digit nine", "the digit six"]) == []
    assert unread(tower, ["the digit nine"] * 3 + ["the six " * 6]) == [
        "text: 25% of the captions have more than 8 tokens, and are cut (text.max_length)"
    ]
    (said,) = unread(tower, ["the digit seven", "the digit six", "the digit"] * 10_000)
    share = int(re.fullmatch("text: ([0-9]+)% of the words are unknown to the text tower", said)[1])
    assert 11 <= share <= 14  # one of eight


def test_a_stage_learns_the_words_of_its_data(config, digits, tmp_path, change, capsys):
    short = tmp_path / "short.jsonl"
    entries = read_manifest(digits[0])
    write_manifest(short, [replace(entry, captions=("the digit",), twin=None) for entry in entries])
    first = change(config, steps=3, data={"train": str(short), "heldout": None})
    fit(first, tmp_path / "first", quiet=True)
    begun = fv.load_pretrained(tmp_path / "first" / "model")
    again = change(config, model=None, start=str(tmp_path / "first"), steps=3)
    fit(again, tmp_path / "again")
    assert "unknown" not in capsys.readouterr().err
    grown = fv.load_pretrained(tmp_path / "again" / "model")
    assert len(grown.text.tokenizer) == grown.text.embeddings.weight.shape[0] > len(begun.text.tokenizer)
    vectors = grown.eval().encode_text(["the digit nine moves up", "the digit six moves up"])
    assert not torch.equal(*vectors)
    # A frozen tower would only get noise, so it stays as it is, and that is said.
    frozen = change(again, tuning={"method": "all", "text": False})
    fit(frozen, tmp_path / "frozen")
    assert "% of the words are unknown to the text tower" in capsys.readouterr().err
    kept = fv.load_pretrained(tmp_path / "frozen" / "model").text.embeddings.weight
    assert torch.equal(kept, begun.text.embeddings.weight)
