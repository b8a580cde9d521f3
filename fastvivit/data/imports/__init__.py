"""Official annotation files of benchmarks, with a folder of videos, to manifests; one file a data set.

`import_annotations` reads them, and ``fastvivit data import`` writes the manifest. An entry is a clip or, with
Perception Test, a question. Beside what every entry has, its ``extra`` holds

- ``id``: the video, as the data set calls it (EgoSchema: the question); ``split``, where the file names one;
- ``duration``: seconds of the whole video, and ``segment``: which of its sentences, counted from 0 (YouCook2,
  ActivityNet); ``recipe_type`` (YouCook2); ``category`` (MSR-VTT);
- multiple choice: ``question``; ``options``, a list; ``answer``, the index of the right one, absent where it is
  secret. The caption is the right option, or the question where nobody may know. Perception Test adds
  ``question_id``, ``area``, ``reasoning`` and ``tag``.

How many pictures a second a model sees is not the manifest's to say: it is `ClipDataset`'s ``fps``.
"""

from fastvivit.data.imports.manifest import ImportResult, import_annotations
from fastvivit.data.imports.registry import DATASETS, Importer

__all__ = ["DATASETS", "ImportResult", "Importer", "import_annotations"]
