"""Adapters and low-rank updates against their equations written out."""

import pytest
import torch
from torch import nn

from fastvivit.modules.adapters import Adapter, LoRALinear
from fastvivit.modules.linear import Linear


def drawn(module):
    """The module with no parameter left at a value that it began with."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.5)
    return module


def test_an_adapter_is_its_equation():
    adapter, h = drawn(Adapter(24, 10, eps=1e-3)), torch.randn(7, 24)
    w_d, b_d, gain, shift, w_u, b_u = (p.double() for p in adapter.parameters())
    low = h.double() @ w_d.T + b_d
    spread = low.var(1, correction=0, keepdim=True)
    normed = (low - low.mean(1, keepdim=True)) / (spread + 1e-3).sqrt() * gain + shift
    wanted = h.double() + normed.clamp(min=0) @ w_u.T + b_u
    torch.testing.assert_close(adapter(h).double(), wanted, rtol=1e-5, atol=1e-5)
    assert normed.min() < -0.5 < 0.5 < normed.max()


def test_houlsby_starts_as_the_identity_and_learns_at_once():
    adapter, h = Adapter(48, 24, eps=1e-6), torch.randn(9, 48)
    assert torch.equal(adapter(h), h)
    assert 0.007 < adapter.down.weight.std() < 0.01 and adapter.down.weight.abs().max() <= 0.02
    adapter(h).square().sum().backward()
    moving = {name for name, p in adapter.named_parameters() if p.grad.abs().max() > 0}
    assert moving == {"up.weight", "up.bias"}


def test_the_papers_zeros_never_learn():
    adapter, h, target = Adapter(16, 8, eps=1e-6, init="paper"), torch.randn(9, 16), torch.randn(9, 16)
    assert all(not p.any() for name, p in adapter.named_parameters() if name != "norm.weight")
    optimiser = torch.optim.AdamW(adapter.parameters(), lr=0.1, weight_decay=0.0)
    for _ in range(5):
        optimiser.zero_grad()
        (adapter(h) - target).square().sum().backward()
        moving = {name for name, p in adapter.named_parameters() if p.grad.abs().max() > 0}
        assert moving == {"up.bias"}
        optimiser.step()
    assert not adapter.down.weight.any() and not adapter.up.weight.any() and adapter.up.bias.any()


def updated(lora, layer, x, parts):
    """The equation in float64: a product with the whole matrix ``W + scale · B A`` of each part."""
    a, b = lora.lora_a.double().chunk(parts), lora.lora_b.double().chunk(parts)
    weights = layer.weight.double().chunk(parts)
    whole = torch.cat([w + lora.scale * (right @ left) for w, left, right in zip(weights, a, b, strict=True)])
    return x.double() @ whole.T + (0 if layer.bias is None else layer.bias.double())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("parts", [1, 3])
def test_lora_is_its_equation_merged_or_not(parts, bias):
    layer, x = Linear(20, 30, bias=bias), torch.randn(2, 5, 20)
    lora = LoRALinear(layer, 4, scale=0.25, parts=parts)
    assert lora.lora_a.shape == (4 * parts, 20) and lora.lora_b.shape == (30, 4)
    assert torch.equal(lora(x), layer(x)) and lora.weight is layer.weight and lora.bias is layer.bias
    assert not lora.lora_b.any() and 0.9 * 20**-0.5 < lora.lora_a.abs().max() <= 20**-0.5
    nn.init.normal_(lora.lora_b)
    wanted = updated(lora, layer, x, parts)
    assert (wanted - layer(x)).abs().max() > 0.5
    torch.testing.assert_close(lora(x).double(), wanted, rtol=1e-5, atol=1e-5)
    plain = lora.merge()
    assert type(plain) is Linear and plain.weight is layer.weight and plain.bias is layer.bias
    torch.testing.assert_close(plain(x).double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("parts", [1, 3])
def test_lora_takes_its_gradients_from_its_equation(parts):
    layer, x = Linear(12, 9).requires_grad_(False), torch.randn(6, 12, requires_grad=True)
    lora = LoRALinear(layer, 2, scale=0.5, parts=parts)
    nn.init.normal_(lora.lora_b)
    inputs = (x, lora.lora_a, lora.lora_b)
    found = torch.autograd.grad(lora(x).square().sum(), inputs)
    wanted = torch.autograd.grad(updated(lora, layer, x, parts).square().sum(), inputs)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("parts", [1, 3])
def test_lora_in_bfloat16_and_under_autocast(parts):
    layer = nn.Linear(64, 48)
    lora = LoRALinear(layer, 8, scale=0.25, parts=parts)
    nn.init.normal_(lora.lora_b)
    x = torch.randn(16, 64)
    wanted = updated(lora, layer, x, parts)
    with torch.autocast("cpu", torch.bfloat16):
        found = lora(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), wanted, rtol=3e-2, atol=3e-2 * wanted.abs().max().item())
    half = lora.to(torch.bfloat16)
    wanted = updated(half, half, x.bfloat16(), parts)
    found, merged = half(x.bfloat16()), half.merge()(x.bfloat16())
    assert found.dtype == merged.dtype == torch.bfloat16
    for out in (found, merged):
        torch.testing.assert_close(out.double(), wanted, rtol=2e-2, atol=2e-2 * wanted.abs().max().item())
