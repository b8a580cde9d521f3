"""What a step did for its time: samples, tokens, FLOPs, waiting, memory."""

from __future__ import annotations

import resource
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fastvivit.caption import Vision
from fastvivit.modules.tubelets import Tubelets
from fastvivit.modules.vivit import ViViT
from fastvivit.planning.devices import peak_flops
from fastvivit.train.flops import step_flops
from fastvivit.train.stages.base import Stage
from fastvivit.train.step import draw_masks
from fastvivit.train.tables import MaskConfig

WINDOW = 20


class Meter:
    """Measures steps; a step's time runs from when it begins to wait for its data, evaluation and saving left out.

    MFU (model FLOPs utilisation; Chowdhery et al. 2022, appendix B) is what ``step_flops`` counts over what the device
    could have done in the step's time at the published peak of its dense 16-bit products: the forward and the backward
    of what is trained, once, of the tokens that masks leave. Work done again to save memory does not raise it, nor
    does float32 change the peak. It is left out on a CPU and on a GPU whose peak is not known (``peak_flops``).

    Args:
        stage: the run.
        model: it.
        device: the model's.
    """

    def __init__(self, stage: Stage, model: nn.Module, device: torch.device) -> None:
        self._stage, self._model, self._device = stage, model, device
        self._peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        self._flops: int | None = None
        self._tokens: dict[Any, int] = {}
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def prepare(self, batches: Sequence[dict[str, Any]]) -> float:
        """Count the FLOPs of a step before the first one; later ones have the same shapes. The seconds it took."""
        if self._peak is None or self._flops is not None:
            return 0.0
        began = time.monotonic()
        self._flops = step_flops(self._stage, self._model, batches, self._device)
        return time.monotonic() - began

    def row(self, batches: Sequence[dict[str, Any]], seconds: float, waited: float) -> dict[str, float]:
        """Fields of a step's line in the journal.

        Args:
            batches: what the step was taken on.
            seconds: of the step.
            waited: of these, for the data.

        Returns:
            ``seconds``; ``clips_per_second``, images counted as clips; ``tokens_per_second``, those that the video
            encoder takes, masked ones left out; ``data_wait``, the share of the step spent waiting for data;
            ``data_busy``, the share in which loader processes were reading clips (1: all of them all the time);
            ``mfu`` where there is one; ``memory_peak``, bytes allocated at most since the run began: on a GPU by its
            tensors, on a CPU by the process.
        """
        ranks = self._stage.ranks.size  # each has taken as many, or of a Vision about so
        clips = ranks * sum(len(batch["caption"]) for batch in batches)
        masks = self._stage.config.masks
        tokens = ranks * sum(self._count(batch["video"], masks[batch["source"]]) for batch in batches)
        workers = max(1, self._stage.config.data.workers)
        row = {
            "seconds": seconds,
            "clips_per_second": clips / seconds,
            "tokens_per_second": tokens / seconds,
            "data_wait": waited / seconds,
            "data_busy": min(1.0, sum(batch["seconds"] for batch in batches) / (workers * seconds)),
            "memory_peak": float(self._memory()),
        }
        if self._flops is not None:
            row["mfu"] = self._flops / (seconds * self._peak)
        return row

    def _count(self, video: Any, mask: MaskConfig) -> int:
        if isinstance(video, Tubelets):
            return len(video.pixels)
        if isinstance(video, Vision):
            return int(video.mask.sum())
        if isinstance(video, list):
            return sum(self._count(clip.unsqueeze(0), mask) for clip in video)
        shape = video.shape[1:]
        if (shape, mask) not in self._tokens:
            self._tokens[shape, mask] = clip_tokens(self._model.video, shape, mask)
        return len(video) * self._tokens[shape, mask]

    def _memory(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def clip_tokens(encoder: ViViT, shape: Sequence[int], mask: MaskConfig) -> int:
    """Tokens that an encoder takes of a clip (C, T, H, W) or an image (C, H, W) under a mask, without its CLS."""
    views = encoder.config.views
    if len(shape) == 3:
        views, mask = encoder.image.views((1, *shape[1:])), replace(mask, strategy="random")
    keep = draw_masks(torch.zeros(1, dtype=torch.int64), views, mask)
    return sum(t * h * w for t, h, w in views) if keep is None else keep.ids.shape[1]


class Window:
    """The last steps of a run, of which rates are taken: not of its beginning, when everything was cold."""

    def __init__(self, steps: int = WINDOW) -> None:
        self._rows: deque[dict[str, float]] = deque(maxlen=steps)

    def add(self, row: dict[str, float]) -> None:
        """Take a step's line; the oldest may go."""
        self._rows.append(row)

    def __len__(self) -> int:
        """Steps in it."""
        return len(self._rows)

    @property
    def seconds(self) -> float:
        """Mean seconds of a step."""
        return sum(row["seconds"] for row in self._rows) / len(self._rows)

    def mean(self, field: str) -> float | None:
        """A share or rate over the time of the steps that have it; None if none does."""
        rows = [row for row in self._rows if field in row]
        total = sum(row["seconds"] for row in rows)
        return sum(row[field] * row["seconds"] for row in rows) / total if total else None
