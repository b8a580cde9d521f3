"""``fastvivit info``: what is active here, and why the rest is not.

Parsed with argparse, because this command must run where no extra is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from importlib import metadata
from typing import Any

import torch

import fastvivit
from fastvivit import _native
from fastvivit._backends import Op
from fastvivit.cli.ops import CASES
from fastvivit.ops._product import no_onednn

_PACKAGES = {
    "torch": None,
    "numpy": None,
    "einops": None,
    "safetensors": None,
    "triton": "gpu",
    "av": "video",
    "transformers": "hf",
    "tokenizers": "hf",
    "tyro": "train",
    "tqdm": "train",
    "tensorboard": "train",
    "matplotlib": "train",
    "webdataset": "train",
    "bitsandbytes": "lowbit",
}


def run(arguments: list[str]) -> int:
    """Print it, as text or as JSON."""
    parser = argparse.ArgumentParser(prog="fastvivit info", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    found = collect()
    print(json.dumps(found, indent=2) if options.json else _text(found))
    return 0


def collect() -> dict[str, Any]:
    """Everything that ``info`` prints, as plain JSON values."""
    native, compiled = _native.info(), _native.cuda_info()
    return {
        "fastvivit": fastvivit.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name, extra) for name, extra in _PACKAGES.items()},
        "cpu": {"name": _cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "cuda": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "native": {name: native[name] for name in ("available", "reason", "path", "cpu_level")},
        "native_cuda": {name: compiled[name] for name in ("available", "reason", "path")}
        | {name: compiled["build"].get(name) for name in ("compiler_version", "flags")},
        "product": {"cpu": "oneDNN" if no_onednn() is None else "torch.mm", "reason": no_onednn()},
        "ops": {case.op.name: _devices(case) for case in CASES},
    }


def _devices(case: Any) -> dict[str, Any]:
    floats = [tensor.float() for tensor in case.floats(torch.Generator().manual_seed(0))]
    found = {"cpu": choices(case.op, "cpu", case.asked(floats))}
    if torch.cuda.is_available():
        found["cuda"] = choices(case.op, "cuda", case.asked([tensor.cuda() for tensor in floats]))
    return found


def choices(op: Op, device: str, inputs: tuple[Any, ...]) -> dict[str, Any]:
    """What ``auto`` takes for float32 inputs on a device, and why it does not take the others."""
    chosen, others = None, {}
    for backend in op.backends:
        reason = backend.why_not(inputs)
        if reason is None and backend.auto is not None and device not in backend.auto:
            reason = f"can run when asked for by name (auto: {', '.join(backend.auto)})"
        elif reason is None and chosen is not None:
            reason = f"can run; {chosen} comes first"
        if reason is None:
            chosen = backend.name
        else:
            others[backend.name] = reason
    return {"auto": chosen, "others": others}


def _version(name: str, extra: str | None) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return f'not installed (pip install "fastvivit[{extra}]")' if extra else "not installed"


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 (no file of ours)
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _text(found: dict[str, Any]) -> str:
    cpu, native = found["cpu"], found["native"]
    lines = [
        f"fastvivit {found['fastvivit']}, Python {found['python']}, {found['platform']}",
        f"CPU: {cpu['name']}, {cpu['cores']} cores, torch uses {cpu['threads']} threads",
        f"CUDA: {', '.join(found['cuda']) or 'no device'}",
    ]
    if native["available"]:
        lines.append(f"compiled CPU kernels: active ({native['cpu_level']}), {native['path']}")
    else:
        lines.append(f"compiled CPU kernels: not active: {native['reason']}")
    compiled = found["native_cuda"]
    if compiled["available"]:
        idle = "" if found["cuda"] else " (no device)"
        lines.append(f"compiled CUDA kernels: built{idle}, {compiled['compiler_version']}, {compiled['path']}")
    else:
        lines.append(f"compiled CUDA kernels: not active: {compiled['reason']}")
    product = found["product"]
    lines.append(
        f"float32 products on a CPU: {product['cpu']}" + (f" ({product['reason']})" if product["reason"] else "")
    )
    lines += ["", "packages"]
    lines += [f"  {name:<14}{version}" for name, version in found["packages"].items()]
    lines += ["", "backends of each op (float32)"]
    for op, devices in found["ops"].items():
        for device, choice in devices.items():
            lines.append(f"  {op} on {device}: {choice['auto'] or 'none can run'}")
            lines += [f"    not {name}: {reason}" for name, reason in choice["others"].items()]
    return "\n".join(lines)
