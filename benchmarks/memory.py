"""Peak memory of one call, in a process of its own: ``python -m benchmarks.memory CASE CONTESTANT``.

Prints bytes beyond those held after imports, model and inputs, before the call.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from .case import Case, Options

_STATUS = Path("/proc/self/status")


def peak_bytes(case: Case, who: str, options: Options) -> int | None:
    """Peak of ``who``'s first call in a fresh process, or None where it can't be told."""
    dtype = str(options.dtype).removeprefix("torch.")
    printed = fresh(__spec__.name, [case.name, who, options.device, dtype, *["--quick"] * options.quick])
    return None if printed is None else int(printed.split()[-1])


def fresh(module: str, arguments: list[str], **environment: str) -> str | None:
    """What ``python -m module`` printed, a module of these benchmarks in a fresh process; None where it failed."""
    # Found again wherever this process started: in a checkout this is benchmarks, installed fastvivit._benchmarks.
    root = Path(__file__).resolve().parents[__spec__.name.count(".")]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path} | environment
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return done.stdout if done.returncode == 0 else None


def main(argv: list[str]) -> int:
    """Run the command line; return the exit status."""
    import torch

    from .cases import all_cases

    name, who, device, dtype = argv[:4]
    options = Options(quick="--quick" in argv, device=device, dtype=getattr(torch, dtype))
    case = next(c for c in all_cases(options) if c.name == name)
    call = case.peak[who]()
    peak = peak_of(call, device)
    if peak is None:
        return 1
    print(peak)
    return 0


def peak_of(call: Callable[[], object], device: str) -> int | None:
    """Peak bytes of ``call`` beyond those held before it, or None where it can't be told."""
    gc.collect()
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    if not _STATUS.is_file():
        return None
    # What construction freed is given back first: held by the allocator it would hide that much of the peak.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    return int(re.search(rf"^{field}:\s*(\d+) kB$", _STATUS.read_text(), re.MULTILINE)[1]) << 10


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
