"""Which backends and dtypes the op tests run over, here."""

from __future__ import annotations

import pytest
import torch

from fastvivit._backends import Op
from tests.conftest import DEVICE

# Kernels of others, which take no float32.
HALF_ONLY = ("flash", "torch")
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def backends(op: Op, dtypes=FLOATS) -> list:
    """(backend, dtype) of every backend that this machine can run."""
    found = []
    for backend in op.backends:
        if backend.absent() is not None:
            continue
        for dtype in dtypes:
            if backend.name == "triton" and DEVICE == "cpu" and dtype == torch.bfloat16:
                continue
            if backend.name in HALF_ONLY and dtype not in (torch.float16, torch.bfloat16):
                continue
            if backend.name == "reference" and op.name == "varlen_attention" and DEVICE != "cpu":
                continue
            found.append(pytest.param(backend.name, dtype, id=f"{backend.name}-{str(dtype)[6:]}"))
    return found


def names(op: Op) -> list[str]:
    """Backends that this machine can run, in float32 too."""
    return [b.name for b in op.backends if b.absent() is None and b.name not in HALF_ONLY]
