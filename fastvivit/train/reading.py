"""Configs out of TOML and plain values: unknown, missing and mistyped fields are named."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from fastvivit.models import ViViTConfig, check_fields

C = TypeVar("C")

PRESETS = ("tiny", "small", "base", "large")
_PATHS = (
    ("start",),
    ("data", "train"),
    ("data", "heldout"),
    ("text", "folder"),
    ("language", "folder"),
    ("vision", "folder"),
)


def read_toml(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of a TOML file, with paths made absolute and overrides applied.

    Raises:
        ValueError: no such file, not TOML, an override that is not ``a.b=value``.
    """
    if not path.is_file():
        raise ValueError(f"config: wanted a TOML file, no such file: {path}")
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"config: {path} can't be read as TOML: {error}") from None
    _resolve(fields, path.parent)
    for text in overrides:
        changed: dict[str, Any] = {}
        _override(changed, text)
        _resolve(changed, Path.cwd())
        _merge(fields, changed, text)
    return fields


def config_from(kind: type[C], fields: dict[str, Any], prefix: str = "") -> C:
    """Make a config of ``kind``, a dataclass, out of plain values; tables become dataclasses, too.

    Raises:
        ValueError: an unknown field, a missing one, a wrong type, and what the dataclass itself refuses.
    """
    make: Any = kind
    if kind is ViViTConfig and "preset" in fields:
        fields = dict(fields)
        preset = fields.pop("preset")
        if preset not in PRESETS:
            raise ValueError(f"{prefix}preset: wanted one of {', '.join(map(repr, PRESETS))}, got {preset!r}")
        make = getattr(ViViTConfig, preset)
    try:
        check_fields(kind, fields)
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from None
    hints = get_type_hints(kind)
    values = {}
    for declared in dataclasses.fields(kind):
        name = declared.name
        if name in fields:
            values[name] = _value(hints[name], fields[name], f"{prefix}{name}")
        elif declared.default is dataclasses.MISSING and declared.default_factory is dataclasses.MISSING:
            raise ValueError(f"{prefix}{name}: wanted this field, it is missing")
    try:
        return make(**values)
    except ValueError as error:
        # The encoder's own messages don't know in which table they stand.
        raise ValueError(f"{prefix}{error}" if kind is ViViTConfig else str(error)) from None


def _value(hint: Any, value: Any, name: str) -> Any:
    if get_origin(hint) in (Union, UnionType) and value is not None:
        table = next((option for option in get_args(hint) if dataclasses.is_dataclass(option)), None)
        hint = hint if table is None else table
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ValueError(f"{name}: wanted a table of fields, got {value!r}")
        return config_from(hint, value, f"{name}.")
    if value == "inf" and hint is float:
        return float("inf")
    found = _fit(hint, value)
    if found is _MISFIT:
        raise ValueError(f"{name}: wanted {_words(hint)}, got {value!r}")
    return found


_MISFIT = object()


def _fit(hint: Any, value: Any) -> Any:
    """``value`` as the annotation ``hint`` has it, or ``_MISFIT``."""
    if get_origin(hint) in (Union, UnionType):
        tried = (_fit(option, value) for option in get_args(hint))
        return next((found for found in tried if found is not _MISFIT), _MISFIT)
    if get_origin(hint) is tuple:
        items = get_args(hint)
        if not isinstance(value, list | tuple):
            return _MISFIT
        if items[-1] is Ellipsis:
            items = (items[0],) * len(value)
        if len(items) != len(value):
            return _MISFIT
        found = tuple(_fit(item, part) for item, part in zip(items, value, strict=True))
        return _MISFIT if _MISFIT in found else found
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return config_from(hint, value, f"{hint.__name__}.")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # A bool is an int to Python, and a mistake here.
    fits = isinstance(value, hint) and not (hint is int and isinstance(value, bool))
    return value if fits else _MISFIT


def _words(hint: Any) -> str:
    names = {
        int: "a whole number",
        float: "a number",
        str: "a string",
        bool: "true or false",
        type(None): "nothing",
    }
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_words(option) for option in get_args(hint))
    if get_origin(hint) is tuple:
        items = get_args(hint)
        count = "a list" if items[-1] is Ellipsis else f"{len(items)}"
        if dataclasses.is_dataclass(items[0]):
            return f"{count} of tables ({', '.join(field.name for field in dataclasses.fields(items[0]))})"
        return f"{count} of {names[items[0]].removeprefix('a ')}s"
    return names[hint]


def _resolve(fields: dict[str, Any], folder: Path) -> None:
    data = fields.get("data")
    sources = data.get("sources") if isinstance(data, dict) else None
    for source in sources if isinstance(sources, list) else ():
        if isinstance(source, dict) and isinstance(source.get("path"), str):
            source["path"] = str((folder / source["path"]).absolute())
    for *tables, name in _PATHS:
        section: Any = fields
        for table in tables:
            section = section.get(table) if isinstance(section, dict) else None
        if isinstance(section, dict) and isinstance(section.get(name), str):
            section[name] = str((folder / section[name]).absolute())


def _override(fields: dict[str, Any], text: str) -> None:
    name, sign, value = text.partition("=")
    path = name.strip().split(".")
    if not sign or not all(path):
        raise ValueError(f"override: wanted a field and its value, such as optimiser.lr=1e-4, got {text!r}")
    try:
        parsed = tomllib.loads(f"value = {value.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()  # a string without its quotes, which shells take away
    for part in reversed(path):
        parsed = {part: parsed}
    fields.update(parsed)


def _merge(fields: dict[str, Any], changed: dict[str, Any], text: str) -> None:
    for name, value in changed.items():
        if isinstance(value, dict) and name in fields:
            if not isinstance(fields[name], dict):
                raise ValueError(f"override: wanted {name} to be a table in {text!r}, it is {fields[name]!r}")
            _merge(fields[name], value, text)
        else:
            fields[name] = value
