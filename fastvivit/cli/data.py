"""``fastvivit data``: manifests, one command for each way to get one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fastvivit.cli import data_caption, data_pack, data_scan, data_transcripts
from fastvivit.data import import_annotations, write_manifest
from fastvivit.data.imports import DATASETS, ImportResult

_SHOWN = 5  # examples of what is missing, on stderr


@dataclass(frozen=True, kw_only=True)
class Import:
    """Turn a benchmark's official annotation file and a folder of its videos into a manifest.

    docs/datasets.md has the command for each benchmark.

    Attributes:
        name: the benchmark.
        annotations: its annotation file, JSON or CSV.
        videos: the folder with its videos, in sub-folders too.
        out: the JSONL manifest to write.
        split: only this part, where the annotations name splits (train, val, test; egoschema: subset).
        level: youcook2, activitynet: a clip a sentence (the default), the whole video with all sentences in a row
            as one caption, or the whole video with every sentence as a caption.
        first: youcook2, activitynet: only so many seconds from the beginning of every clip.
        subset: a file that lists the ids of videos to take: lines, CSV or JSON.
        limit: take so many videos of what is left, drawn by the seed.
        seed: another draw.
        answers: egoschema: subset_answers.json.
        references: activitynet: a file with further captions of the same videos; may be given several times.
        cut_frames: perception_test: cut_frame_mapping_valid.json, where videos must end.
        missing: write the ids of videos that were not found to this file, one a line.
    """

    name: Annotated[
        tyro.conf.Positional[Literal["msrvtt", "vatex", "youcook2", "activitynet", "egoschema", "perception_test"]],
        tyro.conf.arg(metavar="NAME"),
    ]
    annotations: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="ANNOTATIONS")]
    videos: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="VIDEOS")]
    out: Annotated[Path, tyro.conf.arg(metavar="MANIFEST.jsonl")]
    split: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    level: Annotated[
        Literal["segments", "paragraph", "video"] | None, tyro.conf.arg(metavar="segments|paragraph|video")
    ] = None
    first: Annotated[float | None, tyro.conf.arg(metavar="SECONDS")] = None
    subset: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    limit: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    seed: int = 0
    answers: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    references: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FILE")] = ()
    cut_frames: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    missing: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None


def run(arguments: list[str]) -> int:
    """Run one of the commands below this one."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in _COMMANDS:
        raise ValueError(f"wanted a command ({', '.join(_COMMANDS)}), got {name!r}")
    return _COMMANDS[name][0](rest)


def _import(arguments: list[str]) -> int:
    """Import, write, and say what there is and what is not."""
    options = tyro.cli(Import, prog="fastvivit data import", args=arguments)
    result = import_annotations(
        options.name,
        options.annotations,
        options.videos,
        split=options.split,
        level=options.level,
        first=options.first,
        subset=options.subset,
        limit=options.limit,
        seed=options.seed,
        answers=options.answers,
        references=options.references,
        cut_frames=options.cut_frames,
    )
    write_manifest(options.out, result.entries)
    if options.missing is not None:
        options.missing.write_text("".join(f"{name}\n" for name in result.missing), encoding="utf-8")
    print(f"{_summary(result)}: {options.out}")
    if advice := DATASETS[options.name].advice:
        print(advice)
    _report("videos not found", result.missing)
    _report("videos in several files, the first by path taken", result.duplicates)
    _report("annotations skipped", result.skipped)
    return 0


def _summary(result: ImportResult) -> str:
    captions = sum(len(entry.captions) for entry in result.entries)
    hours = "length unknown" if result.seconds is None else f"{result.seconds / 3600:.2f} hours"
    return f"{len(result.entries)} entries, {captions} captions, {hours}, {len(result.missing)} videos missing"


def _report(what: str, found: tuple[str, ...]) -> None:
    if found:
        more = ", ..." if len(found) > _SHOWN else ""
        print(f"{len(found)} {what}: {', '.join(found[:_SHOWN])}{more}", file=sys.stderr)


_COMMANDS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "import": (_import, "official annotation files of benchmarks to a manifest"),
    "scan": (data_scan.run, "a folder of videos or images to a manifest, each file decoded once and checked"),
    "pack": (data_pack.run, "clips decoded once, in shards from which masked steps read only what they keep"),
    "caption": (data_caption.run, "new captions from a frame of each clip, by any captioner"),
    "transcripts": (data_transcripts.run, "new captions from what is said, by any language model"),
}


def _help() -> str:
    lines = [f"  {name:<13}{what}" for name, (_, what) in _COMMANDS.items()]
    return (
        "usage: fastvivit data COMMAND ...    (`fastvivit data COMMAND --help` says more)\n\n"
        "Manifests: which clips a data set holds.\n\ncommands:\n" + "\n".join(lines)
    )
