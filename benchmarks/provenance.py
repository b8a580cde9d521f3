"""Which code, on which machine: what every line of a results file says of itself."""

from __future__ import annotations

import datetime
import hashlib
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

import torch

import fastvivit
from fastvivit import _native

HERE = Path(__file__).resolve().parent
# The checkout, or None in an installed package, which has neither history nor a place for results.
CHECKOUT = HERE.parent if (HERE.parent / "pyproject.toml").is_file() else None
RESULTS = HERE / "results" if CHECKOUT else Path("fastvivit-results")


def provenance(
    device: str, *, quick: bool, dtype: torch.dtype = torch.float32, named: str | None = None
) -> dict[str, object]:
    """Commit, machine and versions, as JSON values; ``named`` is the commit where there is no history to ask."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit() or (named or "none")[:12],
        # Results of earlier runs lie in the tree too, and change no timing.
        "dirty": _git("status", "--porcelain", "--", ".", ":(exclude)benchmarks/results") not in ("", None),
        "source": source_hash(),
        "device": device_name(device),
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "transformers": _version("transformers"),
        "fastvivit": getattr(fastvivit, "__version__", None) or _version("fastvivit"),
        "cpu_level": _native.info()["cpu_level"],
        "torch_cpu_level": torch.backends.cpu.get_cpu_capability(),
        "gpu": _gpu(device),
        "quick": quick,
    }


def device_name(device: str) -> str:
    """The GPU's or the CPU's own name."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def results_file(run: dict[str, object], folder: Path = RESULTS) -> Path:
    """``<folder>/<date>_<device>_<commit>.jsonl``. A second run is appended; a case's last line counts."""
    device = re.sub(r"[^a-z0-9]+", "-", str(run["device"]).lower()).strip("-")
    which = run["commit"] if run["commit"] != "none" else f"src-{run['source']}"
    return folder / f"{str(run['date'])[:10]}_{device}_{which}.jsonl"


def commit() -> str | None:
    """Twelve digits of the checkout's commit; None in a copy without history, which ``source_hash`` tells apart."""
    return _git("rev-parse", "--short=12", "HEAD")


def source_hash() -> str:
    """Twelve digits over everything that is timed: the package's Python and C++."""
    package = Path(fastvivit.__file__).parent
    folders = [package, package.parent / "csrc"]
    found = hashlib.sha256()
    for folder in folders:
        for path in sorted(p for p in folder.rglob("*") if p.suffix in (".py", ".cpp", ".cu", ".cuh", ".h")):
            if "_benchmarks" not in path.parts:
                found.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:12]


def _gpu(device: str) -> dict[str, object] | None:
    if not device.startswith("cuda"):
        return None
    properties = torch.cuda.get_device_properties(device)
    cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    return {
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "cudnn": cudnn,
    }


def _git(*arguments: str) -> str | None:
    if CHECKOUT is None:  # what git says of the folder around an installed package is about something else
        return None
    try:
        done = subprocess.run(["git", *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
