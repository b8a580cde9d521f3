"""Which data sets can be imported, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from fastvivit.data.imports import activitynet, egoschema, msrvtt, perception_test, vatex, youcook2
from fastvivit.data.imports.annotated import Annotations


class Importer(NamedTuple):
    """How a data set is imported.

    Attributes:
        title: what people call it.
        read: reads its annotation file; takes the path, and ``options`` by name.
        options: names of what this data set has choices about.
        has_splits: whether its file says which split a video belongs to.
        advice: how the paper reads these clips where its usual 1 FPS isn't it, or "".
    """

    title: str
    read: Callable[..., Annotations]
    options: tuple[str, ...] = ()
    has_splits: bool = False
    advice: str = ""


_FASTER = "the paper reads these videos at 5 FPS: ClipDataset(..., frames=256, fps=5)"

DATASETS: dict[str, Importer] = {
    "msrvtt": Importer("MSR-VTT", msrvtt.read, has_splits=True),
    "vatex": Importer("VATEX", vatex.read),
    "youcook2": Importer("YouCook2", youcook2.read, ("level", "first"), has_splits=True),
    "activitynet": Importer("ActivityNet Captions", activitynet.read, ("level", "first", "references")),
    "egoschema": Importer("EgoSchema", egoschema.read, ("answers",), has_splits=True),
    "perception_test": Importer(
        "Perception Test", perception_test.read, ("cut_frames",), has_splits=True, advice=_FASTER
    ),
}
