"""Prompts and texts as ids, against the tokenizer's own ids of the whole."""

import contextlib

import pytest
import torch
import transformers

from fastvivit.caption.texts import Texts
from tests.caption import tiny

CPU = torch.device("cpu")
KINDS = ["words", "bytes", "pieces"]


def rows_of(batch):
    """(what stands before, targets) of each text."""
    rows, at = [], 0
    flat = batch.input_ids.flatten()
    for row, count in enumerate(batch.counts):
        index, target = batch.index[at : at + count], batch.target[at : at + count]
        assert (index // batch.input_ids.shape[1] == row).all()
        start = int(index[0]) % batch.input_ids.shape[1] + 1 if count else 0
        # Each target is the token behind its place, but where the text ends there.
        assert torch.equal(flat[index + 1], target)
        rows.append((batch.input_ids[row, :start].tolist(), target.tolist()))
        at += count
    return rows


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", ["a photo of", "a photo of ", "a photo of  ", "the:\n", "the"])
def test_a_text_is_tokenised_with_its_prompt(kind, prompt):
    tokenizer = tiny.tokenizer(kind)
    texts = Texts(tokenizer, 64)
    batch = texts.targets([prompt], ["red cup"], CPU, ended=True)
    ((head, tail),) = rows_of(batch)
    joined = prompt + ("" if prompt[-1].isspace() else " ") + "red cup"
    assert head + tail == tokenizer(joined)["input_ids"] + [tokenizer.eos_token_id]
    assert tokenizer.decode(tail, skip_special_tokens=True).strip() == "red cup"
    assert head == texts.prompts([prompt], 8, CPU).input_ids[0].tolist() or prompt.endswith("  ")
    assert len(tail) >= 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", ["", " ", "   "])
def test_without_a_prompt_the_first_token_is_predicted_from_a_start_token(kind, prompt):
    tokenizer = tiny.tokenizer(kind)
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    texts = Texts(tokenizer, 64)
    ((head, tail),) = rows_of(texts.targets([prompt], ["red cup"], CPU, ended=True))
    assert head == [start] == texts.prompts([prompt], 8, CPU).input_ids[0].tolist()
    assert tail == [*tokenizer("red cup", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def test_padding_and_counts():
    texts = Texts(tiny.tokenizer(), 64)
    batch = texts.targets(["the", "", "a photo of"], ["cat", "red cup falls then rises", "dog"], CPU, ended=False)
    assert batch.counts == [1, 5, 1] and batch.input_ids.shape == (3, 6)
    assert batch.attention_mask.sum(1).tolist() == [2, 6, 4]
    assert (batch.input_ids[batch.attention_mask == 0] == texts.pad).all()
    left = texts.prompts(["the", "a photo of"], 8, CPU)
    assert left.attention_mask.tolist() == [[0, 0, 1], [1, 1, 1]] and left.input_ids[0, 0] == texts.pad


def test_long_prompts_lose_their_beginning_and_long_texts_their_end():
    texts = Texts(tiny.tokenizer(), 6)
    whole = tiny.tokenizer()("a b c red blue cup", add_special_tokens=False)["input_ids"]
    assert texts.prompts(["a b c red blue cup"], 2, CPU).input_ids.tolist() == [whole[-4:]]
    assert texts.prompts(["a b c"], 99, CPU).input_ids.shape == (1, 1)
    ((head, tail),) = rows_of(texts.targets(["a b c red"], ["blue cup dog"], CPU, ended=False))
    assert head == whole[1:4] and len(tail) == 3
    ((head, tail),) = rows_of(texts.targets(["a b c"], ["red blue cup dog falls rises then"], CPU, ended=True))
    assert head == whole[2:3] and tail[:3] == whole[3:] and len(tail) == 5


def test_the_tokenizers_own_start_outlives_a_cut_and_nothing_is_said_of_it(caplog):
    tokenizer = tiny.tokenizer("pieces")
    texts, prompt = Texts(tokenizer, 8), " ".join(["red cup"] * 50)
    end = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert len(end) > tokenizer.model_max_length
    caplog.clear()
    tokenizer.deprecation_warnings.clear()
    with transformers_logs(caplog):
        start = [tokenizer.bos_token_id]
        assert texts.prompts([prompt], 3, CPU).input_ids.tolist() == [start + end[-4:]]
        assert texts.prompts([prompt], 7, CPU).input_ids.tolist() == [end[-1:]]
        ((head, tail),) = rows_of(texts.targets([prompt], ["dog"], CPU, ended=True))
    assert head == (start + end)[:1] + end[-(8 - len(tail) - 1) :] and len(head + tail) == 8
    assert not caplog.records


@contextlib.contextmanager
def transformers_logs(caplog):
    """Transformers keeps its records from the root logger."""
    logger = transformers.utils.logging.get_logger("transformers")
    logger.addHandler(caplog.handler)
    try:
        yield
    finally:
        logger.removeHandler(caplog.handler)


@pytest.mark.parametrize("end", [0, 3])
def test_padding_without_a_pad_token_is_the_end_token(end):
    made = tiny.tokenizer("bytes")
    assert made.pad_token_id is None and Texts(made, 64).pad == made.eos_token_id == 0
    bare = transformers.PreTrainedTokenizerFast(tokenizer_object=tiny.tokenizer().backend_tokenizer)
    with pytest.raises(ValueError, match="tokenizer: wanted one with an end or a start token"):
        Texts(bare, 64)
    names = {0: "<pad>", 3: "</s>"}
    only = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tiny.tokenizer().backend_tokenizer, bos_token="<s>", eos_token=names[end]
    )
    assert Texts(only, 64).pad == end
