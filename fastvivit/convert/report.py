"""What an import took, left, lacked and changed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class ImportReport:
    """The account of an imported encoder, at ``encoder.imported``. ``print`` it.

    Attributes:
        source: the layout that was read.
        used: names of the source's tensors in the encoder.
        left_out: names of those that have no place in it: heads, other towers, and what was waived.
        missing: names of ours that the source lacks, kept at their initialisation: zero for a bias, which is
            what a source without it computes.
        reshaped: ours whose shape is not the source's (inflated, resized), {name: (from, to)}.
        notes: what deserves a second look.
        prefix: what the source's names begin with.
        heads: tensors of a transformers ViViT's pooler and classifier, by full name; ``to_hf_state_dict``
            gives them back. Empty for other sources.
    """

    source: str
    used: tuple[str, ...]
    left_out: tuple[str, ...]
    missing: tuple[str, ...]
    reshaped: dict[str, tuple[Shape, Shape]]
    notes: tuple[str, ...] = ()
    prefix: str = ""
    heads: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        lines = [f"{self.source}: {len(self.used)} tensors used"]
        for what, names in (("left out", self.left_out), ("missing", self.missing)):
            if names:
                lines.append(f"  {what}: {', '.join(_grouped(names))}")
        lines += [f"  reshaped: {name} {before} -> {after}" for name, (before, after) in self.reshaped.items()]
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])


def _grouped(names: Iterable[str]) -> list[str]:
    """Names with the blocks' numbers as ``*``, each once, with its count."""
    counts = Counter(re.sub(r"\.\d+\.", ".*.", name) for name in names)
    return [name if count == 1 else f"{name} ({count})" for name, count in counts.items()]
