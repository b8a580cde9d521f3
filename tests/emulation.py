"""The CUDA sources as a CPU library, by a header that stands in for CUDA's (tests/cuda_shim)."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from ctypes import c_int32, c_int64
from pathlib import Path

from fastvivit import _native

ROOT = Path(__file__).resolve().parent.parent
COMPILER = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
FLAGS = ["-O1", "-std=c++17", "-fPIC", "-shared", "-fvisibility=hidden", "-Wno-unknown-pragmas"]
FLAGS += ["-I", "tests/cuda_shim", "-I", "csrc"]
# A misaligned access, a shift too far or a sum that overflows ends the process and says where.
CHECKED = ["-fsanitize=undefined", "-fno-sanitize-recover=undefined"]


def build(target: Path) -> ctypes.CDLL:
    """Compile csrc/*_cuda.cu and the shim into ``target`` and bind its functions."""
    sources = [*sorted((ROOT / "csrc").glob("*_cuda.cu")), ROOT / "tests" / "cuda_shim" / "shim.cpp"]
    command = [COMPILER, *FLAGS, "-x", "c++", *map(str, sources), "-o", str(target)]
    # Not every compiler has the sanitizer's library installed.
    for extra in (CHECKED, []):
        done = subprocess.run([*command, *extra], cwd=ROOT, capture_output=True, text=True)
        if done.returncode == 0:
            return bind(target)
    raise RuntimeError(done.stderr)


def bind(path: Path) -> ctypes.CDLL:
    """Load it with all signatures set."""
    library = ctypes.CDLL(str(path))
    shim = {
        "shim_set": (None, [c_int32, c_int32, c_int32]),
        "shim_launches": (c_int64, []),
        "shim_blocks": (c_int64, []),
    }
    for name, (restype, argtypes) in (_native._CUDA_SIGNATURES | shim).items():
        function = getattr(library, name)
        function.restype, function.argtypes = restype, argtypes
    return library
