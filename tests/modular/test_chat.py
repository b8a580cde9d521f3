"""A chat model through its template, and the choice a reply makes."""

import pytest
import torch

from fastvivit.modular import ChatModel, read_choice
from tests.tiny_captioner import make_lm, make_tokenizer


@pytest.fixture(scope="module")
def chat():
    tokenizer = make_tokenizer()
    return ChatModel(make_lm(tokenizer), tokenizer, max_new_tokens=6)


def wrapped(chat, prompt):
    return chat.tokenizer(f"<user> {prompt} <assistant> ", add_special_tokens=False, return_tensors="pt").input_ids


def test_replies_are_greedy_after_the_template(chat):
    ids = wrapped(chat, "which way ?")
    bare = chat.tokenizer("which way ?", add_special_tokens=False, return_tensors="pt").input_ids
    assert ids.shape[1] == bare.shape[1] + 6  # the template was used
    written = []
    for _ in range(6):
        written.append(int(chat.model(input_ids=ids).logits[0, -1].argmax()))
        if written[-1] == chat.tokenizer.eos_token_id:
            break
        ids = torch.cat([ids, torch.tensor([[written[-1]]])], 1)
    assert chat("which way ?") == chat.tokenizer.decode(written, skip_special_tokens=True).strip() != ""


def test_sampling_that_a_folder_asks_for_is_not_done(chat, recwarn):
    before = chat.model.generation_config
    try:
        chat.model.generation_config = type(before)(
            do_sample=True, temperature=1.7, top_p=0.9, top_k=3, eos_token_id=before.eos_token_id
        )
        assert len({chat("which way ?") for _ in range(5)}) == 1
    finally:
        chat.model.generation_config = before
    assert not recwarn.list


@torch.no_grad()
def test_scores_are_log_likelihoods_of_the_reply(chat):
    options = ["up", "the digit moves down", "left then right"]
    sums, means = chat.score("which way ?", options), chat.score("which way ?", options, "tokens")
    prefix = wrapped(chat, "which way ?")
    for place, option in enumerate(options):
        reply = chat.tokenizer(option, add_special_tokens=False).input_ids
        ids, total = prefix, 0.0
        for token in reply:  # token by token, as it would be written
            total += float(chat.model(input_ids=ids).logits[0, -1].double().log_softmax(-1)[token])
            ids = torch.cat([ids, torch.tensor([[token]])], 1)
        assert float(sums[place]) == pytest.approx(total, abs=1e-4)
        assert float(means[place]) == pytest.approx(total / len(reply), abs=1e-4)


def test_mistakes_are_named(chat):
    with pytest.raises(ValueError, match="tokenizer: wanted one with a chat template"):
        ChatModel(chat.model, make_tokenizer(None))
    with pytest.raises(ValueError, match="max_new_tokens: wanted at least 1"):
        ChatModel(chat.model, chat.tokenizer, 0)
    with pytest.raises(ValueError, match="prompt: wanted at most 122 tokens, which leaves 6 of the model's 128"):
        chat("up " * 200)
    with pytest.raises(ValueError, match="normalise: wanted 'sum' or 'tokens', got 'mean'"):
        chat.score("up", ["down"], "mean")
    for bad in ([], [""]):
        with pytest.raises(ValueError, match="options: wanted at least one, each with tokens"):
            chat.score("up", bad)


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        ("B", 1),
        ("(B)", 1),
        (" B. moves down", 1),
        ("**C**", 2),
        ("C\nBecause it moves left.", 2),
        ("The answer is B.", 1),
        ("The answer is B because it falls.", 1),
        ("Answer: (C)", 2),
        ("I think option A fits, as it rises.", 0),
        ("It could be said that (A) is right.", 0),
        ("It Moves Down, I would say.", 1),
        ("A man who knows says nothing.", None),
        ("Answer: A man who knows", None),
        ("It is (A) or (B).", None),
        ("moves up, then moves down", None),
        ("D", None),
        ("", None),
        ("I can't tell.", None),
    ],
)
def test_a_reply_is_read_as_a_person_would(reply, wanted):
    assert read_choice(reply, ["moves up", "moves down", "moves left"]) == wanted
