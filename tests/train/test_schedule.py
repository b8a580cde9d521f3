"""The learning rate of every step, and what is decayed."""

import pytest
import torch

from fastvivit.train import InitConfig, OptimiserConfig, TrainConfig
from fastvivit.train.build import build_encoder
from fastvivit.train.optimiser import load_optimiser, make_optimiser, optimiser_tensors
from fastvivit.train.schedule import learning_rate
from fastvivit.train.start import build_dual


def run(**schedule):
    fields = {"steps": 110, "data": {"train": "x"}, "optimiser": {"lr": 2.0}, "schedule": schedule}
    return TrainConfig.from_dict(fields)


def test_warm_up_is_linear_and_never_zero():
    config = run(warmup=10)
    assert [learning_rate(step, config) for step in (0, 4, 9)] == pytest.approx([0.2, 1.0, 2.0])


def test_cosine():
    config = run(warmup=10)
    rates = [learning_rate(step, config) for step in (10, 35, 60, 85, 110)]
    assert rates == pytest.approx([2.0, 1 + 0.5**0.5, 1.0, 1 - 0.5**0.5, 0.0])


def test_final_share():
    config = run(warmup=10, final=0.1)
    assert learning_rate(10, config) == 2.0 and learning_rate(110, config) == pytest.approx(0.2)


def test_no_warm_up():
    assert learning_rate(0, run(warmup=0)) == 2.0


def test_what_is_not_decayed(config):
    model = build_dual(config, None, ["a b"], images=False, clips=True)
    optimiser = make_optimiser(model, OptimiserConfig(weight_decay=0.3))
    names = {parameter: name for name, parameter in model.named_parameters()}
    decayed, spared = ({names[p] for p in group["params"]} for group in optimiser.param_groups)
    assert [group["weight_decay"] for group in optimiser.param_groups] == [0.3, 0.0]
    assert {"video.embed.pos", "logit_scale", "video.norm.weight", "video.embed.bias"} <= spared
    assert {"video.embed.weight", "video_proj.weight"} <= decayed
    assert decayed | spared == {name for name, p in model.named_parameters() if p.requires_grad}
    assert optimiser.defaults["fused"]


def test_optimiser_state_goes_by_name(config):
    model = build_dual(config, None, ["a b"], images=False, clips=True)
    optimiser = make_optimiser(model, config.optimiser)
    model.encode_text(["a"]).sum().backward()
    optimiser.step()
    tensors = {name: tensor.clone() for name, tensor in optimiser_tensors(model, optimiser).items()}
    other = make_optimiser(model, config.optimiser)
    load_optimiser(model, other, tensors)
    found = optimiser_tensors(model, other)
    assert found.keys() == tensors.keys() and len(found) > 10
    assert all(torch.equal(found[name], tensors[name]) for name in found)
    with pytest.raises(ValueError, match=r"optimiser: wanted the state of this model.*nobody"):
        load_optimiser(model, other, {"nobody/exp_avg": torch.zeros(1)})


def test_time_offsets_are_shared_by_the_places_of_a_slot(config):
    plain, shifted = [], []
    for found, std in ((plain, 0.0), (shifted, 0.5)):
        torch.manual_seed(0)
        found.append(build_encoder(config.model, InitConfig(time_std=std)).embed)
    (plain,), (shifted,) = plain, shifted
    offset = (shifted.pos - plain.pos).detach().view(*plain.grid, -1).flatten(1, 2)
    torch.testing.assert_close(offset, offset[:, :1].expand_as(offset))
    assert 0.3 < offset[:, 0].std() < 0.7
