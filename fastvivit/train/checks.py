"""Checks of config fields: every refusal names the field, what was wanted and what came."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def at_least(section: str, config: Any, least: float, *names: str) -> None:
    """Refuse fields of ``config`` below ``least``, infinite ones and NaN."""
    for name in names:
        value = getattr(config, name)
        if not least <= value < math.inf:
            raise ValueError(f"{_named(section, name)}: wanted at least {least}, got {value!r}")


def above(section: str, config: Any, bound: float, *names: str) -> None:
    """Refuse fields of ``config`` that are not above ``bound``; infinity is."""
    for name in names:
        value = getattr(config, name)
        if not value > bound:
            raise ValueError(f"{_named(section, name)}: wanted above {bound}, got {value!r}")


def one_of(name: str, value: str, known: Sequence[str]) -> None:
    """Refuse a word that is none of ``known``."""
    if value not in known:
        raise ValueError(f"{name}: wanted one of {', '.join(map(repr, known))}, got {value!r}")


def _named(section: str, name: str) -> str:
    return f"{section}.{name}" if section else name
