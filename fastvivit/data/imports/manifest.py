"""Official annotations and a folder of videos to entries of a manifest."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastvivit.data.entry import Entry
from fastvivit.data.imports.annotated import Annotated, Source
from fastvivit.data.imports.folder import VideoFolder
from fastvivit.data.imports.registry import DATASETS, Importer
from fastvivit.data.imports.select import drawn, of_ids, of_split


@dataclass(frozen=True, kw_only=True)
class ImportResult:
    """What an import made, and what it could not use.

    Attributes:
        entries: for `write_manifest` or `ClipDataset`, in the order of the annotations.
        missing: ids of annotated videos that no file was found for; their clips are in no entry.
        duplicates: ids that several files answer to; the first by its path is used.
        skipped: annotations that no clip can be made of (an empty sentence, a segment that lasts no time, a
            video without captions), each with its place and the reason; of the whole file, all splits.
        seconds: length of all clips together as the annotations say, or None where they don't.
    """

    entries: list[Entry]
    missing: tuple[str, ...]
    duplicates: tuple[str, ...]
    skipped: tuple[str, ...]
    seconds: float | None


def import_annotations(
    name: str,
    annotations: str | os.PathLike[str],
    videos: str | os.PathLike[str],
    *,
    split: str | None = None,
    level: str | None = None,
    first: float | None = None,
    subset: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    answers: str | os.PathLike[str] | None = None,
    references: Sequence[str | os.PathLike[str]] = (),
    cut_frames: str | os.PathLike[str] | None = None,
) -> ImportResult:
    """Read a benchmark's official annotation file and find its videos.

    What is selected depends on the annotations alone, so everybody gets the same entries but for those whose
    videos are missing. See the package, `fastvivit.data.imports`, for the fields of an entry.

    Args:
        name: ``msrvtt``, ``vatex``, ``youcook2``, ``activitynet``, ``egoschema`` or ``perception_test``.
        annotations: the data set's file.
        videos: a folder with its videos, in sub-folders too.
        split: only this part, for data sets whose file names splits; EgoSchema's are ``subset`` (with an
            answer) and ``secret``.
        level: YouCook2 and ActivityNet: ``"segments"`` (a clip a sentence; the default), ``"paragraph"`` (the
            whole video, all sentences in a row as one caption: the target of summaries) or ``"video"`` (the
            whole video, every sentence a caption).
        first: YouCook2 and ActivityNet: only so many seconds from the beginning of every clip.
        subset: a file that lists the ids of videos to take: lines, CSV or JSON.
        limit: take so many videos of what is left, drawn by ``seed`` and the ids.
        seed: another draw.
        answers: EgoSchema: ``subset_answers.json``.
        references: ActivityNet, paragraph or video: files with further descriptions, such as ``val_2.json``.
        cut_frames: Perception Test: ``cut_frame_mapping_valid.json``, where videos must end.

    Returns:
        The entries and an account of what is not among them.

    Raises:
        ValueError: an unknown name, an option that the data set doesn't have, a bad file (named, with the place),
            nothing selected, or no video found.
    """
    if name not in DATASETS:
        raise ValueError(f"name: wanted one of {', '.join(DATASETS)}, got {name!r}")
    importer, path = DATASETS[name], Path(annotations)
    options = {
        "level": level,
        "first": first,
        "answers": None if answers is None else Path(answers),
        "references": tuple(map(Path, references)) or None,
        "cut_frames": None if cut_frames is None else Path(cut_frames),
    }
    given = {option: value for option, value in options.items() if value is not None}
    _check_options(importer, given, split)
    folder = VideoFolder(videos)
    read = importer.read(path, **given)
    clips = read.clips
    if not clips:
        why = f", for example {read.skipped[0]}" if read.skipped else ""
        raise ValueError(f"{path}: wanted at least one clip with captions, got none{why}")
    if split is not None:
        clips = of_split(clips, split)
    if subset is not None:
        clips = of_ids(clips, Path(subset))
    if limit is not None:
        clips = drawn(clips, limit, seed)
    return _located(clips, folder, path, tuple(read.skipped))


def _check_options(importer: Importer, given: dict[str, object], split: str | None) -> None:
    has = ("split",) * importer.has_splits + (*importer.options, "subset", "limit", "seed")
    for option in (*given, *(("split",) if split is not None else ())):
        if option not in has:
            raise ValueError(f"{option}: wanted an option that {importer.title} has ({', '.join(has)})")


def _located(clips: Sequence[Annotated], folder: VideoFolder, path: Path, skipped: tuple[str, ...]) -> ImportResult:
    entries: list[Entry] = []
    missing: dict[str, None] = {}
    duplicates: dict[str, None] = {}
    seconds: float | None = 0.0
    for clip in clips:
        source, files = _find(clip, folder)
        if not files:
            missing[clip.id] = None
            continue
        if len(files) > 1:
            duplicates[clip.id] = None
        fields = {"id": clip.id} | ({} if clip.split is None else {"split": clip.split}) | clip.extra
        entries.append(Entry(video=files[0], captions=clip.captions, start=source.start, end=source.end, extra=fields))
        seconds = None if seconds is None or source.seconds is None else seconds + source.seconds
    if not entries:
        example = clips[0]
        raise ValueError(
            f"videos: wanted at least one of the {len(missing)} videos of {path}, found none among the "
            f"{len(folder)} video files in {folder.path}; {example.id!r}, for example, would be called "
            + " or ".join(f"{source.stem}.mp4" for source in example.sources)
        )
    return ImportResult(
        entries=entries, missing=tuple(missing), duplicates=tuple(duplicates), skipped=skipped, seconds=seconds
    )


def _find(clip: Annotated, folder: VideoFolder) -> tuple[Source, list[Path]]:
    for source in clip.sources:
        if files := folder.find(source.stem):
            return source, files
    return clip.sources[0], []
