"""Replaced forwards that someone else meets: those who replace them again, and those who copy their modules."""

import functools

import pytest
import torch

import fastvivit as fv
from tests.hf.families import each_family
from tests.hf.tiny import bare, clips, insides, near, vivit


def closure(forward):
    return lambda *args, **kwargs: forward(*args, **kwargs)


def hook(forward):
    """As accelerate, the library of transformers, hooks a module."""
    return functools.update_wrapper(functools.partial(called, forward), forward)


def called(forward, *args, **kwargs):
    return forward(*args, **kwargs)


@pytest.mark.parametrize("undo", [fv.restore, fv.accelerate])
@pytest.mark.parametrize("inner", [True, False])
@pytest.mark.parametrize("wrap", [closure, hook])
def test_a_forward_that_someone_replaced_since_is_named(undo, inner, wrap):
    model, video = fv.accelerate(vivit()), clips()
    module = bare(model).embeddings.patch_embeddings if inner else model
    ours = module.forward
    module.forward = wrap(ours)
    before, want = insides(model), model(video).logits
    name = r"vivit\.embeddings\.patch_embeddings \(Vivit" if inner else r"the model itself \(VivitFor"
    with pytest.raises(ValueError, match=rf"model: wanted the forward that fastvivit left in {name}"):
        undo(model)
    assert insides(model) == before and torch.equal(model(video).logits, want)
    module.forward = ours
    near(undo(model)(video).logits, want)


def test_a_forward_that_someone_took_away_is_no_matter():
    model, video = vivit(), clips()
    want, before = model(video).logits, insides(model)
    fv.accelerate(model)
    del bare(model).embeddings.forward
    assert insides(fv.restore(model)) == before
    assert torch.equal(model(video).logits, want)


@each_family
def test_replicas_of_data_parallel_are_refused(family):
    model = fv.accelerate(family.make())
    for module in model.modules():
        if "forward" in module.__dict__:
            with pytest.raises(ValueError, match="model: wanted DistributedDataParallel"):
                module._replicate_for_data_parallel()
    fv.restore(model)
    assert all(module._replicate_for_data_parallel() is not module for module in model.modules())
