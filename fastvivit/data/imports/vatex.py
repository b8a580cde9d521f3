"""VATEX: ten seconds of a YouTube video, with ten captions in English."""

from __future__ import annotations

import re
from pathlib import Path

from fastvivit.data.imports.annotated import Annotated, Annotations, Source
from fastvivit.data.imports.reading import Node, read_json

_CLIP = re.compile(r"(?P<video>[\w-]{11})_(?P<start>\d+)_(?P<end>\d+)")


def read(path: Path) -> Annotations:
    """Read ``vatex_training_v1.0.json``, ``vatex_validation_v1.0.json`` or ``vatex_public_test_english_v1.1.json``.

    ``[{"videoID": "YOUTUBEID_000012_000022", "enCap": [ten sentences], "chCap": ...}]``: the Chinese captions
    are left out. The file is the clip, named by the whole ``videoID`` (or with its seconds not padded), or the
    whole video, named by the YouTube id.

    Raises:
        ValueError: a file of another form; a clip without captions, as all of the private test, is skipped.
    """
    found = Annotations()
    for node in read_json(path).elements():
        name = node.at("videoID")
        if not node.has("enCap"):
            found.skipped.append(f"{name.place}: {name.name()!r} has no captions")
            continue
        texts = [caption.text() for caption in node.at("enCap").elements()]
        captions = tuple(text for text in texts if text)
        if not captions:
            found.skipped.append(f"{name.place}: {name.name()!r} has no captions")
        else:
            found.clips.append(Annotated(id=name.name(), captions=captions, sources=_sources(name)))
    return found


def _sources(name: Node) -> tuple[Source, ...]:
    match = _CLIP.fullmatch(name.name())
    if match is None or int(match["start"]) >= int(match["end"]):
        raise name.wrong("YOUTUBEID_START_END in whole seconds")
    start, end = int(match["start"]), int(match["end"])
    length = float(end - start)
    cut = (name.name(), f"{match['video']}_{start}_{end}")
    whole = Source(match["video"], float(start), float(end), length)
    return (*(Source(stem, seconds=length) for stem in dict.fromkeys(cut)), whole)
