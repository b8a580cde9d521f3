"""Tables of launch configurations as they stand in the sources: finding one tile of one row, and replacing it.

A table is a literal dict with a row a line, ``(key, key): Tiles(Tile(...), Tile(...)),``. Only the numbers of one tile
are replaced; names, order and comments stay as they are.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """One tile: the ``index``-th, or that of ``name``, of the row ``key`` of the dict ``table`` in ``path``."""

    path: Path
    table: str
    key: tuple
    index: int
    name: str = ""


def _tile(place: Place) -> ast.Call:
    """The node of the tile; ``KeyError`` where the table itself has no such row."""
    for statement in ast.parse(place.path.read_text(encoding="utf-8")).body:
        names = [t.id for t in getattr(statement, "targets", []) if isinstance(t, ast.Name)]
        if place.table not in names:
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Dict):
                for key, value in zip(node.keys, node.values, strict=True):
                    if key is not None and ast.literal_eval(key) == place.key:
                        parts = _parts(value)
                        return parts[place.name] if place.name in parts else parts[place.index]
    raise KeyError(f"{place.path.name}: {place.table} has no row {place.key} of its own")


def _parts(row: ast.expr) -> dict[int | str, ast.expr]:
    """The tiles of a row by place, and by name where one is given so."""
    if isinstance(row, ast.Call):
        return dict(enumerate(row.args)) | {word.arg: word.value for word in row.keywords}
    return dict(enumerate(row.elts))


def read(place: Place) -> tuple[int, ...]:
    """The numbers of the tile."""
    return tuple(ast.literal_eval(argument) for argument in _tile(place).args)


def _replaced(place: Place, tile: tuple[int, ...]) -> tuple[list[str], int]:
    node = _tile(place)
    assert node.lineno == node.end_lineno, "a row is one line"
    lines = place.path.read_text(encoding="utf-8").splitlines(keepends=True)
    # Offsets of ast count bytes.
    line = lines[node.lineno - 1].encode()
    made = f"Tile({', '.join(map(str, tile))})".encode()
    lines[node.lineno - 1] = (line[: node.col_offset] + made + line[node.end_col_offset :]).decode()
    return lines, node.lineno - 1


def row(place: Place, tile: tuple[int, ...]) -> str:
    """The row with ``tile`` in it, as it would be written."""
    lines, at = _replaced(place, tile)
    return lines[at].strip()


def write(place: Place, tile: tuple[int, ...]) -> str:
    """Put ``tile`` there; returns where that is."""
    lines, at = _replaced(place, tile)
    place.path.write_text("".join(lines), encoding="utf-8")
    return f"{place.path.name}:{at + 1}"
