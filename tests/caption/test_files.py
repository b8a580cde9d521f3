"""Captioners on disk, copied, taken apart."""

import copy
import pickle

import pytest
import torch
import transformers

import fastvivit as fv
from tests.caption import tiny

OPTIONS = [["red cup", "dog"], ["cat falls"], ["left"]]
FORMS = [{"resampler": "tiny", "ff": 2}, {"resampler": False, "every": 2, "over_time": False}]


def scores(cap):
    return cap.score(tiny.vision(), "the", OPTIONS)


@pytest.mark.parametrize("options", FORMS)
def test_the_new_layers_alone(options, tmp_path):
    cap, other = tiny.captioner(**options), tiny.captioner(opened=False, **options)
    assert not torch.equal(scores(cap), scores(other))
    assert cap.save(tmp_path / "layers") == tmp_path / "layers"
    assert other.load(tmp_path / "layers") is other
    assert torch.equal(scores(cap), scores(other))
    names = [path.name for path in (tmp_path / "layers").iterdir()]
    assert sorted(names) == ["captioner.json", "captioner.safetensors"]


@pytest.mark.parametrize("options", FORMS)
@pytest.mark.parametrize("lm", ["llama", "gpt2"])
def test_a_captioner_whole(options, lm, tmp_path):
    cap = tiny.captioner(lm, **options)
    fv.save_pretrained(cap, tmp_path / "whole")
    again = fv.load_pretrained(tmp_path / "whole")
    assert isinstance(again, fv.VideoCaptioner) and torch.equal(scores(again), scores(cap))
    assert again.generate(tiny.vision(), "the", 4) == cap.generate(tiny.vision(), "the", 4)
    assert again.settings == cap.settings


def test_other_frozen_models_settings_and_files_are_refused(tmp_path):
    cap = tiny.captioner(resampler="tiny")
    cap.save(tmp_path / "layers")
    wrong_lm, wrong_video = tiny.captioner(resampler="tiny"), tiny.captioner(resampler="tiny")
    with torch.no_grad():
        next(wrong_lm.lm.parameters()).view(-1)[0] += 1
        next(wrong_video.video.parameters()).view(-1)[0] += 1
    for other, name in ((wrong_lm, "lm"), (wrong_video, "video")):
        with pytest.raises(ValueError, match=f"{name}: wanted the very weights"):
            other.load(tmp_path / "layers")
        other.load(tmp_path / "layers", check=False)
        assert torch.equal(other.layers[0].attn.q.weight, cap.layers[0].attn.q.weight)
    with pytest.raises(ValueError, match="folder: wanted layers of settings"):
        tiny.captioner(resampler="tiny", ff=1).load(tmp_path / "layers")
    with pytest.raises(ValueError, match="folder: wanted captioner.json"):
        cap.load(tmp_path / "nothing")
    (tmp_path / "layers" / "captioner.safetensors").unlink()
    with pytest.raises(ValueError, match="folder: wanted captioner.safetensors"):
        cap.load(tmp_path / "layers")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda cap: pickle.loads(pickle.dumps(cap))])
def test_copies_are_captioners_of_their_own(copied):
    cap = tiny.captioner(resampler="tiny")
    want = scores(cap)
    other = copied(cap)
    assert torch.equal(scores(other), want)
    with torch.no_grad():
        for layer in other.layers:
            layer.gate.zero_()
    assert not torch.equal(scores(other), want) and torch.equal(scores(cap), want)
    other.remove()
    assert torch.equal(scores(cap), want)


def test_the_language_model_is_what_it_was_while_held_and_after(tmp_path):
    bare = tiny.language_model()
    inside = [(name, set(vars(module))) for name, module in bare.named_modules()]
    lm = copy.deepcopy(bare)
    cap = tiny.captioner(lm=lm, opened=False)
    assert cap.lm is lm and type(lm) is type(bare)
    assert lm.state_dict().keys() == bare.state_dict().keys()
    lm.save_pretrained(tmp_path / "lm")
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "lm")
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), bare.state_dict().values(), strict=True))
    with pytest.raises(ValueError, match="lm: wanted a language model alone"):
        tiny.captioner(lm=lm)
    assert cap.remove() is lm
    assert [(name, set(vars(module))) for name, module in lm.named_modules()] == inside
    second = tiny.captioner(lm=lm)
    want = scores(second)
    # The first one's layers are out already; taking them out again must not touch the second one's.
    assert cap.remove() is lm and torch.equal(scores(second), want)
    for use in (lambda: cap(tiny.vision(), ["a"] * 3), lambda: cap.generate(tiny.vision()), lambda: scores(cap)):
        with pytest.raises(ValueError, match="lm: wanted a language model with the new layers in it"):
            use()


def test_a_new_head_is_the_one_that_is_used():
    cap = tiny.captioner()
    scores(cap)
    cap.lm.resize_token_embeddings(tiny.VOCABULARY + 4, mean_resizing=False)
    with torch.no_grad():
        cap.lm.lm_head.weight.mul_(2)
    batch = cap.texts.targets(["the"], ["red cup"], torch.device("cpu"), ended=False)
    with torch.no_grad(), fv.caption.insertion.seeing(cap.insertion, cap.look(tiny.vision()[0])):
        logp = cap.lm(input_ids=batch.input_ids).logits[0].log_softmax(-1)
    torch.testing.assert_close(scores(cap)[0, 0], logp[batch.index, batch.target].sum(), rtol=1e-4, atol=1e-4)
