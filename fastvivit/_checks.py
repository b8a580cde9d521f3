"""Argument checks: metadata in the public functions, values inside the operators (so when compiled too)."""

from __future__ import annotations

from ctypes import byref, c_int64

import torch

from fastvivit import _native

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def names(dtypes) -> str:
    return " | ".join(str(d).removeprefix("torch.") for d in dtypes)


def require_tensor(name: str, value, dims: tuple[int, ...], dtypes=FLOATING, like: torch.Tensor | None = None) -> None:
    """Raise ``ValueError`` unless ``value`` is a tensor of these ``dims`` and ``dtypes``, beside ``like``."""
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{name}: wanted a tensor, got {type(value).__name__}")
    if value.dim() not in dims:
        raise ValueError(f"{name}: wanted {' or '.join(map(str, dims))} dimensions, got shape {tuple(value.shape)}")
    if value.dtype not in dtypes:
        raise ValueError(f"{name}: wanted {names(dtypes)}, got {str(value.dtype).removeprefix('torch.')}")
    if like is not None and value.device != like.device:
        raise ValueError(f"{name}: wanted device {like.device}, got {value.device}")


def require_ids(name: str, ids, dims: tuple[int, ...], like: torch.Tensor) -> None:
    """Raise ``ValueError`` unless ``ids`` is int64, of ``dims`` dimensions, on the device of ``like``."""
    require_tensor(name, ids, dims, (torch.int64,), like)


def flat_ids(name: str, ids: torch.Tensor, batch: int, size: int, *, distinct: bool) -> torch.Tensor:
    """Ids of ``batch`` clips, ``size`` to a clip, as rows of the flattened batch: ``ids[b, k] + b * size``.

    On a CPU a value outside ``0..size-1`` (or, with ``distinct``, a repeated one) is a ``ValueError``. On
    other devices looking would stall them: an id out of range becomes -1, which every backend turns into NaN.

    Args:
        name: the argument to name in the error.
        ids: (batch, K), or (K,) with ``batch`` 1, int64.
        batch: clips.
        size: ids run over ``0..size-1`` in each clip.
        distinct: whether an id may not repeat within its clip.

    Returns:
        (batch * K,) int64, contiguous.
    """
    ids = ids.contiguous()
    per_clip = ids.shape[-1]
    if ids.device.type != "cpu":
        valid = (ids >= 0) & (ids < size)
        if batch > 1:
            ids = ids + torch.arange(0, batch * size, size, device=ids.device).unsqueeze(1)
        return torch.where(valid, ids, -1).view(-1)
    lib = _native.load()
    if lib is None:
        return _flat_ids_torch(name, ids, batch, size, distinct)
    out = ids.view(-1) if batch == 1 else torch.empty(ids.numel(), dtype=torch.int64)
    bad = lib.fv_flat_ids(ids.data_ptr(), batch, per_clip, size, distinct, out.data_ptr() if batch > 1 else None)
    if bad != -1:
        _raise_bad_id(name, ids, size, bad if bad >= 0 else -2 - bad, repeated=bad < 0)
    return out


def _flat_ids_torch(name: str, ids: torch.Tensor, batch: int, size: int, distinct: bool) -> torch.Tensor:
    outside = (ids < 0) | (ids >= size)
    if outside.any():
        _raise_bad_id(name, ids, size, int(outside.view(-1).nonzero()[0]), repeated=False)
    flat = (ids.view(batch, -1) + torch.arange(batch).unsqueeze(1) * size).view(-1)
    if distinct and flat.numel() > 1:
        order = flat.argsort(stable=True)
        again = flat[order].diff() == 0
        if again.any():
            _raise_bad_id(name, ids, size, int(order[1:][again].min()), repeated=True)
    return flat


def _raise_bad_id(name: str, ids: torch.Tensor, size: int, row: int, *, repeated: bool) -> None:
    where = row if ids.dim() == 1 else (row // ids.shape[-1], row % ids.shape[-1])
    where = where if isinstance(where, int) else ", ".join(map(str, where))
    wanted = "distinct ids" if repeated else f"ids in 0..{size - 1}"
    got = f"{int(ids.view(-1)[row])} again" if repeated else str(int(ids.view(-1)[row]))
    raise ValueError(f"{name}: wanted {wanted}, got {got} at [{where}]")


def check_cu_seqlens(name: str, cu_seqlens: torch.Tensor, rows: int) -> int:
    """The longest length; ``ValueError`` unless it starts at 0, never falls, and ends within ``rows``."""
    lib = _native.load()
    if lib is None:
        return _check_cu_seqlens_python(name, cu_seqlens, rows)
    cu_seqlens, longest = cu_seqlens.contiguous(), c_int64()
    if lib.fv_cu_seqlens(cu_seqlens.data_ptr(), cu_seqlens.shape[0], rows, byref(longest)) == -1:
        return longest.value
    return _check_cu_seqlens_python(name, cu_seqlens, rows)


def _check_cu_seqlens_python(name: str, cu_seqlens: torch.Tensor, rows: int) -> int:
    values = cu_seqlens.tolist()
    if values[0] != 0:
        raise ValueError(f"{name}: wanted a first value of 0, got {values[0]}")
    longest, before = 0, 0
    for i, value in enumerate(values):
        longest = max(longest, value - before)
        if value < before:
            raise ValueError(f"{name}: wanted values that never fall, got {before} then {value} at [{i}]")
        before = value
    if before > rows:
        raise ValueError(f"{name}: wanted a last value of at most {rows} (the rows), got {before}")
    return longest
