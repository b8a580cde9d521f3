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
from pathlib import Path

from .case import Case, Options

_STATUS = Path("/proc/self/status")


def peak_bytes(case: Case, who: str, options: Options) -> int | None:
    """Peak of ``who``'s first call in a fresh process, or None where it can't be told."""
    dtype = str(options.dtype).removeprefix("torch.")
    command = [sys.executable, "-m", __spec__.name, case.name, who, options.device, dtype]
    # Found again wherever this process started: in a checkout this is benchmarks, installed fastvivit._benchmarks.
    root = Path(__file__).resolve().parents[__spec__.name.count(".")]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    command += ["--quick"] * options.quick
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": path})
    return int(done.stdout.split()[-1]) if done.returncode == 0 else None


def main(argv: list[str]) -> int:
    """Run the command line; return the exit status."""
    import torch

    from .cases import all_cases

    name, who, device, dtype = argv[:4]
    options = Options(quick="--quick" in argv, device=device, dtype=getattr(torch, dtype))
    case = next(c for c in all_cases(options) if c.name == name)
    call = case.peak[who]()
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        print(torch.cuda.max_memory_allocated() - before)
        return 0
    if not _STATUS.is_file():
        return 1
    # What construction freed is given back first: held by the allocator it would hide that much of the peak.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    call()
    print(_status("VmHWM") - before)
    return 0


def _status(field: str) -> int:
    return int(re.search(rf"^{field}:\s*(\d+) kB$", _STATUS.read_text(), re.MULTILINE)[1]) << 10


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
