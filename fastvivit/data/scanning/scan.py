"""A folder to a manifest."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from fastvivit.data.container import IMAGE_SUFFIXES, SUFFIXES
from fastvivit.data.entry import KINDS, Entry
from fastvivit.data.manifest import write_manifest
from fastvivit.data.quarantine import QUARANTINE, Bad, Quarantine, bad_of, write_quarantine
from fastvivit.data.scanning.captions import match, read_table, text_beside
from fastvivit.data.scanning.clips import Wanted, misled
from fastvivit.data.scanning.decode import surveyed
from fastvivit.data.scanning.records import Records, stamp_of
from fastvivit.data.scanning.result import Broken, ScanResult
from fastvivit.data.survey import Survey
from fastvivit.data.video import available_cores

_SUFFIXES = {"video": SUFFIXES, "image": IMAGE_SUFFIXES}
_NAMES = {"video": "manifest.jsonl", "image": "images.jsonl"}


def scan(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    kind: str | None = None,
    captions: str | os.PathLike[str] | None = None,
    uncaptioned: str | os.PathLike[str] | None = None,
    quarantine: str | os.PathLike[str] | None = None,
    segments: float | None = None,
    min_seconds: float = 0.5,
    salvage: bool = False,
    workers: int | None = None,
    deadline: float | None = 60.0,
    again: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> ScanResult:
    """Decode every video (or image) below a folder once, and write a manifest of those that are good.

    Captions come from a table, and from ``NAME.txt`` beside ``NAME.mp4``, each line one, for files that the table
    has none for. What was found in each file is kept beside the manifest (``manifest.scan.jsonl``): a scan that was
    killed goes on, and another one decodes only what is new or has changed in size or time, and tries again what
    could not be read at all.

    Args:
        folder: it; files and folders whose names begin with a dot are left out.
        out: the JSONL manifest to write; ``manifest.jsonl``, or ``images.jsonl``, in the folder by default.
        kind: "video" or "image"; None takes images where there is no video.
        captions: JSONL or CSV: the file as ``video``, ``image``, ``file``, ``file_name``, ``filename``, ``path`` or
            ``video_id`` (a path below the folder, a name or a stem), and ``caption``, ``captions`` or ``text``.
            ``start`` and ``end``, in seconds, make clips of their own; further fields are kept.
        uncaptioned: write clips that nothing is said of to this JSONL file, a manifest without captions, as
            ``caption_frames`` takes it; None leaves them out.
        quarantine: the file for what is left out, with reasons; ``quarantine.jsonl`` beside the manifest by default.
            Its lines on files that this scan doesn't see remain.
        segments: cut files into clips of so many seconds, each with the captions of its file; a rest of less than
            half of that is left out.
        min_seconds: shorter videos are left out.
        salvage: take damaged files as far as they are good.
        workers: decoder processes; None is one a core.
        deadline: seconds that a file may take without another picture; None waits for ever.
        again: decode all files, changed or not.
        progress: called with (files done since the last call, files in all).

    Returns:
        What was found.

    Raises:
        ValueError: an argument outside its range, no such folder or caption file, a bad line in it, no file of that
            kind, none that can be read, or none with a caption.
        ImportError: PyAV is not installed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"folder: wanted a folder of videos or images, no such folder: {folder}")
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind: wanted one of {KINDS} or None, got {kind!r}")
    workers = available_cores() if workers is None else workers
    _check(segments=segments, min_seconds=min_seconds, workers=workers, deadline=deadline)
    found_files = _find(folder)
    kind = kind or ("video" if found_files["video"] or not found_files["image"] else "image")
    files = found_files.pop(kind)
    if not files:
        raise ValueError(f"folder: wanted {kind}s ({', '.join(_SUFFIXES[kind])}) below {folder}, found none")
    out = folder / _NAMES[kind] if out is None else Path(out)
    quarantine = out.with_name(QUARANTINE) if quarantine is None else Path(quarantine)
    _check_outputs(captions, out=out, quarantine=quarantine, uncaptioned=uncaptioned)
    others = _others(quarantine, files, folder)
    # All that can be wrong with the captions is told before the long work.
    rows, unmatched = {}, []
    if captions is not None:
        rows, unmatched = match(read_table(Path(captions), kind), files, folder, Path(captions).parent)
    texts = {file: text_beside(folder / file) for file in files if file not in rows}
    wanted = Wanted(kind=kind, segments=segments, min_seconds=min_seconds, salvage=salvage)

    known, reused = _survey(files, folder, kind, out, workers, deadline, again, progress)
    entries, silent, broken, lines = [], [], [], []
    surveys: dict[str, Survey] = {}
    for file in files:
        path, found = folder / file, known[file]
        bad = found if isinstance(found, Broken) else wanted.refuse(file, found)
        if bad is not None:
            broken.append(bad)
            lines.append(bad_of(Entry(video=path, captions=(), kind=kind), bad.reason, whole=True))
            continue
        surveys[file] = found
        for entry in wanted.clips(path, found, rows.get(file, ()), texts.get(file, ())):
            bad = wanted.beyond(file, found, entry)
            if bad is not None:
                broken.append(bad)
                lines.append(bad_of(entry, bad.reason))
            else:
                (entries if entry.captions else silent).append(entry)
    write_quarantine(quarantine, [*others, *lines])
    if uncaptioned is not None and (silent or Path(uncaptioned).exists()):  # none from an earlier scan
        write_manifest(uncaptioned, silent)
    if not surveys:
        raise ValueError(f"folder: wanted a {kind} that can be read, none of {len(files)} can: reasons in {quarantine}")
    if entries:
        write_manifest(out, entries)
    elif uncaptioned is None:
        raise ValueError(
            f"captions: wanted a caption for at least one of {len(files)} files, found none: give a table of them, put "
            f"NAME.txt beside NAME{Path(files[0]).suffix}, or ask for uncaptioned clips to be listed"
        )
    return ScanResult(
        manifest=out,
        quarantine=quarantine,
        entries=entries,
        uncaptioned=silent,
        broken=tuple(broken),
        unmatched=tuple(unmatched),
        misled=tuple(text for file, found in surveys.items() if (text := misled(file, found)) is not None),
        surveys=surveys,
        kind=kind,
        reused=reused,
        others=sum(map(len, found_files.values())),
    )


def _check(*, segments: float | None, min_seconds: float, workers: int, deadline: float | None) -> None:
    for name, seconds in (("segments", segments), ("deadline", deadline)):
        if seconds is not None and not 0 < seconds < float("inf"):
            raise ValueError(f"{name}: wanted finite seconds above 0 or None, got {seconds!r}")
    if not 0 <= min_seconds < float("inf"):
        raise ValueError(f"min_seconds: wanted finite seconds of at least 0, got {min_seconds!r}")
    if workers < 1:
        raise ValueError(f"workers: wanted at least 1, got {workers!r}")


def _check_outputs(captions: str | os.PathLike[str] | None, **outputs: str | os.PathLike[str] | None) -> None:
    taken = {} if captions is None else {Path(captions).resolve(): "captions"}
    for name, file in outputs.items():
        if file is None:
            continue
        if Path(file).suffix.lower() == ".csv":
            raise ValueError(f"{name}: wanted a JSONL file to write, got {file}; CSV is only read")
        if not Path(file).parent.is_dir():
            raise ValueError(f"{name}: wanted a file in a folder that exists, got {file}")
        other = taken.setdefault(Path(file).resolve(), name)
        if other != name:
            raise ValueError(f"{name}: wanted a file of its own, {file} is that of {other}")


def _find(folder: Path) -> dict[str, list[str]]:
    """Paths below the folder by kind, sorted."""
    found: dict[str, list[str]] = {kind: [] for kind in KINDS}
    kinds = {suffix: kind for kind, suffixes in _SUFFIXES.items() for suffix in suffixes}
    for path, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not (name.startswith(".") or _leads_back(Path(path, name)))]
        for name in names:
            kind = kinds.get(Path(name).suffix.lower())
            # A dot begins what other programs leave beside a video, under its own suffix.
            if kind is not None and not name.startswith(".") and (file := Path(path, name)).is_file():
                found[kind].append(file.relative_to(folder).as_posix())
    return {kind: sorted(files) for kind, files in found.items()}


def _leads_back(folder: Path) -> bool:
    """Whether it is a link to a folder that it is in."""
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


def _survey(
    files: Sequence[str],
    folder: Path,
    kind: str,
    out: Path,
    workers: int,
    deadline: float | None,
    again: bool,
    progress: Callable[[int, int], object] | None,
) -> tuple[dict[str, Survey | Broken], int]:
    """What each file holds, and how many were known."""
    records = Records(out.with_name(f"{out.stem}.scan.jsonl"), again=again)
    # Before anything is read: a file that changes meanwhile is read again next time.
    stamps = {file: stamp_of(folder / file) for file in files}
    known = {file: found for file in files if (found := records.get(file, stamps[file])) is not None}
    reused = len(known)
    tell = progress or (lambda done, total: None)
    tell(reused, len(files))
    todo = [file for file in files if file not in known]
    with closing(surveyed(todo, folder, kind, min(workers, max(1, len(todo))), deadline)) as results:
        for file, found in results:
            records.add(file, stamps[file], found)
            known[file] = found
            tell(1, len(files))
    return known, reused


def _others(quarantine: Path, files: Sequence[str], folder: Path) -> list[Bad]:
    """Lines of an earlier quarantine about files that are there still, but not among these."""
    seen = {os.path.abspath(folder / file) for file in files}  # noqa: PTH100 (normalises "..")
    return [bad for bad in Quarantine(quarantine) if str(bad.video) not in seen and bad.video.exists()]
