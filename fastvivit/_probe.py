"""What this machine has, or the reason it does not. Every answer is computed once, when first asked."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

from fastvivit import _native


@cache
def no_triton() -> str | None:
    """Why Triton can't be used here, or None."""
    if find_spec("triton") is None:
        return "triton is not installed (pip install fastvivit[gpu])"
    import torch

    if not torch.cuda.is_available() and not interpreting():
        return "no CUDA device (TRITON_INTERPRET=1 runs Triton kernels on the CPU)"
    return None


@cache
def interpreting() -> bool:
    """Whether Triton kernels run in its interpreter: Triton reads this variable when a kernel is defined."""
    return os.environ.get("TRITON_INTERPRET", "0") in ("1", "true", "True")


@cache
def no_cuda() -> str | None:
    """Why CUDA kernels can't run here, or None."""
    import torch

    return None if torch.cuda.is_available() else "no CUDA device"


# Newest first: version, and the module that holds its flash_attn_varlen_func.
_FLASH = ((4, "flash_attn.cute"), (3, "flash_attn_interface"), (2, "flash_attn"))


@cache
def no_flash_attn() -> str | None:
    """Why flash-attn can't be used here, or None."""
    if reason := no_cuda():
        return reason
    try:
        flash_attn()
    except ImportError as error:
        return str(error)
    return None


def flash_attn():
    """Return ``flash_attn_varlen_func`` of the newest flash-attn installed, or raise ``ImportError``."""
    from importlib import import_module

    failures = []
    for version, module in _FLASH:
        try:
            return import_module(module).flash_attn_varlen_func
        except (ImportError, AttributeError, OSError) as error:
            failures.append(f"{version}: {error}")
    raise ImportError("flash-attn is not installed or does not load (" + "; ".join(failures) + ")")


@cache
def no_native() -> str | None:
    """Why the compiled CPU kernels can't be used here, or None."""
    return None if _native.load() is not None else _native.reason()


@cache
def no_native_cuda() -> str | None:
    """Why the compiled CUDA kernels can't be used here, or None. Loads them only where there is a device."""
    import torch

    if torch.version.cuda is None or not torch.cuda.is_available():
        return "no CUDA device"
    return None if _native.load_cuda() is not None else _native.cuda_reason()


def refuses_triton(tensor) -> str | None:
    """Why the ``triton`` backend can't take ``tensor`` (device and dtype), or None."""
    import torch

    if tensor.is_cuda:
        return None
    if tensor.device.type != "cpu" or not interpreting():
        return f"tensors are on {tensor.device}, wanted cuda (or cpu under TRITON_INTERPRET=1)"
    if tensor.dtype == torch.bfloat16:
        return "bfloat16 is wrong in Triton's interpreter; wanted float32 or float16 on cpu"
    return None


def refuses_cuda(tensor) -> str | None:
    """Why the ``cuda`` backend can't take ``tensor``, or None."""
    import torch

    if not tensor.is_cuda:
        return f"tensors are on {tensor.device}, wanted cuda"
    found = torch.cuda.get_device_capability(tensor.device)
    if found < (8, 0):
        return f"the device has compute capability {found[0]}.{found[1]}, wanted 8.0 or more"
    return None


def refuses_native(tensor, dtypes) -> str | None:
    """Why the ``cpp`` backend can't take ``tensor``, or None."""
    if tensor.device.type != "cpu":
        return f"tensors are on {tensor.device}, wanted cpu"
    if tensor.dtype not in dtypes:
        return f"dtype {tensor.dtype}, wanted {' | '.join(str(d).removeprefix('torch.') for d in dtypes)}"
    return None
