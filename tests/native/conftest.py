"""Instruction sets and threads for the tests of the compiled CPU kernels."""

import pytest
import torch

from tests.native.calls import LIB


@pytest.fixture(params=[0, 1, 2], ids=["baseline", "avx2", "avx512"])
def level(request):
    LIB.fv_set_cpu_level(request.param)
    name = LIB.fv_cpu_level().decode()
    if name != ["baseline", "avx2", "avx512"][request.param]:
        LIB.fv_set_cpu_level(-1)
        pytest.skip(f"this CPU stops at {name}")
    yield name
    LIB.fv_set_cpu_level(-1)


@pytest.fixture(params=[1, 2], ids=["1thread", "2threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
