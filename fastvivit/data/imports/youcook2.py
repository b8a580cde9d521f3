"""YouCook2: cooking videos of some five minutes, each step a segment with a sentence."""

from __future__ import annotations

from pathlib import Path

from fastvivit.data.imports.annotated import Annotations
from fastvivit.data.imports.reading import Node, read_json
from fastvivit.data.imports.sentences import Sentence, Video, add_video, check_level


def read(path: Path, *, level: str = "segments", first: float | None = None) -> Annotations:
    """Read ``youcookii_annotations_trainval.json``.

    ``{"database": {id: {"subset", "duration", "recipe_type", "annotations": [{"segment": [s, e], "sentence"}]}}}``

    Args:
        path: the file.
        level: as `sentences.add_video` takes it.
        first: likewise.

    Raises:
        ValueError: an unknown level, or a file of another form, as the test set's, which has no sentences.
    """
    check_level(level, first)
    found = Annotations()
    for name, node in read_json(path).at("database").fields():
        video = Video(
            id=name,
            stems=(name,),
            duration=node.at("duration").number(),
            sentences=[_sentence(step) for step in node.at("annotations").elements()],
            split=node.at("subset").name(),
            extra={"recipe_type": str(node.value["recipe_type"])} if node.has("recipe_type") else {},
        )
        add_video(found, video, level, first)
    return found


def _sentence(step: Node) -> Sentence:
    start, end = step.at("segment").span()
    return Sentence(step.at("sentence").text(), start, end, step.place)
