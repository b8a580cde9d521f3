"""ActivityNet Captions: videos of some two minutes, described by sentences with times that may overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fastvivit.data.imports.annotated import Annotations
from fastvivit.data.imports.reading import Node, read_json
from fastvivit.data.imports.sentences import Sentence, Video, add_video, check_level


def read(
    path: Path,
    *,
    level: str = "segments",
    first: float | None = None,
    references: Sequence[Path] = (),
) -> Annotations:
    """Read ``train.json``, ``val_1.json`` or ``val_2.json``.

    ``{"v_ID": {"duration", "timestamps": [[s, e], ...], "sentences": [...]}}``

    Args:
        path: the file.
        level: as `sentences.add_video` takes it.
        first: likewise.
        references: files of other people's descriptions of the same videos, such as ``val_2.json``; their
            captions come after those of ``path``.

    Raises:
        ValueError: an unknown level, references to segments, or a file of another form.
    """
    check_level(level, first)
    if references and level == "segments":
        raise ValueError("references: wanted level 'paragraph' or 'video', as segments differ from file to file")
    found = _read(path, level, first)
    for further in references:
        others = _read(further, level, first)
        found.skipped.extend(others.skipped)
        captions = {clip.id: clip.captions for clip in others.clips}
        for place, clip in enumerate(found.clips):
            found.clips[place] = replace(clip, captions=clip.captions + captions.pop(clip.id, ()))
        found.skipped.extend(f"{further}: {name!r}: not a video of {path}" for name in captions)
    return found


def _read(path: Path, level: str, first: float | None) -> Annotations:
    found = Annotations()
    for name, node in read_json(path).fields():
        stems = (name, name.removeprefix("v_")) if name.startswith("v_") else (f"v_{name}", name)
        video = Video(id=name, stems=stems, duration=node.at("duration").number(), sentences=_sentences(node))
        add_video(found, video, level, first)
    return found


def _sentences(node: Node) -> list[Sentence]:
    texts, times = node.at("sentences").elements(), node.at("timestamps").elements()
    if len(texts) != len(times):
        raise ValueError(f"{node.place}: wanted as many timestamps as sentences, got {len(times)} and {len(texts)}")
    return [Sentence(text.text(), *time.span(), text.place) for text, time in zip(texts, times, strict=True)]
