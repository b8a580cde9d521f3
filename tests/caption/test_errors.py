"""Everything that is refused, by the name of the argument."""

import pytest
import torch
import transformers
from torch import nn

import fastvivit as fv
from fastvivit.tubes import TUBEVIT
from tests.caption import tiny

SEEN = tiny.vision()


def made(**changes):
    arguments = {"video": tiny.encoder(), "lm": tiny.language_model(), "tokenizer": tiny.tokenizer()}
    return fv.VideoCaptioner(**(arguments | {"resampler": False} | changes))


def seq2seq():
    fields = {"vocab_size": 300, "d_model": 16, "d_ff": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**fields))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video": nn.Linear(2, 2)}, "video: wanted a ViViT, got Linear"),
        ({"lm": nn.Linear(2, 2)}, "lm: wanted a causal language model of transformers"),
        ({"lm": seq2seq}, "lm: wanted a decoder alone"),
        ({"lm": lambda: tiny.language_model().model}, "lm: wanted a (causal|model with a language-model head)"),
        ({"every": 3}, "every: wanted at most the 2 blocks"),
        ({"every": 0}, "every: wanted a whole number"),
        ({"heads": 0}, "heads: wanted a whole number"),
        ({"head_dim": 0}, "head_dim: wanted a whole number"),
        ({"ff": -1}, "ff: wanted a whole number"),
        ({"ff": True}, "ff: wanted a whole number"),
        ({"resampler": "yes"}, "resampler: wanted True, False or a PerceiverResampler"),
        ({"resampler": lambda: tiny.resampler(in_dim=20)}, "resampler: wanted in_dim = 24"),
        (
            {"video": lambda: tiny.encoder(attention="tubes", tubes=TUBEVIT, frames=32, size=32)},
            "over_time: wanted False",
        ),
        ({"lm": lambda: tiny.language_model(vocab_size=3, pad_token_id=0)}, "tokenizer: wanted start, end and pad"),
    ],
)
def test_what_can_not_be_built(changes, message):
    changes = {k: v() if callable(v) and not isinstance(v, nn.Module) else v for k, v in changes.items()}
    with pytest.raises(ValueError, match=message):
        made(**changes)


def test_a_refusal_leaves_the_models_alone():
    lm, video = tiny.language_model(), tiny.encoder()
    with pytest.raises(ValueError, match="heads"):
        made(lm=lm, video=video, heads=0)
    assert all(p.requires_grad for p in (*lm.parameters(), *video.parameters()))
    assert not any("forward" in vars(module) for module in lm.modules())


TEXTS = ["a", "b", "c"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda cap: cap(SEEN, "abc"), "texts: wanted a list of strings"),
        (lambda cap: cap(SEEN, []), "texts: wanted a list of strings"),
        (lambda cap: cap(SEEN, [1, 2, 3]), "texts: wanted a list of strings"),
        (lambda cap: cap(SEEN, TEXTS[:2]), "texts: wanted 3 strings, one a clip, got 2"),
        (lambda cap: cap(SEEN, TEXTS, prompts=["a"]), "prompts: wanted a string, or 3 of them"),
        (lambda cap: cap(SEEN, TEXTS, keep=torch.zeros(3, 1, dtype=torch.int64)), "keep: wanted None beside a Vision"),
        (lambda cap: cap(None, TEXTS), "video: wanted clips"),
        (lambda cap: cap(torch.zeros(3, 4), TEXTS), "video: wanted"),
        (
            lambda cap: cap.look(fv.Vision(torch.zeros(1, 2, 5), torch.ones(1, 2, dtype=torch.bool))),
            "video: wanted tokens of width 24",
        ),
        (
            lambda cap: cap(fv.Vision(SEEN.tokens.to("meta"), SEEN.mask.to("meta")), TEXTS),
            "video: wanted a Vision on cpu",
        ),
        (lambda cap: cap(tiny.clips(), TEXTS, mask_ratio=1.5), "mask_ratio: wanted"),
        (lambda cap: cap.generate(SEEN, ["a"]), "prompt: wanted a string, or 3 of them"),
        (lambda cap: cap.generate(SEEN, max_new_tokens=0), "max_new_tokens: wanted a whole number"),
        (lambda cap: cap.generate(SEEN, input_ids=1), "options: wanted those of the language model's generate"),
        (lambda cap: cap.score(SEEN, "a", [TEXTS] * 3, "mean"), "normalise: wanted 'sum' or 'tokens', got 'mean'"),
        (lambda cap: cap.score(SEEN, "a", [TEXTS]), "options: wanted 3 lists of strings"),
        (lambda cap: cap.score(SEEN, "a", [TEXTS, [], TEXTS]), r"options\[1\]: wanted a list of strings"),
        (lambda cap: cap.score(SEEN, "a", [TEXTS, ["a", ""], TEXTS]), "options: wanted strings of at least one token"),
        (lambda cap: cap.score(SEEN, ["a"], [TEXTS] * 3), "prompts: wanted a string, or 3 of them"),
    ],
)
def test_what_can_not_be_asked(call, message):
    cap = tiny.captioner()
    with pytest.raises(ValueError, match=message):
        call(cap)


def test_counts_are_checked_before_any_clip_is_encoded():
    cap = tiny.captioner()
    cap.video.forward = None
    for call in (
        lambda: cap(tiny.clips(), ["a"]),
        lambda: cap.generate(tiny.clips(), ["a"]),
        lambda: cap.score(tiny.clips(), "a", [["b"]]),
    ):
        with pytest.raises(ValueError, match="wanted"):
            call()


def test_hidden_states_of_another_form_are_refused():
    cap = tiny.captioner()
    cap.insertion.width = 31
    with pytest.raises(ValueError, match=r"lm: wanted hidden states \(R, n, 31\) before its blocks, got \(3, "):
        cap(SEEN, TEXTS)
