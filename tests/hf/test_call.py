"""How a forward's arguments reach the call, and what a compiler or a module around sees of it."""

import pytest
import torch
from torch import nn

import fastvivit as fv
import fastvivit.functional as F
from tests.hf import test_timesformer
from tests.hf.families import FAMILIES
from tests.hf.tiny import bare, checkpointing, clips, gradients, insides, near, same_gradients, transformers, vivit


def test_probabilities_asked_for_by_position():
    model, video = test_timesformer.made(), test_timesformer.clips()
    want = model(video, True).attentions
    fv.accelerate(model)
    for one, other in zip(model(video, True).attentions, want, strict=True):
        near(one, other)
    with pytest.raises(ValueError, match="output_attentions: wanted False beside keep"):
        model(video, True, keep=test_timesformer.ragged_keep())
    assert model(video, False, keep=test_timesformer.ragged_keep()).attentions is None


@pytest.mark.parametrize("name", ["vivit", "vjepa2", "divided_space_time"])
def test_compiles_whole_with_checkpointed_gradients(name):
    torch._dynamo.reset()
    family = FAMILIES[name]
    model, video, keep = fv.accelerate(family.make()).train(), family.clips(), F.random_keep(2, family.tokens, 0.5)
    want = gradients(model, model(video, keep=keep)[family.first].square().mean())
    checkpointing(model)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    same_gradients(gradients(model, compiled(video, keep=keep)[family.first].square().mean()), want)


class Around(nn.Module):
    """A user's module with a ``keep`` of its own, which means what it means within."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, video, keep=None):
        return self.model(video, keep=keep).logits


def test_a_module_around_with_such_an_argument_keeps_its_forward():
    outer, video, keep = Around(vivit()), clips(), F.random_keep(2, 32, 0.5)
    fv.accelerate(outer)
    assert "forward" not in outer.__dict__
    assert torch.equal(outer(video, keep), outer.model(video, keep=keep).logits)
    assert not torch.equal(outer(video, keep), outer(video))
    fv.restore(outer)
    assert all("forward" not in module.__dict__ for module in outer.modules())


class Seeded(transformers.VivitModel):
    def forward(self, pixel_values, generator=None):
        return super().forward(pixel_values)


def test_a_model_with_such_an_argument_is_refused_and_left_as_it_was():
    outer = vivit()
    base = bare(outer)
    base.__class__ = Seeded
    before = insides(outer)
    with pytest.raises(ValueError, match="model: wanted a forward without a generator of its own, got Seeded"):
        fv.accelerate(outer)
    assert insides(outer) == before


@pytest.mark.parametrize("name", FAMILIES)
def test_ours_runs(name, monkeypatch):
    family, count = FAMILIES[name], {"attention": 0, "varlen_attention": 0, "tubelet_embed": 0}

    def counted(op, function):
        def call(*args, **kwargs):
            count[op] += 1
            return function(*args, **kwargs)

        return call

    for op in count:
        monkeypatch.setattr(F, op, counted(op, getattr(F, op)))
    model, video = fv.accelerate(family.make()), family.clips()
    # Two layers; V-JEPA 2's pooler has self-attention and cross-attention; divided attention is two a layer.
    attention = {"vjepa2": 4, "divided_space_time": 4}.get(name, 2)
    model(video)
    assert count == {"attention": attention, "varlen_attention": 0, "tubelet_embed": 1}
    model(video, mask_ratio=0.5)
    packed = attention if name == "divided_space_time" else 0
    assert count == {"attention": 2 * attention - packed, "varlen_attention": packed, "tubelet_embed": 2}
    fv.restore(model)(video)
    assert count["tubelet_embed"] == 2
