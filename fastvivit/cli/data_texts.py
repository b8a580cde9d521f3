"""What the commands that write texts share: a callable by its import path, clips to describe, and the new manifest."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from fastvivit.data import write_manifest
from fastvivit.data.entry import Entry
from fastvivit.data.rows import row_text
from fastvivit.data.synthetic import NewTexts
from fastvivit.data.synthetic.result import read_source
from fastvivit.search import find_videos

_SHOWN = 5  # of each kind of dropped clips, on stderr


def load_callable(text: str) -> Callable[..., Any]:
    """What ``module:name`` names; a class is called without arguments. Modules are also found in the current folder.

    Raises:
        ValueError: not of this form, no such module or name, or nothing that can be called.
    """
    module, colon, name = text.partition(":")
    if not (module and colon and name):
        raise ValueError(f"by: wanted module:function, got {text!r}")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(f"{error.name}.")):
            raise  # something that the module itself wants
        raise ValueError(f"by: wanted a module that can be imported from here, there is no {error.name!r}") from None
    finally:
        sys.path.pop(0)
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"by: wanted something in {module}, it has no {name!r}")
        found = getattr(found, part)
    if isinstance(found, type):
        found = found()
    if not callable(found):
        raise ValueError(f"by: wanted something to call, {text} is a {type(found).__name__}")
    return found


def clips_of(path: Path) -> list[Entry | Path]:
    """The entries of a manifest or of tar shards, or the videos of a folder."""
    if path.is_dir() and not any(path.glob("*.tar")):
        return list(find_videos([path]))
    return read_source(path)


def ledger_of(out: Path) -> Path:
    """Where texts are kept until the manifest is written, and for the next time.

    Raises:
        ValueError: a manifest that could not be written at the end.
    """
    if out.suffix.lower() == ".csv":
        raise ValueError(f"out: wanted a JSONL file to write, got {out}; CSV is only read")
    if not out.parent.is_dir():
        raise ValueError(f"out: wanted a file in a folder that exists, got {out}")
    return out.with_name(f"{out.name}.texts")


def finish(found: NewTexts, out: Path, dropped: Path | None) -> int:
    """Write what there is, and say what there is not."""
    if dropped is not None:
        lines = (row_text(one._asdict()) + "\n" for one in found.dropped)
        dropped.write_text("".join(lines), encoding="utf-8")
    for kind, count in found.counts.items():
        examples = [one for one in found.dropped if one.kind == kind]
        print(f"{count} dropped: {kind}", file=sys.stderr)
        for one in examples[:_SHOWN]:
            print(f"  {one.video}: {one.reason}", file=sys.stderr)
        if count > _SHOWN:
            print("  ...", file=sys.stderr)
    if not found.entries:
        raise ValueError(f"no clip got a text, {out} is not written")
    write_manifest(out, found.entries)
    print(f"{len(found.entries)} entries with a new text, {len(found.dropped)} dropped: {out}")
    return 0
