"""Products and activations of accelerated layers."""

import torch
from torch import nn
from torch.nn.utils import parametrize

import fastvivit as fv
from tests.hf.tiny import bare, clips, near, vivit


class Scaled(nn.Module):
    def forward(self, weight):
        return weight * 2


class Marked(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 1


class Own(torch.Tensor):
    """A weight with a product of its own, as quantised and sharded ones have."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        out = super().__torch_function__(function, types, args, kwargs or {})
        return out.as_subclass(torch.Tensor) - 1 if function is torch.nn.functional.linear else out


def linears(model):
    return [module for module in bare(model).modules() if type(module) is nn.Linear]


def test_linears_that_are_more_than_their_weights_run_their_own_forward():
    model, video = vivit(), clips()
    one, two, three, *_ = linears(model)
    parametrize.register_parametrization(one, "weight", Scaled())
    two.__class__ = Marked
    three.weight = nn.Parameter(three.weight.detach().as_subclass(Own))
    seen = linears(model)[-1]
    seen.register_forward_hook(lambda module, args, out: out * 3)
    want = model(video).logits
    near(fv.accelerate(model)(video).logits, want)
    near(fv.restore(model)(video).logits, want)


def test_gelu_keeps_its_input_alone():
    model = vivit(hidden_act="gelu_fast")
    activation = next(module for module in model.modules() if type(module).__name__ == "FastGELUActivation")
    x = (4 * torch.randn(50, 7)).requires_grad_()
    want = activation(x)
    wanted = torch.autograd.grad(want.sum(), x)[0]
    fv.accelerate(model)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        got = activation(x)
    assert kept == [x.shape]
    near(got, want)
    near(torch.autograd.grad(got.sum(), x)[0], wanted)
