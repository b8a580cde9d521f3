"""Bytes, seconds and changes as people write and read them."""

from __future__ import annotations

import re

_UNITS = {"": 1, "B": 1} | {f"{p}B": 10 ** (3 * i) for i, p in enumerate("KMGT", 1)}
_UNITS |= {f"{p}iB": 2 ** (10 * i) for i, p in enumerate("KMGT", 1)}
_BY_NAME = {name.lower(): size for name, size in _UNITS.items()} | {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def parse_bytes(text: str | float, name: str = "gpu_memory") -> int:
    """Bytes of "16GB" (16e9), "16GiB" (16 · 2^30), "16G", or a number of bytes.

    Args:
        text: what was written; case and blanks do not matter.
        name: the argument, for the error.

    Raises:
        ValueError: anything else, or nothing above 0.
    """
    found = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)([a-z]*)", str(text).replace(" ", "").replace("_", "").lower())
    try:
        size = float(found[1]) * _BY_NAME[found[2]]
    except (TypeError, KeyError, ValueError):
        size = 0
    if not 1 <= size < float("inf"):
        raise ValueError(f"{name}: wanted a size such as 16GB, 16GiB or a number of bytes above 0, got {text!r}")
    return int(size)


def show_bytes(count: float) -> str:
    """Bytes in three digits, in powers of 1000 as cards are sold: "15.9 GB"."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= 0.9995 * size:
            return f"{_three(count / size)} {unit}"
    return f"{count:.0f} B"


def show_seconds(seconds: float) -> str:
    """Seconds in three digits: "1.24 s", "48.2 ms"."""
    if seconds >= 1:
        return f"{_three(seconds)} s"
    return f"{_three(seconds * 1e3)} ms"


def show_change(share: float) -> str:
    """A share more or less, in percent: "+27 %", "same"."""
    return "same" if abs(share) < 0.005 else f"{100 * share:+.0f} %"


def _three(number: float) -> str:
    size = abs(number)
    return f"{number:,.{0 if size >= 99.95 else 1 if size >= 9.995 else 2}f}"
