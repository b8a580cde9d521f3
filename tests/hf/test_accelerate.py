"""What accelerate puts into a model and restore takes out, and how a forward's arguments reach its modules."""

import inspect
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import fastvivit as fv
import fastvivit.functional as F
from tests.hf.tiny import (
    bare,
    checkpointing,
    clips,
    clone,
    gradients,
    insides,
    near,
    same_gradients,
    transformers,
    videomae,
    vivit,
)

NORM = {"mean": [0.5] * 3, "std": [0.5] * 3}
MAKERS = {"vivit": vivit, "videomae": videomae}
FAMILIES = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


class Pair(nn.Module):
    """A user's module around two models."""

    def __init__(self):
        super().__init__()
        self.first, self.second = vivit(), videomae()

    def forward(self, video):
        return self.first(video).logits, self.second(video).logits


@FAMILIES
def test_restore_leaves_nothing(make):
    model, video = make(), clips()
    want, before = model(video).logits, insides(model)
    kind, names = type(model), list(model.state_dict())
    assert fv.accelerate(model, **NORM) is model
    assert insides(model) != before
    assert type(model) is kind and list(model.state_dict()) == names
    model(video, mask_ratio=0.5)
    assert fv.restore(model) is model
    assert insides(model) == before and torch.equal(model(video).logits, want)
    assert insides(fv.restore(model)) == before


def test_a_forward_that_someone_replaced_before_runs_and_comes_back():
    model, video = vivit(), clips()
    base, ran = bare(model), []
    theirs = base.forward

    def wrapped(*args, **kwargs):
        ran.append(1)
        return theirs(*args, **kwargs)

    base.forward = wrapped
    fv.accelerate(model)
    assert model(video, mask_ratio=0.5).logits.shape == (2, 5) and ran == [1]
    fv.restore(model)
    assert base.forward is wrapped


@FAMILIES
def test_a_second_time_only_changes_mean_and_std(make):
    model, pixels = fv.accelerate(make(), **NORM), torch.randint(256, (2, 4, 3, 32, 32), dtype=torch.uint8)
    held = {name: list(inside) for name, inside in insides(model).items()}
    fv.accelerate(model, mean=[0.0] * 3, std=[1.0] * 3)
    assert {name: list(inside) for name, inside in insides(model).items()} == held
    near(model(pixels).logits, model(pixels / 255).logits)


@FAMILIES
def test_copies_and_pickles_are_models_of_their_own(make):
    model, video, keep = fv.accelerate(make(), **NORM), clips(), F.random_keep(2, 32, 0.5)
    want = model(video, keep=keep).logits
    for copied in (clone(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied(video, keep=keep).logits, want)
        assert inspect.signature(copied.forward) == inspect.signature(model.forward)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(2)
        assert torch.equal(copied(video, keep=keep).logits, want)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.div_(2)
        fv.restore(copied)
        near(copied(video).logits, model(video).logits)
        assert "mask_ratio" not in inspect.signature(copied.forward).parameters
        model(video, mask_ratio=0.5)


@FAMILIES
def test_signature_and_help_show_the_arguments(make):
    model = make()
    before = list(inspect.signature(model.forward).parameters)
    fv.accelerate(model)
    after = list(inspect.signature(model.forward).parameters)
    assert after == [*before[:-1], "mask_ratio", "keep", "generator", before[-1]]
    assert "keep: the tokens to keep" in model.forward.__doc__


def test_a_saved_model_is_one_of_transformers(tmp_path):
    model, video = fv.accelerate(vivit()), clips()
    model.save_pretrained(tmp_path)
    plain = transformers.VivitForVideoClassification.from_pretrained(tmp_path).eval()
    near(plain(video).logits, model(video).logits)


def test_any_module_that_contains_models():
    pair, video, keep = Pair(), clips(), F.random_keep(2, 32, 0.5)
    want = pair(video)
    fv.accelerate(pair)
    for got, plain in zip(pair(video), want, strict=True):
        near(got, plain)
    one, two = pair(video, keep=keep)
    assert torch.equal(one, pair.first(video, keep=keep).logits)
    assert torch.equal(two, pair.second(video, keep=keep).logits)
    assert not torch.equal(one, pair.first(video).logits)


def test_models_within_take_arguments_of_their_own_and_can_be_accelerated_again():
    model, keep = fv.accelerate(vivit()), F.random_keep(2, 32, 0.5)
    video = clips()
    assert bare(model)(video, keep=keep).last_hidden_state.shape == (2, 17, 48)
    want = model(video, keep=keep).logits
    fv.accelerate(bare(model), **NORM)
    assert torch.equal(model(video, keep=keep).logits, want)
    fv.restore(bare(model))
    with pytest.raises(ValueError, match="mask_ratio, keep: wanted pixels to drop tokens of"):
        model(video, keep=keep)


def test_another_model_that_runs_meanwhile_drops_nothing():
    inner, outer, video = fv.accelerate(vivit()), fv.accelerate(vivit()), clips()
    want, seen = inner(video).logits, []
    keep = F.random_keep(2, 32, 0.75)
    expected = outer(video, keep=keep, output_attentions=True)
    embeddings = bare(outer).embeddings
    hook = embeddings.register_forward_pre_hook(lambda module, args: seen.append(inner(video).logits))
    got = outer(video, keep=keep, output_attentions=True)
    hook.remove()
    assert torch.equal(seen[0], want)
    assert torch.equal(got.logits, expected.logits) and got.attentions[0].shape[-1] == 9


def test_an_exception_leaves_no_call_behind():
    model, video = fv.accelerate(vivit()), clips()
    want = model(video).logits
    hook = bare(model).embeddings.register_forward_pre_hook(lambda module, args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(video, mask_ratio=0.75)
    hook.remove()
    assert bare(model).embeddings(video).shape == (2, 33, 48)
    assert torch.equal(model(video).logits, want)


def test_threads_do_not_see_each_other():
    model, video = fv.accelerate(vivit()), clips()
    keeps, results = [F.random_keep(2, 32, ratio) for ratio in (0.25, 0.75)], {}
    want = [model(video, keep=keep).logits for keep in keeps]
    both = threading.Barrier(2, timeout=20)

    def meet():
        both.wait()

    hook = bare(model).embeddings.register_forward_pre_hook(lambda module, args: meet())

    def work(i):
        results[i] = model(video, keep=keeps[i]).logits

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    hook.remove()
    for i in range(2):
        near(results[i], want[i])


@FAMILIES
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_gradients_with_another_forward_before_the_backward(make, reentrant):
    model, video = fv.accelerate(make()).train(), clips().requires_grad_()
    keeps = [F.random_keep(2, 32, ratio) for ratio in (0.5, 0.75)]
    ask = [{"keep": keeps[0], "output_attentions": True}, {"keep": keeps[1]}]
    want = [gradients(model, model(video, **asked).logits.square().sum()) for asked in ask]
    checkpointing(model, use_reentrant=reentrant)
    losses = [model(video, **asked).logits.square().sum() for asked in ask]
    for loss, wanted in zip(losses, want, strict=True):
        model.zero_grad()
        loss.backward()
        found = {name: parameter.grad for name, parameter in model.named_parameters()}
        same_gradients(found, wanted)
    held = [
        inside["_gradient_checkpointing_func"]
        for inside in insides(model).values()
        if "_gradient_checkpointing_func" in inside
    ]
    assert held and all(function.func is checkpoint for function in held)


@FAMILIES
def test_hooks_on_the_patch_embeddings_still_run(make):
    model, video = make().train().requires_grad_(False), clips()
    fv.accelerate(model)
    model.enable_input_require_grads()
    assert model(video, mask_ratio=0.5).logits.requires_grad


@pytest.mark.parametrize("make", [lambda: nn.Linear(2, 2), lambda: transformers.ViTModel(tiny_vit())])
def test_an_unknown_model_is_named_with_the_families(make):
    with pytest.raises(ValueError, match="model: wanted .* VideoMAE, TimeSformer, V-JEPA 2, .* got (Linear|ViT)"):
        fv.accelerate(make())


def tiny_vit():
    return transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mean": [0.5] * 3}, "std: wanted values beside mean, one a channel, got None"),
        ({"std": [0.5] * 3}, "mean: wanted values beside std, one a channel, got None"),
        ({"mean": [0.5] * 3, "std": [0.5] * 2}, "std: wanted 3 values like mean, got 2"),
        ({"mean": [0.5] * 3, "std": [0.5, 0, 0.5]}, r"std: wanted values above 0, got \(0.5, 0.0, 0.5\)"),
    ],
)
def test_bad_mean_and_std_are_named_and_change_nothing(arguments, message):
    model = vivit()
    before = insides(model)
    with pytest.raises(ValueError, match=message):
        fv.accelerate(model, **arguments)
    assert insides(model) == before
