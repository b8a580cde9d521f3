"""What one kind of training has of its own: the interface between ``fit`` and the stages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fastvivit.data import ClipDataset
from fastvivit.data.dataset import Failure
from fastvivit.data.groups import captions_of
from fastvivit.models import ViViTConfig
from fastvivit.train.config import TrainConfig
from fastvivit.train.page import Page
from fastvivit.train.ranks import Ranks
from fastvivit.train.sources import open_source
from fastvivit.train.step import autocast


class Scored(Protocol):
    """What ``Stage.evaluate`` returns: flat scores for the journal; the rest is between it and ``Stage.report``."""

    scores: dict[str, float]


class Stage(ABC):
    """One run's own part: data, model, loss, scores and report. ``fit`` has the loop, checkpoints and the journal.

    ``fit`` calls, in this order: the constructor, ``build``, ``prepare``, then ``backward`` for every batch and
    ``evaluate`` now and then, ``finish`` and ``report`` at the end. A mistake of the user's is best found before
    ``prepare``, which is the first that may write.

    Args:
        config: the run.
        encoder: configuration of the encoder, which says frames and size of a clip.

    Attributes:
        sources: data sets of training samples, one for each of ``config.sources``; items as ``ClipDataset`` gives
            them.
        heldout: samples to score, or None.
        failures: broken files of the first source that are known before the first step.
        remarks: what a person should be told before the first step.
        headline: the held-out score by which steps are compared, and whether more of it is better.
        ranks: the processes of the run; ``fit`` sets it.
        spreads: whether several processes can share a step, each with its part of every batch.
    """

    headline: tuple[str, bool] = ("loss", False)
    spreads = False

    def __init__(self, config: TrainConfig, encoder: ViViTConfig) -> None:
        self.config, self.ranks = config, Ranks()
        self.failures: list[Failure] = []
        self.remarks: list[str] = []
        # A mask must not be the same for every source's first sample, so each has a seed of its own.
        self.sources = [
            open_source(source.path, config.data, encoder, seed=config.seed + number, mask=mask)
            for number, (source, mask) in enumerate(zip(config.sources, config.masks, strict=True))
        ]
        self.heldout: ClipDataset | None = None
        if config.data.heldout is not None:
            self.heldout = open_source(config.data.heldout, config.data, encoder, seed=config.seed)

    @property
    def captions(self) -> list[str]:
        """Every caption of the training samples."""
        return [caption for dataset in self.sources for caption in captions_of(dataset.entries)]

    @abstractmethod
    def build(self, run: Path) -> nn.Module:
        """The model on the CPU in train mode, its weights drawn from torch's generator.

        Args:
            run: the run's folder, which may not exist; nothing may be written there yet.
        """

    @abstractmethod
    def prepare(self, model: nn.Module, run: Path, *, quiet: bool) -> None:
        """Do long work before the first step, on the model's device.

        It may write to the run's folder, and goes on where it was if it is called again after a kill.
        """

    @abstractmethod
    def losses(self, model: nn.Module, batches: Sequence[dict[str, Any]], device: torch.device) -> dict[str, Tensor]:
        """The loss of a step as "loss", with a graph; whatever else is there is noted in the journal.

        Args:
            model: it.
            batches: one a source, as ``Mix.collate`` makes them.
            device: the model's.
        """

    def backward(self, model: nn.Module, batches: Sequence[dict[str, Any]], device: torch.device) -> dict[str, Tensor]:
        """``losses``, without a graph; their gradients are added to the parameters'."""
        with self.autocast(device):
            found = self.losses(model, batches, device)
        found["loss"].backward()
        return {name: value.detach() for name, value in found.items()}

    def autocast(self, device: torch.device) -> torch.autocast:
        """What the forwards of a step run under."""
        # A layer that is put together for each call is a new weight each time; a cast that belongs to an earlier one
        # would lead its gradient astray, without an error.
        parts = not self.ranks.alone and self.config.run.parallel == "fsdp"
        return autocast(self.config.run.precision, device, cache=not parts)

    @abstractmethod
    def evaluate(self, model: nn.Module, *, last: bool) -> Scored | None:
        """Scores on the held-out clips, or None where there are none; ``last`` at the end of the run."""

    @abstractmethod
    def finish(self, folder: Path) -> None:
        """Make the saved model fit for use, where a stage trains a part of it alone; rank 0 calls this at the end."""

    @abstractmethod
    def report(self, page: Page, evaluation: Any, *, drawable: bool) -> None:
        """Write what ``evaluate`` found at last into the report; with pictures if they can be drawn."""
