"""MSR-VTT: clips of 10 to 30 seconds with twenty captions; and the 1k-A list, a caption each."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

from fastvivit.data.imports.annotated import Annotated, Annotations, Source
from fastvivit.data.imports.reading import Node, read_csv, read_json

_YOUTUBE = re.compile(r"(?:[?&]v=|youtu\.be/)(?P<id>[\w-]{11})")


def read(path: Path) -> Annotations:
    """Read ``MSRVTT_data.json``, ``train_val_videodatainfo.json``, ``test_videodatainfo.json`` or a 1k-A list.

    ``{"videos": [{"video_id", "start time", "end time", "split", "url", ...}], "sentences": [{"video_id",
    "caption"}]}``, or ``MSRVTT_JSFUSION_test.csv`` with the columns ``video_id`` and ``sentence``, or the same
    as JSON, ``[{"video_id" or "video", "caption": str | [str]}]``. The file is the clip, named by its
    ``video_id``, or the whole YouTube video, named by its id.

    Raises:
        ValueError: a file of another form; a video without captions is skipped.
    """
    if path.suffix.lower() == ".csv":
        return _of_pairs([(_id(row), [_column(row)], {}) for row in read_csv(path)])
    root = read_json(path)
    if isinstance(root.value, list):
        return _of_pairs([(_id(row), _captions(row), _extra(row)) for row in root.elements()])
    return _of_object(root)


def _of_object(root: Node) -> Annotations:
    found = Annotations()
    videos: dict[str, Node] = {}
    for node in root.at("videos").elements():
        name = node.at("video_id").name()
        if name in videos:
            raise node.at("video_id").wrong("a video_id that no other of 'videos' has")
        videos[name] = node
    said: dict[str, list[str]] = {name: [] for name in videos}
    for node in root.at("sentences").elements():
        name, text = node.at("video_id").name(), node.at("caption")
        if name not in said:
            raise node.at("video_id").wrong("a video_id that 'videos' has")
        if text.text():
            said[name].append(text.text())
        else:
            found.skipped.append(f"{text.place}: an empty caption")
    for name, node in videos.items():
        if not said[name]:
            found.skipped.append(f"{node.place}: {name!r} has no captions")
            continue
        split = node.at("split").name() if node.has("split") else None
        clip = Annotated(
            id=name, captions=tuple(said[name]), sources=_sources(name, node), split=split, extra=_extra(node)
        )
        found.clips.append(clip)
    return found


def _of_pairs(pairs: list[tuple[str, list[Node], dict[str, Any]]]) -> Annotations:
    """Clips of (id, captions, further fields), those of one video put together."""
    found = Annotations()
    said: dict[str, list[str]] = {}
    extras: dict[str, dict[str, Any]] = {}
    for name, nodes, extra in pairs:
        extras.setdefault(name, extra)
        for node in nodes:
            if node.text():
                said.setdefault(name, []).append(node.text())
            else:
                found.skipped.append(f"{node.place}: an empty caption")
    for name, texts in said.items():
        clip = Annotated(id=name, captions=tuple(texts), sources=(Source(name),), extra=extras[name])
        found.clips.append(clip)
    return found


def _sources(name: str, node: Node) -> tuple[Source, ...]:
    if not (node.has("start time") and node.has("end time")):
        return (Source(name),)
    start, end = node.at("start time").number(), node.at("end time").number()
    if end <= start:
        raise node.at("end time").wrong(f"seconds after the start time ({start})")
    cut = Source(name, seconds=end - start)
    match = _YOUTUBE.search(node.at("url").name()) if node.has("url") else None
    return (cut, Source(match["id"], start, end, end - start)) if match else (cut,)


def _extra(node: Node) -> dict[str, Any]:
    return {"category": node.value["category"]} if node.has("category") else {}


def _id(row: Node) -> str:
    if row.has("video_id") or not row.has("video"):
        return row.at("video_id").name()
    return PurePosixPath(row.at("video").name()).stem


def _captions(row: Node) -> list[Node]:
    node = row.at("caption")
    return node.elements() if isinstance(node.value, list) else [node]


def _column(row: Node) -> Node:
    # Copies of the file differ in what they call it.
    return row.at(next((name for name in ("sentence", "sentences", "caption") if row.has(name)), "sentence"))
