"""``fastvivit data pack``: decode a manifest once, into shards from which masked steps read the kept tubelets alone."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fastvivit.data.manifest import read_manifest
from fastvivit.data.quarantine import QUARANTINE
from fastvivit.data.shards import check, pack
from fastvivit.data.shards.files import read_pack
from fastvivit.planning.sizes import parse_bytes
from fastvivit.train.progress import progress


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Decode every clip, or image, of a manifest once, into shards of bytes laid out by tubelet.

    Training with masks then reads only the tubelets that it keeps, and decodes nothing. Killed at any time, the same
    command goes on where it was. Frames, fps, size and tubelet are those of the encoder that will be trained.

    Attributes:
        manifest: a JSONL or CSV manifest.
        out: the folder to write.
        frames: pictures a clip; not used of images.
        fps: pictures per second; not used of images.
        size: pixels of the square.
        tubelet: pixels of a tubelet, frames, rows, columns; of images the last two.
        shard_size: of a file at most, as 500MB or 1GB.
        workers: clips decoded at a time, each in a process of its own.
        deadline: for decoding one clip; what takes longer is left out.
        check: read every byte of a pack and compare it with what was written; exit status 1 where it differs.
    """

    manifest: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="MANIFEST")] = None
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    frames: int = 16
    fps: float = 1.0
    size: int = 256
    tubelet: Annotated[str, tyro.conf.arg(metavar="T,H,W")] = "2,16,16"
    shard_size: Annotated[str, tyro.conf.arg(metavar="SIZE")] = "1GB"
    workers: int = 1
    deadline: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = 60.0
    check: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None


def run(arguments: list[str]) -> int:
    """Pack, or check a pack."""
    options = tyro.cli(Pack, prog="fastvivit data pack", args=arguments)
    if options.check is not None:
        return _check(options.check)
    if options.manifest is None or options.out is None:
        raise ValueError(
            "manifest, out: wanted both (or --check FOLDER), got " + ("no out" if options.manifest else "none")
        )
    tubelet, shard_size = _tubelet(options.tubelet), parse_bytes(options.shard_size, "shard-size")
    entries = read_manifest(options.manifest)
    with progress(len(entries), "pack", "clip") as advance:
        made = pack(
            entries,
            options.out,
            frames=options.frames,
            fps=options.fps,
            size=options.size,
            tubelet=tubelet,
            shard_size=shard_size,
            workers=options.workers,
            deadline=options.deadline,
            progress=advance,
        )
    print(f"{made.clips} clips, {made.bytes / 1e6:,.1f} MB: {made.folder}")
    if made.failures:
        where = made.folder / QUARANTINE
        print(f"{len(made.failures)} entries could not be read, reasons are in {where}", file=sys.stderr)
    return 0


def _check(folder: Path) -> int:
    found = read_pack(folder)
    total = sum(shard.bytes for shard in found.shards)
    with progress(total, "check", "B") as advance:
        wrong = check(folder, progress=advance)
    for line in wrong:
        print(line, file=sys.stderr)
    print(f"{len(found.shards) - len(wrong)} of {len(found.shards)} shards are as they were written: {folder}")
    return 1 if wrong else 0


def _tubelet(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"tubelet: wanted whole numbers as 2,16,16, got {text!r}")
    return tuple(map(int, parts))
