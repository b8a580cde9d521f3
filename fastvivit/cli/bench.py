"""``fastvivit bench``: time the kernels beside their strongest peers on this machine.

The cases are those of benchmarks/ in a checkout, which an installed package carries as fastvivit._benchmarks. Parsed
with argparse, because this command must run where no extra is installed.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import fastvivit


def load(name: str) -> ModuleType:
    """A module of the benchmarks, from the checkout if this package stands in one.

    Raises:
        ValueError: there are no benchmarks here.
    """
    root = Path(fastvivit.__file__).resolve().parent.parent
    # The folder beside this package, never just any "benchmarks" that the path of this process leads to.
    if (root / "benchmarks" / "run.py").is_file() and (root / "pyproject.toml").is_file():
        if str(root) not in sys.path:
            sys.path.insert(0, str(root))
        return import_module(f"benchmarks.{name}")
    if find_spec("fastvivit._benchmarks") is None:
        raise ValueError(f"benchmarks: neither in this package nor beside it ({root}); install fastvivit anew")
    return import_module(f"fastvivit._benchmarks.{name}")


def run(arguments: list[str]) -> int:
    """Run the benchmarks; 1 where a result was wrong."""
    return load("run").main(arguments, prog="fastvivit bench")
