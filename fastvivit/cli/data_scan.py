"""``fastvivit data scan``: a folder of videos or images to a manifest."""

from __future__ import annotations

import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fastvivit.data import ScanResult, scan
from fastvivit.train.progress import progress

_SHOWN = 5  # examples of each, on stderr
_SIZES = 4


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Decode every video (or image) below a folder once, and write a manifest of those that are good.

    Files that can't be opened, hang, crash the decoder, are damaged or too short are left out, with the reason in
    quarantine.jsonl. A scan that is stopped goes on where it was, and another one decodes only what is new or changed.

    Attributes:
        folder: the folder.
        captions: a CSV or JSONL file with the file's name (video, file, file_name, path, ...) and a caption; start and
            end in seconds make clips. Without it, each line of NAME.txt is a caption of NAME.mp4.
        out: the JSONL manifest to write; FOLDER/manifest.jsonl, of images FOLDER/images.jsonl.
        kind: what to look for; by default videos, and images where there is no video.
        uncaptioned: write clips without a caption to this JSONL file, for `fastvivit data caption`; they are left out
            otherwise.
        quarantine: where reasons go; quarantine.jsonl beside the manifest.
        segments: cut files into clips of so many seconds.
        min_seconds: leave out shorter videos.
        salvage: take damaged files as far as they are good.
        workers: processes that decode; one a core by default.
        deadline: give a file up that has shown no further picture for so many seconds.
        again: decode unchanged files, too.
    """

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    captions: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    out: Annotated[Path | None, tyro.conf.arg(metavar="MANIFEST.jsonl")] = None
    kind: Annotated[Literal["video", "image"] | None, tyro.conf.arg(metavar="video|image")] = None
    uncaptioned: Annotated[Path | None, tyro.conf.arg(metavar="FILE.jsonl")] = None
    quarantine: Annotated[Path | None, tyro.conf.arg(metavar="FILE.jsonl")] = None
    segments: Annotated[float | None, tyro.conf.arg(metavar="SECONDS")] = None
    min_seconds: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = 0.5
    salvage: bool = False
    workers: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    deadline: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = 60.0
    again: bool = False


def run(arguments: list[str]) -> int:
    """Scan, write, and say what there is and what is not."""
    options = tyro.cli(Scan, prog="fastvivit data scan", args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
    with ExitStack() as stack:
        bars = []

        def advance(done: int, total: int) -> None:
            if not bars:
                bars.append(stack.enter_context(progress(total, "scan", "file")))
            bars[0](done)

        found = scan(
            options.folder,
            options.out,
            kind=options.kind,
            captions=options.captions,
            uncaptioned=options.uncaptioned,
            quarantine=options.quarantine,
            segments=options.segments,
            min_seconds=options.min_seconds,
            salvage=options.salvage,
            workers=options.workers,
            deadline=options.deadline,
            again=options.again,
            progress=advance,
        )
    for name, words in _table(found, options.uncaptioned):
        print(f"{name:<10}{words}")
    _examples("broken", [f"{bad.file}: {bad.reason}" for bad in found.broken])
    _examples("header that is wrong", found.misled)
    _examples("caption without a file", found.unmatched)
    if options.uncaptioned is None:
        _examples("clip without a caption", list(dict.fromkeys(str(entry.video) for entry in found.uncaptioned)))
    return 0


def _table(found: ScanResult, uncaptioned: Path | None) -> list[tuple[str, str]]:
    good = found.surveys.values()
    bad = len({one.file for one in found.broken} - found.surveys.keys())
    reused = f", {found.reused} as scanned before" if found.reused else ""
    other = "image" if found.kind == "video" else "video"
    more = f"; {found.others} {other}s not looked at (--kind {other})" if found.others else ""
    rows = [("files", f"{len(good)} {found.kind}s read, {bad} not{reused}{more}")]
    if found.kind == "video":
        rows.append(("hours", f"{found.seconds / 3600:.2f}"))
    sizes = Counter(f"{one.width}x{one.height}" for one in good).most_common()
    rest = f", {len(sizes) - _SIZES} others" if len(sizes) > _SIZES else ""
    rows.append(("sizes", ", ".join(f"{size} ({count})" for size, count in sizes[:_SIZES]) + rest))
    rates = [one.fps for one in good if one.fps is not None]
    if rates:
        rows.append(("fps", f"{min(rates):.4g} to {max(rates):.4g}, median {statistics.median(rates):.4g}"))
    captions = sum(len(entry.captions) for entry in found.entries)
    if found.entries:
        rows.append(("clips", f"{len(found.entries)} with {captions} captions: {found.manifest}"))
    if found.uncaptioned:
        where = "left out (--uncaptioned FILE.jsonl lists them)" if uncaptioned is None else str(uncaptioned)
        rows.append(("", f"{len(found.uncaptioned)} without a caption: {where}"))
    if found.broken:
        kinds = Counter(one.kind for one in found.broken).most_common()
        rows.append(("broken", ", ".join(f"{count} {kind}" for kind, count in kinds) + f": {found.quarantine}"))
    return rows


def _examples(what: str, found: Sequence[str]) -> None:
    if found:
        more = f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        print(f"{len(found)} × {what}: {'; '.join(found[:_SHOWN])}{more}", file=sys.stderr)
