"""How near is near enough: 2 × PyTorch's own error in that dtype + what rounding the result costs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def run(function: Callable, inputs: list, grads: list[Tensor], dtype: torch.dtype | None) -> tuple[list, list]:
    """Outputs and input gradients of ``function``; floating inputs cast to ``dtype`` (None: as they are)."""
    cast = [_cast(t, dtype) for t in inputs]
    out = function(*cast)
    outs = list(out) if isinstance(out, tuple) else [out]
    wanted = [t for t in cast if isinstance(t, Tensor) and t.requires_grad]
    heads = [_like(g, o) for g, o in zip(grads, outs, strict=True) if o.requires_grad]
    found = torch.autograd.grad([o for o in outs if o.requires_grad], wanted, heads, materialize_grads=True)
    return [o.detach() for o in outs], list(found)


def _cast(t, dtype):
    if not isinstance(t, Tensor) or not t.is_floating_point():
        return t
    return t.detach().to(t.dtype if dtype is None else dtype).requires_grad_(t.requires_grad)


def _like(grad: Tensor, out: Tensor) -> Tensor:
    return grad.to(out.dtype)


def assert_close(name: str, got: Tensor, golden: Tensor, own: Tensor, dtype: torch.dtype) -> None:
    """``got`` must be as near to ``golden`` (float64) as twice PyTorch's ``own`` result, up to rounding."""
    assert got.shape == golden.shape, (name, got.shape, golden.shape)
    assert torch.equal(got.isnan(), golden.isnan()), f"{name}: NaN in other places"
    infinite = golden.isinf()
    assert torch.equal(got.double()[infinite], golden[infinite]), f"{name}: infinities differ"
    golden = golden.nan_to_num(posinf=0.0, neginf=0.0)
    if not golden.numel():
        return
    error, own_error = ((t.double().nan_to_num(posinf=0.0, neginf=0.0) - golden).abs().max() for t in (got, own))
    floor = 4 * torch.finfo(dtype).eps * golden.abs().max() + torch.finfo(torch.float32).tiny
    assert error <= 2 * own_error + floor, (
        f"{name}: error {error:.3e}, PyTorch's own {own_error:.3e}, floor {floor:.3e}"
    )


def check(function: Callable, plain: Callable, inputs: list, dtype: torch.dtype) -> None:
    """Compare outputs and gradients of ``function`` with the ``plain`` formula in float64 and ``dtype``."""
    inputs = [_cast(t, dtype) if isinstance(t, Tensor) and t.is_floating_point() else t for t in inputs]
    with torch.no_grad():
        out = plain(*inputs)
    outs = out if isinstance(out, tuple) else (out,)
    grads = [
        torch.randn(o.shape, dtype=torch.float64, device=o.device).to(dtype) if o.is_floating_point() else o
        for o in outs
    ]
    golden = run(plain, inputs, grads, torch.float64)
    own = run(plain, inputs, grads, dtype)
    got = run(function, inputs, grads, None)
    for part, a, b, c in zip(("out", "grad"), got, golden, own, strict=True):
        for i, (x, y, z) in enumerate(zip(a, b, c, strict=True)):
            assert_close(f"{part}[{i}]", x, y.double(), z, dtype)
    again = run(function, inputs, grads, None)
    for x, y in zip(got[0] + got[1], again[0] + again[1], strict=True):
        assert torch.equal(x.nan_to_num(), y.nan_to_num()), "a repeat gives other bits"
