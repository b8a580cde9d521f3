"""Progress of long work: a bar on a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm


def make_bar(
    total: int, name: str, unit: str, *, initial: int = 0, quiet: bool = False, layout: str | None = None
) -> tqdm | None:
    """A bar on stderr, where that is a terminal and tqdm is installed; ``layout`` is tqdm's ``bar_format``."""
    if quiet or not sys.stderr.isatty() or find_spec("tqdm") is None:
        return None
    from tqdm import tqdm

    return tqdm(total=total, initial=initial, desc=name, unit=unit, dynamic_ncols=True, bar_format=layout)


@contextmanager
def progress(total: int, name: str, unit: str, *, quiet: bool = False) -> Iterator[Callable[[int], object]]:
    """A bar for as long as this lasts; calling what it yields moves it on by so many."""
    bar = make_bar(total, name, unit, quiet=quiet) if total else None
    try:
        yield (lambda count: None) if bar is None else bar.update
    finally:
        if bar is not None:
            bar.close()
