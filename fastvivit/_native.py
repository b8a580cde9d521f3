"""The compiled libraries, for CPUs and for CUDA: found, checked against their sources, bound.

Importing this loads neither, and each is loaded without the other.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
from ctypes import POINTER, c_char_p, c_double, c_int32, c_int64, c_uint64, c_void_p
from pathlib import Path
from typing import Any

LIBRARY = "libfastvivit_cpu.so"
CUDA_LIBRARY = "libfastvivit_cuda.so"
RECORD = "_build.json"
REBUILD = "build it with `python setup.py build_ext --inplace` or `pip install .`"

_PACKAGE = Path(__file__).resolve().parent


class Tubelets(ctypes.Structure):
    """`fv_tubelets` of csrc/tubelets.h: (t, h, w) triples; strides of clip, channel, t, h, w in elements."""

    _fields_ = [
        ("video", c_void_p),
        ("dtype", c_int64),
        ("stride", c_int64 * 5),
        ("channels", c_int64),
        ("kernel", c_int64 * 3),
        ("step", c_int64 * 3),
        ("offset", c_int64 * 3),
        ("grid", c_int64 * 3),
        ("scale", c_void_p),
        ("shift", c_void_p),
    ]


class Attention(ctypes.Structure):
    """`fv_attention` of csrc/attention.h: strides of row and head in elements."""

    _fields_ = [
        ("dtype", c_int64),
        ("q", c_void_p),
        ("k", c_void_p),
        ("v", c_void_p),
        ("q_stride", c_int64 * 2),
        ("k_stride", c_int64 * 2),
        ("v_stride", c_int64 * 2),
        ("cu_q", c_void_p),
        ("cu_k", c_void_p),
        ("sequences", c_int64),
        ("rows_q", c_int64),
        ("rows_k", c_int64),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("width", c_int64),
        ("causal", c_int64),
        ("scale", c_double),
    ]


_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "fv_init": (None, [c_void_p]),
    "fv_source_hash": (c_char_p, []),
    "fv_cpu_level": (c_char_p, []),
    "fv_set_cpu_level": (None, [c_int32]),
    "fv_flat_ids": (c_int64, [c_void_p, c_int64, c_int64, c_int64, c_int32, c_void_p]),
    "fv_invert_ids": (None, [c_void_p, c_int64, c_int64, c_void_p]),
    "fv_cu_seqlens": (c_int64, [c_void_p, c_int64, c_int64, c_void_p]),
    "fv_sort_ids": (None, [c_void_p, c_int64, c_int64, c_void_p, c_void_p]),
    "fv_gather_rows": (
        None,
        [c_void_p, c_int64, c_int64, c_void_p, c_int64, c_int64, c_void_p, c_void_p],
    ),
    "fv_segment_sum": (
        None,
        [c_int32, c_void_p, c_int64, c_void_p, c_void_p, c_int64, c_int64, c_int32, c_void_p],
    ),
    "fv_patches": (None, [POINTER(Tubelets), c_void_p, c_int64, c_int64, c_int64, c_void_p]),
    "fv_patches_backward": (None, [POINTER(Tubelets), c_void_p, c_int64, c_int64, c_void_p]),
    "fv_embed": (
        None,
        [POINTER(Tubelets), c_void_p, c_int64, c_int64, c_void_p, c_int64, c_int64]
        + [c_void_p, c_void_p, c_int64, c_void_p],
    ),
    "fv_attention_forward": (None, [POINTER(Attention), c_void_p, c_void_p]),
    "fv_attention_backward": (None, [POINTER(Attention), *[c_void_p] * 7]),
}


# Pointers are device memory except the last, the raw stream; a launch returns its error's number.
_CUDA_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "fv_cuda_source_hash": (c_char_p, []),
    "fv_cuda_error": (c_char_p, [c_int32]),
    "fv_cuda_gather_rows": (
        c_int32,
        [c_void_p, c_int64, c_int64, c_void_p, c_int64, c_int64, c_void_p, c_uint64, c_uint64, c_void_p, c_int64]
        + [c_void_p, c_void_p],
    ),
    "fv_cuda_divide_rows": (
        c_int32,
        [c_int32, c_void_p, c_int64, c_int64, c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_int64]
        + [c_void_p, c_void_p],
    ),
    "fv_cuda_invert_ids": (c_int32, [c_void_p, c_int64, c_int64, c_int32, c_void_p, c_void_p]),
    "fv_cuda_sum_scratch": (c_int64, [c_int32, c_int64, c_int64, c_int64]),
    "fv_cuda_sum_rows": (
        c_int32,
        [c_int32, c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int32, c_int32]
        + [c_void_p, c_int64, c_void_p, c_void_p, c_void_p],
    ),
}


def source_hash(folder: Path, other: str = "_cuda") -> str:
    """Return the SHA-256 of the names and contents of a library's files under ``folder``.

    That is all of them but hidden ones and those of the ``other`` library ("_cuda" or "_cpu"): headers that
    both share count in both.
    """
    digest = hashlib.sha256()
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    for name in sorted(files):
        if any(part.startswith(".") for part in name.split("/")) or files[name].stem.endswith(other):
            continue
        content = files[name].read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def load() -> ctypes.CDLL | None:
    """Return the library with its signatures set and torch's threads handed over, or None; see `reason`."""
    return _loaded()[0]


def reason() -> str | None:
    """Return why `load` gives None, with the compiler's message if there was one; None when it does not."""
    return _loaded()[1]


def info() -> dict[str, Any]:
    """Return what is known of it: available, reason, path, cpu_level, source_hash and the build record."""
    library, why = _loaded()
    path = _PACKAGE / LIBRARY
    return {
        "available": library is not None,
        "reason": why,
        "path": str(path) if path.is_file() else None,
        "cpu_level": library.fv_cpu_level().decode() if library else None,
        "source_hash": library.fv_source_hash().decode() if library else None,
        "build": _record(),
    }


def load_cuda() -> ctypes.CDLL | None:
    """Return the CUDA library with its signatures set, or None; see `cuda_reason`. Needs no device."""
    return _cuda_loaded()[0]


def cuda_reason() -> str | None:
    """Return why `load_cuda` gives None, with the compiler's message if there was one; None when it does not."""
    return _cuda_loaded()[1]


def cuda_info() -> dict[str, Any]:
    """Return what is known of the CUDA library: available, reason, path, source_hash and its build record."""
    library, why = _cuda_loaded()
    path = _PACKAGE / CUDA_LIBRARY
    return {
        "available": library is not None,
        "reason": why,
        "path": str(path) if path.is_file() else None,
        "source_hash": library.fv_cuda_source_hash().decode() if library else None,
        "build": _record().get("cuda", {}),
    }


def torch_symbol(name: str) -> int | None:
    """Return the address of a C symbol of torch's CPU library, such as `sgemm_`, or None."""
    for library in _torch_libraries():
        try:
            return ctypes.cast(getattr(library, name), c_void_p).value
        except AttributeError:
            continue
    return None


@functools.cache
def _torch_libraries() -> tuple[ctypes.CDLL, ...]:
    import torch

    folder = Path(torch.__file__).resolve().parent / "lib"
    names = [folder / name for name in ("libtorch_cpu.so", "libtorch_cpu.dylib", "torch_cpu.dll")]
    # A symbol look-up in torch's extension module also searches the libraries it was linked with, wherever a
    # distribution has put them.
    names.append(Path(torch._C.__file__))
    libraries = []
    for path in names:
        if path.is_file():
            try:
                libraries.append(ctypes.CDLL(str(path)))
            except OSError:
                continue
    return tuple(libraries)


def _record() -> dict[str, Any]:
    try:
        record = json.loads((_PACKAGE / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _expected_hash(record: dict[str, Any], other: str) -> str | None:
    root = _PACKAGE.parent
    # An installed package may have some other project's `csrc` beside it; ours stands next to its setup.py.
    if (root / "setup.py").is_file() and (root / "csrc" / "tubelets.h").is_file():
        return source_hash(root / "csrc", other)
    return record.get("source_hash")


def _open(name: str, what: str, record: dict[str, Any], signatures: dict[str, Any], hash_name: str, other: str):
    path = _PACKAGE / name
    if not path.is_file():
        return None, f"the {what} library is not built: {record.get('error') or REBUILD}"
    try:
        library = ctypes.CDLL(str(path))
        embedded = getattr(library, hash_name)
        embedded.restype = c_char_p
        built, expected = embedded().decode(), _expected_hash(record, other)
        if built != expected:
            wanted = (expected or "unknown")[:12]
            return None, f"the {what} library is stale: built from csrc {built[:12]}, wanted {wanted}; {REBUILD}"
        for symbol, (restype, argtypes) in signatures.items():
            function = getattr(library, symbol)
            function.restype, function.argtypes = restype, argtypes
    except (OSError, AttributeError) as error:
        return None, f"the {what} library cannot be loaded: {error}"
    return library, None


@functools.cache
def _loaded() -> tuple[ctypes.CDLL | None, str | None]:
    library, why = _open(LIBRARY, "CPU", _record(), _SIGNATURES, "fv_source_hash", "_cuda")
    if library is None:
        return None, why
    threads = torch_symbol("torch_parallel_for")
    if threads is None:
        return None, "this torch has no torch_parallel_for (it came with torch 2.10)"
    library.fv_init(threads)
    return library, None


@functools.cache
def _cuda_loaded() -> tuple[ctypes.CDLL | None, str | None]:
    record = _record().get("cuda", {})
    return _open(CUDA_LIBRARY, "CUDA", record, _CUDA_SIGNATURES, "fv_cuda_source_hash", "_cpu")
