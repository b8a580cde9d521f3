"""linear against torch's own, and against float64."""

import pytest
import torch
from torch.nn import functional as nnf

from fastvivit.ops import _product
from fastvivit.ops.linear import linear
from tests.numerics import check


@pytest.mark.parametrize("path", ["as it comes", "without oneDNN"])
@pytest.mark.parametrize("shape", [(0, 8, 4), (1, 1, 1), (17, 33, 5), (64, 768, 96), (5, 0, 3)], ids=str)
@pytest.mark.parametrize("biased", [True, False])
def test_forward_and_gradients(path, shape, biased, monkeypatch):
    if path == "without oneDNN":
        monkeypatch.setattr(_product, "no_onednn", lambda: "for the test")
    rows, inside, outside = shape
    x, weight = torch.randn(rows, inside, requires_grad=True), torch.randn(outside, inside, requires_grad=True)
    bias = torch.randn(outside, requires_grad=True) if biased else None
    check(linear, nnf.linear, [x, weight, bias], torch.float32)


def test_views_and_other_ranks():
    x, weight = torch.randn(3, 5, 16)[:, :, ::2], torch.randn(8, 4).t()
    torch.testing.assert_close(linear(x, weight), nnf.linear(x, weight))
    torch.testing.assert_close(linear(x[0], weight), nnf.linear(x[0], weight))
    base = torch.randn(15, 4)
    flat = x.reshape(15, 8)
    torch.testing.assert_close(_product.product_plus(flat, weight, base.clone()), flat @ weight.t() + base)


def test_other_dtypes_and_autocast_are_torchs_own():
    x, weight = torch.randn(4, 8), torch.randn(3, 8)
    assert torch.equal(linear(x.double(), weight.double()), nnf.linear(x.double(), weight.double()))
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16


@pytest.mark.parametrize("trained", ["x", "weight", "bias", "x weight", "x bias"])
def test_rows_are_kept_for_the_gradient_of_the_weight_alone(trained):
    given = {"x": torch.randn(7, 16), "weight": torch.randn(5, 16), "bias": torch.randn(5)}
    for name in trained.split():
        given[name].requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        out = linear(**given)
    assert (torch.Size((7, 16)) in kept) == ("weight" in trained)
    wanted = nnf.linear(**given)
    leaves = [given[name] for name in trained.split()]
    for got, want in zip(*(torch.autograd.grad(o.sin().sum(), leaves) for o in (out, wanted)), strict=True):
        torch.testing.assert_close(got, want)
