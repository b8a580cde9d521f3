"""Numbers as a person reads them: short, with the digits that matter."""

from __future__ import annotations


def show_number(value: float) -> str:
    """Three digits: 0.834, 12.5, 812, 12.3k, 6.42M."""
    for least, size, unit in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if value >= least:
            shown = value / size
            return f"{shown:.0f}{unit}" if shown >= 100 else f"{shown:.3g}{unit}"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def show_duration(seconds: float) -> str:
    """The two largest units: 45 s, 12 min, 3 h 05 min, 2 d 4 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"
