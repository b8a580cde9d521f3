"""Tiny models of transformers with weights that matter, and what every family is asked."""

import copy

import pytest
import torch

transformers = pytest.importorskip("transformers")

SIZES = {
    "image_size": 32,
    "num_frames": 4,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 64,
    "attn_implementation": "eager",
}
DECODER = {
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 48,
}


def vivit(name="VivitForVideoClassification", **changes):
    config = transformers.VivitConfig(**{**SIZES, "tubelet_size": [2, 8, 8], "num_labels": 5, **changes})
    return filled(getattr(transformers, name)(config))


def videomae(name="VideoMAEForVideoClassification", **changes):
    config = transformers.VideoMAEConfig(**{**SIZES, **DECODER, "patch_size": 8, "num_labels": 5, **changes})
    return filled(getattr(transformers, name)(config))


def filled(model):
    """Every parameter random: transformers starts biases, positions and CLS tokens at zero."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def clips(count=2, frames=4, height=32, width=32):
    return torch.randn(count, frames, 3, height, width)


def bare(model):
    """The model without its head."""
    return getattr(model, model.base_model_prefix, model)


def layers(model):
    """Transformer layers, where transformers 5 and 4 have them."""
    model = bare(model)
    return model.encoder.layer if hasattr(model, "encoder") else model.layers


def run(parts, x):
    for part in parts:
        out = part(x)
        x = out[0] if isinstance(out, tuple) else out
    return x


def near(got, want, tolerance=1e-5):
    assert got.shape == want.shape
    error, size = (got - want).abs().max().item(), want.abs().max().item()
    assert error <= tolerance * (1 + size), f"error {error:.2e} beside values of {size:.2e}"


def gradients(model, loss):
    """Gradient of each parameter by name; None where the loss does not reach it."""
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return dict(zip((name for name, _ in model.named_parameters()), found, strict=True))


def same_gradients(got, want, tolerance=2e-5):
    assert got.keys() == want.keys()
    assert any(grad is not None and grad.abs().max() > 1e-3 for grad in want.values())
    for name, grad in want.items():
        assert (got[name] is None) == (grad is None), name
        if grad is not None:
            near(got[name], grad, tolerance)


def insides(model):
    """What every module holds beside its children, by name: two lists are equal if nothing was added or replaced."""
    return {name: dict(module.__dict__) for name, module in model.named_modules()}


def checkpointing(model, **kwargs):
    """Switch gradient checkpointing on, by the name of the version's method."""
    enable = getattr(model, "activation_checkpointing_enable", None)
    if enable is None:
        return model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
    return enable(kwargs)


def clone(model):
    return copy.deepcopy(model)
