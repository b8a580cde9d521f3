"""The same captioner in front of many families of language models: shut it is not there, open it is right."""

import copy

import pytest
import torch
from torch.nn import functional as nnf
from transformers import StaticCache

from fastvivit.caption.insertion import seeing
from fastvivit.caption.language import find_blocks, find_head, last_states
from tests.caption import tiny

PROMPTS = ["a red cup", "blue dog falls then left", "cat"]
STATELESS = {"mamba"}
# Copies of rows: beams and samples; a new seed for the sampling.
WAYS = [
    {"do_sample": False},
    {"do_sample": False, "num_beams": 3},
    {"do_sample": True, "top_k": 0, "num_return_sequences": 2},
    {"do_sample": False, "cache_implementation": "static", "disable_compile": True},
    {"do_sample": False, "use_cache": False},
]
pytestmark = pytest.mark.filterwarnings("ignore:.*fall(ing|s) back.*")


def written(lm, inputs, way):
    torch.manual_seed(3)
    return lm.generate(**inputs, max_new_tokens=5, pad_token_id=0, **way)


def ways(name):
    return [way for way in WAYS if not (name in STATELESS and "cache_implementation" in way)]


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_shut_gates_are_the_bare_model_to_the_bit_and_open_ones_are_not(name):
    bare = tiny.language_model(name)
    cap = tiny.captioner(name, lm=copy.deepcopy(bare), opened=False)
    inputs, media = tiny.left_padded(cap, PROMPTS), cap.look(tiny.clips())
    with torch.no_grad():
        with seeing(cap.insertion, media):
            assert torch.equal(cap.lm(**inputs).logits, bare(**inputs).logits)
        # ``generate`` of the captioner keeps keys, and attends to them another way.
        media.kept = True
        for way in ways(name)[: None if name in ("llama", "gpt2", "opt_projected", "qwen2") else 1]:
            want = written(bare, inputs, way)
            with seeing(cap.insertion, media):
                assert torch.equal(written(cap.lm, inputs, way), want)
        tiny.open_gates(cap)
        media = cap.look(tiny.clips())
        with seeing(cap.insertion, media):
            opened = cap.lm(**inputs).logits
        assert (opened - bare(**inputs).logits)[inputs["attention_mask"].bool()].abs().max() > 1e-3
        assert torch.equal(cap.lm(**inputs).logits, bare(**inputs).logits)


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_step_by_step_is_the_whole_text_at_once(name):
    # These of transformers are themselves NaN in float64 for padding on the left: the mask overflows in a softmax.
    dtype = torch.float32 if name in ("gemma2", "bloom", "mpt") else torch.float64
    cap = tiny.captioner(name).to(dtype)
    inputs, seen = tiny.left_padded(cap, PROMPTS), tiny.vision(dtype=dtype)
    for static in (False, True)[: 1 if name in STATELESS else 2]:
        media = cap.look(seen)
        media.kept = True
        options = {"cache_implementation": "static"} if static else {}
        with torch.no_grad():
            with seeing(cap.insertion, media):
                out = cap.lm.generate(
                    **inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0, output_logits=True,
                    return_dict_in_generate=True, disable_compile=True, **options,
                )  # fmt: skip
            ids = out.sequences[:, :-1]
            mask = nnf.pad(inputs["attention_mask"], (0, 3), value=1)
            for row in range(3):
                real = mask[row].bool()
                with seeing(cap.insertion, cap.look(seen[row])):
                    whole = cap.lm(input_ids=ids[row : row + 1, real], use_cache=False).logits[0, -4:]
                steps = torch.stack(out.logits, 1)[row].double()
                # Some families keep norms, angles or recurrent states in float32.
                torch.testing.assert_close(steps, whole.double(), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_the_chunked_loss_is_the_cross_entropy_of_the_models_own_logits(name):
    cap = tiny.captioner(name)
    head, blocks = find_head(cap.lm), find_blocks(cap.lm)
    assert head is not None and len(cap.layers) == len(blocks) == 2
    if name == "gemma2":
        assert head.softcap == 0.5
    if name == "granite":
        assert head.scale == 1 / 3
    texts = ["a red cup", "dog falls then rises then falls", "cat"]
    seen = tiny.vision()
    loss = cap(seen, texts, prompts="the")
    batch = cap.texts.targets(["the"] * 3, texts, torch.device("cpu"), ended=True)
    with torch.no_grad(), seeing(cap.insertion, cap.look(seen)):
        logits = cap.lm(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.float()
    want = nnf.cross_entropy(logits.flatten(0, 1)[batch.index], batch.target)
    torch.testing.assert_close(loss, want, rtol=1e-5, atol=1e-6)


class Odd(torch.nn.Module):
    """A head that is no linear layer."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, x):
        return self.linear(x).sin()


@pytest.mark.parametrize("how", ["module", "forward"])
def test_an_unusual_head_gives_its_logits_whole(how, monkeypatch):
    lm = tiny.language_model()
    if how == "module":
        lm.set_output_embeddings(Odd(lm.lm_head))
    else:
        plain = type(lm.lm_head).forward
        monkeypatch.setattr(lm.lm_head, "forward", lambda x: plain(lm.lm_head, x).sin(), raising=False)
        original = type(lm).forward

        def squared(*args, **kwargs):
            out = original(lm, *args, **kwargs)
            out.logits = out.logits.square()
            return out

        monkeypatch.setattr(lm, "forward", squared, raising=False)
    cap = tiny.captioner(lm=lm)
    assert find_head(lm) is None
    seen, batch = tiny.vision((3,)), cap.texts.targets([""], ["a red cup"], torch.device("cpu"), ended=True)
    with torch.no_grad(), seeing(cap.insertion, cap.look(seen)):
        logits = lm(input_ids=batch.input_ids).logits
    loss = cap(seen, ["a red cup"])
    torch.testing.assert_close(loss, nnf.cross_entropy(logits.flatten(0, 1)[batch.index], batch.target))
    loss.backward()
    assert all(p.grad is not None for layer in cap.layers for p in layer.parameters())


def test_the_cap_is_found_where_it_hardly_shows():
    lm = tiny.language_model("gemma2", final_logit_softcapping=30.0)
    assert find_head(lm).softcap == 30.0
    ids = torch.arange(6).unsqueeze(0)
    with torch.no_grad():
        logits = find_head(lm).logits(lm.lm_head(last_states(lm, ids, torch.ones_like(ids))))
    torch.testing.assert_close(logits, lm(input_ids=ids).logits.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["gemma2", "granite", "cohere", "llama"])
def test_the_head_is_found_under_autocast(name):
    lm = tiny.language_model(name)
    want = find_head(lm)
    with torch.autocast("cpu", torch.bfloat16):
        found = find_head(lm)
    assert (found.scale, found.softcap) == (want.scale, want.softcap)


def test_a_model_that_is_its_own_base_and_minds_a_mask_has_a_head(monkeypatch):
    # Gemma 3 of transformers 4, DeepSeek-V3 of transformers 4 with eager attention.
    lm = tiny.language_model()
    want = find_head(lm)
    monkeypatch.setattr(type(lm), "base_model_prefix", "language_model")
    forward = type(lm.model).forward

    def minding(self, input_ids=None, attention_mask=None, **kwargs):
        out = forward(self, input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        out[0].mul_(1 if attention_mask is not None else 2)
        return out

    monkeypatch.setattr(type(lm.model), "forward", minding)
    assert find_head(lm).scale == want.scale == 1.0


def test_a_static_cache_is_a_static_cache():
    cap = tiny.captioner()
    seen = []
    hook = cap.lm.model.register_forward_pre_hook(lambda m, a, k: seen.append(k["past_key_values"]), with_kwargs=True)
    dynamic = cap.generate(tiny.clips(), PROMPTS, 5)
    assert not any(isinstance(cache, StaticCache) for cache in seen)
    assert cap.generate(tiny.clips(), PROMPTS, 5, cache_implementation="static") == dynamic
    assert isinstance(seen[-1], StaticCache)
    hook.remove()
