"""8-bit states: close to float32 ones, a quarter of the bytes, exactly resumed."""

import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from fastvivit.train import fit, latest_checkpoint
from fastvivit.train.optimiser import load_optimiser, make_optimiser, optimiser_tensors
from fastvivit.train.tables import OptimiserConfig
from tests.train.test_resume import losses, stop_after, weights


class Coarse(torch.optim.Optimizer):
    """State of the same make as bitsandbytes': codes with a scale, a whole number, and a table that all share."""

    def __init__(self, params, lr, betas, eps):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self.table = torch.linspace(-1, 1, 256)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state |= {"step": 0, "state1": torch.full_like(p, 127, dtype=torch.uint8), "qmap1": self.table}
                    state["absmax1"] = p.new_zeros(1)
                state["step"] += 1
                assert type(state["step"]) is int and state["state1"].dtype == torch.uint8
                mean = 0.9 * state["qmap1"][state["state1"].long()] * state["absmax1"] + 0.1 * p.grad
                state["absmax1"] = mean.abs().max().clamp(min=1e-12).reshape(1)
                state["state1"] = ((mean / state["absmax1"] + 1) * 127.5).round().to(torch.uint8)
                p.sub_(group["lr"] / (1 - 0.9 ** state["step"]) * mean.sign().view_as(p))

    def load_state_dict(self, packed):
        """As the library does: codes are not cast to the parameter's dtype."""
        owners = [p for group in self.param_groups for p in group["params"]]
        for index, state in packed["state"].items():
            self.state[owners[index]] = state


@pytest.fixture(params=["of the same make", "bitsandbytes"])
def library(request, monkeypatch):
    if request.param == "bitsandbytes":
        pytest.importorskip("bitsandbytes", reason='bitsandbytes is not installed: pip install "fastvivit[lowbit]"')
    else:
        module = SimpleNamespace(optim=SimpleNamespace(AdamW8bit=Coarse))
        monkeypatch.setitem(sys.modules, "bitsandbytes", module)
    return request.param


@pytest.fixture
def eight(config, change):
    return change(config, optimiser={"states": "8bit"})


def test_a_run_with_8_bit_states_resumes_to_the_bit(eight, library, tmp_path, monkeypatch):
    whole, cut = fit(eight, tmp_path / "whole", quiet=True), tmp_path / "cut"
    with monkeypatch.context() as patched:
        stop_after(patched, 8)
        with pytest.raises(RuntimeError, match="power"):
            fit(eight, cut, quiet=True)
    state = load_file(latest_checkpoint(cut) / "training.safetensors")
    codes = {name: tensor for name, tensor in state.items() if tensor.dtype == torch.uint8 and "random/" not in name}
    assert latest_checkpoint(cut).name == "step-00000005" and "video.embed.weight/state1" in codes
    assert state["video.embed.weight/step"].item() == 5
    fit(eight, cut, resume=True, quiet=True)
    first, second = weights(whole), weights(cut)
    assert losses(whole) == losses(cut) and all(torch.equal(first[name], second[name]) for name in first)


def test_losses_are_close_to_those_of_float32_states(config, change):
    pytest.importorskip("bitsandbytes", reason='bitsandbytes is not installed: pip install "fastvivit[lowbit]"')
    found = {}
    for states in ("float32", "8bit"):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.Linear(128, 64))
        optimiser = make_optimiser(model, OptimiserConfig(lr=1e-3, states=states))
        x, wanted = torch.randn(64, 64), 0.3 * torch.randn(64, 64)
        found[states] = []
        for _ in range(20):
            optimiser.zero_grad()
            loss = (model(x) - wanted).square().mean()
            loss.backward()
            optimiser.step()
            found[states].append(loss.item())
        found[states, "bytes"] = sum(t.nbytes for t in optimiser_tensors(model, optimiser).values() if t.dim() == 2)
    assert found["8bit", "bytes"] * 4 == found["float32", "bytes"]
    learned = found["float32"][0] - found["float32"][-1]
    assert learned > 0.05
    # A code is off by at most 1/32 of a moment in its upper decades: a step by about as much of itself, either way.
    assert max(abs(a - b) for a, b in zip(found["float32"], found["8bit"], strict=True)) < learned / 32


def test_a_missing_library_is_said_before_anything_is_written(eight, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match=r'optimiser.states: .*pip install "fastvivit\[lowbit\]"'):
        fit(eight, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_unknown_states_are_refused():
    with pytest.raises(ValueError, match="optimiser.states: wanted one of 'float32', '8bit', got '4bit'"):
        OptimiserConfig(states="4bit")


def test_shared_tables_are_written_for_each_and_numbers_come_back_as_numbers(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(optim=SimpleNamespace(AdamW8bit=Coarse)))
    model = torch.nn.Linear(8, 8)
    optimiser = make_optimiser(model, OptimiserConfig(states="8bit"))
    model(torch.ones(1, 8)).sum().backward()
    optimiser.step()
    tensors = optimiser_tensors(model, optimiser)
    assert len({tensor.data_ptr() for tensor in tensors.values()}) == len(tensors) == 8
    again = make_optimiser(model, OptimiserConfig(states="8bit"))
    load_optimiser(model, again, tensors)
    assert again.state[model.weight]["step"] == 1 and type(again.state[model.weight]["step"]) is int
    # PyTorch's own counts its steps in a float32 tensor, and stays as it was.
    own = make_optimiser(model, OptimiserConfig())
    own.step()
    before = optimiser_tensors(model, own)["weight/step"]
    load_optimiser(model, own, optimiser_tensors(model, own))
    assert torch.is_tensor(before) and torch.is_tensor(own.state[model.weight]["step"])
