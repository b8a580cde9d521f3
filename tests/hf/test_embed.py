"""Pixels that meet a patch convolution of another dtype, and batches of no clips."""

import pytest
import torch

import fastvivit as fv
from tests.hf.families import FAMILIES, each_family


def convolution(model):
    return next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d | torch.nn.Conv3d))


@each_family
def test_pixels_of_another_dtype_meet_a_hooked_convolution(family):
    model, video = family.make().bfloat16(), family.clips()
    convolution(model).register_forward_hook(lambda module, args, out: out * 2)
    want = model(video.bfloat16())[family.first]
    found = fv.accelerate(model)(video)[family.first]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, want, atol=0.1, rtol=0.1)


def test_v_jepa_2_takes_such_pixels_by_itself():
    family = FAMILIES["vjepa2"]
    assert family.make().bfloat16()(family.clips())[family.first].dtype == torch.bfloat16


@pytest.mark.parametrize("hooked", [True, False])
@each_family
def test_no_clips(family, hooked):
    model = family.make()
    if hooked:
        convolution(model).register_forward_hook(lambda module, args, out: None)
    fv.accelerate(model)
    want = model(family.clips(1))[family.first].shape
    found = model(family.clips(1)[:0])[family.first]
    assert found.shape == (0, *want[1:])
    kept = model(family.clips(1)[:0], mask_ratio=0.5)[family.first]
    assert kept.shape == (0, *model(family.clips(1), mask_ratio=0.5)[family.first].shape[1:])
    kept.sum().backward()
    assert not convolution(model).weight.grad.any()
