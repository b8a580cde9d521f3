"""Set-up shared by all tests."""

import os

import torch

# Triton reads it when a kernel is defined, so before anything imports one. On a GPU the kernels run for real.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest

from fastvivit import _native
from tests import emulation

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def device() -> str:
    return DEVICE


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def poisoned(monkeypatch):
    """Memory that nobody has written holds NaN, so that an output left unwritten fails."""

    def poison(make):
        def wrapped(*args, **kwargs):
            made = make(*args, **kwargs)
            return made.fill_(float("nan")) if made.is_floating_point() else made

        return wrapped

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poison(getattr(owner, name)))


@pytest.fixture(scope="session")
def emulated(tmp_path_factory):
    """The CUDA kernels, compiled from their own sources to run on a CPU, one thread after the other."""
    if emulation.COMPILER is None:
        pytest.skip("no C++ compiler on this machine")
    return emulation.build(tmp_path_factory.mktemp("emulated") / "libemulated.so")


@pytest.fixture
def on_cpu(emulated, monkeypatch):
    """The ``cuda`` backends take CPU tensors, by the emulated kernels on a device of one multiprocessor."""
    monkeypatch.setattr(_native, "load_cuda", lambda: emulated)
    emulated.shim_set(1, 0, 0)
    return emulated
