"""Which code, on which machine: what every line of a results file says of itself."""

from __future__ import annotations

import datetime
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

import torch

import fastvivit
from fastvivit import _native

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def provenance(device: str, *, quick: bool) -> dict[str, object]:
    """Commit, machine and versions, as JSON values."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "--short=12", "HEAD") or "none",
        # Results of earlier runs lie in the tree too, and change no timing.
        "dirty": _git("status", "--porcelain", "--", ".", ":(exclude)benchmarks/results") != "",
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": _version("transformers"),
        "fastvivit": getattr(fastvivit, "__version__", None) or _version("fastvivit"),
        "cpu_level": _native.info()["cpu_level"],
        "torch_cpu_level": torch.backends.cpu.get_cpu_capability(),
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


def results_file(run: dict[str, object]) -> Path:
    """``results/<date>_<device>_<commit>.jsonl``. A second run is appended; a case's last line counts."""
    device = re.sub(r"[^a-z0-9]+", "-", str(run["device"]).lower()).strip("-")
    return RESULTS / f"{str(run['date'])[:10]}_{device}_{run['commit']}.jsonl"


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
