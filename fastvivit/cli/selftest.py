"""``fastvivit selftest``: every op and backend that can run here against float64.

Parsed with argparse, because this command must run where no extra is installed.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastvivit._backends import Backend
from fastvivit.cli.ops import CASES, Case

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        op: the op.
        backend: the backend.
        device: where it ran.
        dtype: of its inputs.
        share: the worst error as a share of what is allowed; None where it did not run.
        note: why it did not run or failed.
    """

    op: str
    backend: str
    device: str
    dtype: str
    share: float | None
    note: str = ""

    @property
    def missed(self) -> bool:
        """Whether it ran and was wrong, or broke."""
        return self.share is not None and not self.share <= 1


def run(arguments: list[str]) -> int:
    """Print the table; 1 where something missed."""
    parser = argparse.ArgumentParser(prog="fastvivit selftest", description=__doc__.partition("\n")[0])
    parser.parse_args(arguments)
    rows = check_all()
    print(f"{'op':<18}{'backend':<11}{'device':<8}{'dtype':<10}{'error / allowed':<17}result")
    for row in _merged(rows):
        share = "-" if row.share is None else f"{row.share:.2f}"
        result = "MISS" if row.missed else "ok" if row.share is not None else "not run"
        note = f": {row.note}" if row.note else ""
        print(f"{row.op:<18}{row.backend:<11}{row.device:<8}{row.dtype:<10}{share:<17}{result}{note}")
    misses = sum(row.missed for row in rows)
    ran = sum(row.share is not None for row in rows)
    print(f"\n{ran} checks ran, {misses} missed" if misses else f"\nall {ran} checks that can run here passed")
    return 1 if misses else 0


def check_all() -> list[Row]:
    """Every op, backend, device and dtype: forward and all gradients."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return [
        _check(case, backend, device, dtype)
        for case in CASES
        for backend in case.op.backends
        for device in devices
        for dtype in _DTYPES
    ]


def _merged(rows: list[Row]) -> list[Row]:
    """One line for a backend that runs in no dtype, always for the same reason."""
    merged: list[Row] = []
    for start in range(0, len(rows), len(_DTYPES)):
        group = rows[start : start + len(_DTYPES)]
        absent = all(row.share is None and row.note == group[0].note for row in group)
        merged += [replace(group[0], dtype="any")] if absent else group
    return merged


def _check(case: Case, backend: Backend, device: str, dtype: torch.dtype) -> Row:
    name = {
        "op": case.op.name,
        "backend": backend.name,
        "device": device,
        "dtype": str(dtype).removeprefix("torch."),
    }
    # Rounded first: what the dtype can't hold is no error of a backend.
    exact = [tensor.to(dtype) for tensor in case.floats(torch.Generator().manual_seed(0))]
    inputs = [tensor.to(device) for tensor in exact]
    reason = backend.why_not(case.asked(inputs))
    if reason is not None:
        return Row(**name, share=None, note=reason.splitlines()[0])
    try:
        golden = _results(case, [tensor.double() for tensor in exact], "reference")
        own = _results(case, exact, "reference")
        found = _results(case, inputs, backend.name)
    except Exception as error:  # whatever it is, it is what this command is there to show
        return Row(**name, share=float("inf"), note=f"{type(error).__name__}: {error}".splitlines()[0])
    shares = [_share(*tensors, dtype) for tensors in zip(found, golden, own, strict=True)]
    return Row(**name, share=max(shares))


def _results(case: Case, inputs: list[Tensor], backend: str) -> list[Tensor]:
    """Outputs and gradients of all inputs for fixed gradients of the outputs, float64 on the CPU."""
    floats = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    outs = case.call(floats, backend)
    generator = torch.Generator().manual_seed(1)
    heads = [torch.randn(out.shape, generator=generator, dtype=torch.float64) for out in outs]
    # Rounded to 16 bits, so that heads are the same numbers in every dtype.
    heads = [head.bfloat16().to(out) for head, out in zip(heads, outs, strict=True)]
    grads = torch.autograd.grad(outs, floats, heads)
    return [tensor.detach().double().cpu() for tensor in (*outs, *grads)]


def _share(found: Tensor, golden: Tensor, own: Tensor, dtype: torch.dtype) -> float:
    """The error of ``found`` as a share of twice PyTorch's own plus what rounding to ``dtype`` costs."""
    error, owns = ((tensor - golden).abs().max() for tensor in (found, own))
    floor = 4 * torch.finfo(dtype).eps * golden.abs().max() + torch.finfo(torch.float32).tiny
    return float(error / (2 * owns + floor))
