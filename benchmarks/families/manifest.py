"""Reading a manifest, as every run and every worker begins: its time, and what it keeps in memory."""

from __future__ import annotations

import gc
import json
import shutil
import tempfile
import tracemalloc
import weakref
from collections.abc import Callable
from pathlib import Path

import torch

from fastvivit.data import Entries, Entry, read_manifest

from ..case import OURS, Bench, Case, Claim, Contestant, Options

DICTS, OBJECTS = "a list of dicts by json, unchecked", "a list of entries"
# What entries may keep in memory, as a share of their file: its text, and a few numbers each.
MOST_KEPT = 1.6


def manifest_cases(options: Options) -> list[Case]:
    """A manifest as large as a data set of clips."""
    lines = 2_000 if options.quick else 100_000
    return [
        Case(
            name="data/manifest of 100,000 lines",
            layer=f"{lines:,} lines of JSON, one caption each, start and end of every second clip",
            counts="opening, reading, parsing and checking; file in the page cache",
            flops=0,
            bytes=100 * lines,
            build=lambda: _bench(lines),
            claims=(Claim(text="at most 2 x the time of json alone", peers=(DICTS,), at_most=2.0, times=True),),
            seconds=5.0,
            min_rounds=3,
            clock="wall",
        )
    ]


class _Manifest:
    """A manifest in a folder that goes with this object."""

    def __init__(self, lines: int) -> None:
        folder = tempfile.mkdtemp(prefix="fastvivit-manifest-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.path = Path(folder) / "clips.jsonl"
        with self.path.open("w", encoding="utf-8") as stream:
            for i in range(lines):
                row = {"video": f"videos/{i // 1000:04d}/{i:08d}.mp4", "caption": f"what is seen in clip number {i}"}
                stream.write(json.dumps(row | ({"start": i / 8, "end": i / 8 + 10} if i % 2 else {})) + "\n")

    def entries(self) -> Entries:
        """What the library reads."""
        return read_manifest(self.path)

    def objects(self) -> list[Entry]:
        """The same, every entry made."""
        return list(read_manifest(self.path))

    def dicts(self) -> list[dict[str, object]]:
        """What anybody would read."""
        with self.path.open(encoding="utf-8") as stream:
            return [json.loads(line) for line in stream]

    def gate(self, kept: int) -> str | None:
        """Every entry what its line says, and not much more in memory than the file."""
        for entry, row in zip(self.entries(), self.dicts(), strict=True):
            wanted = (str(self.path.parent / row["video"]), (row["caption"],), row.get("start", 0.0), row.get("end"))
            if (str(entry.video), entry.captions, entry.start, entry.end) != wanted:
                return f"{entry} where the manifest says {row}"
        size = self.path.stat().st_size
        return None if kept <= MOST_KEPT * size else f"{kept} bytes in memory for a file of {size}"


def _bench(lines: int) -> Bench:
    manifest = _Manifest(lines)
    calls = {OURS: manifest.entries, OBJECTS: manifest.objects, DICTS: manifest.dicts}
    kept = {who: _kept(call) for who, call in calls.items()}

    def counted(call: Callable[[], list]) -> Callable[[], torch.Tensor]:
        return lambda: torch.tensor([len(call())])

    return Bench(
        contestants={
            who: Contestant(call=counted(call), note=f"keeps {kept[who] / lines:.0f} bytes a line")
            for who, call in calls.items()
        },
        gate=lambda: manifest.gate(kept[OURS]),
    )


def _kept(call: Callable[[], object]) -> int:
    """Bytes of memory that a result holds on to."""
    tracemalloc.start()
    try:
        result = call()
        gc.collect()
        kept = tracemalloc.get_traced_memory()[0]
        del result
    finally:
        tracemalloc.stop()
    return kept
