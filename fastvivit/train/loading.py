"""Batches of a run: the order of its samples, and the processes that read them."""

from __future__ import annotations

import signal

import torch
from torch.utils.data import DataLoader

from fastvivit.data import EpochSampler, Mix, MixSampler
from fastvivit.data.groups import has_twins
from fastvivit.train.stages import Stage


def make_sampler(stage: Stage) -> MixSampler:
    """The order of a run's samples: this process's part of every batch.

    Raises:
        ValueError: fewer samples than a batch, a batch that the processes do not divide.
    """
    config, ranks, samplers = stage.config, stage.ranks, []
    for source, dataset in zip(config.sources, stage.sources, strict=True):
        pair = config.data.pair_twins and has_twins(dataset.entries)
        if len(dataset) < source.batch:
            name = "data.sources: wanted a batch of" if config.data.sources else "batch_size: wanted"
            what = "images" if dataset.kind == "image" else "clips"
            raise ValueError(f"{name} at most the {len(dataset)} {what} of {source.path}, got {source.batch}")
        if source.batch % ranks.size:
            name = "data.sources: wanted batches" if config.data.sources else "batch_size: wanted one"
            raise ValueError(f"{name} that the {ranks.size} processes divide evenly, got {source.batch}")
        samplers.append(EpochSampler(dataset, source.batch, config.seed, pair_twins=pair))
    return MixSampler(samplers, rank=ranks.rank, ranks=ranks.size)


def make_loader(stage: Stage, sampler: MixSampler, device: torch.device) -> DataLoader:
    """Batches without end, from where the sampler is: lists of one batch a source, pinned for a GPU."""
    workers, mix = stage.config.data.workers, Mix(stage.sources)
    return DataLoader(
        mix,
        batch_sampler=sampler,
        collate_fn=mix.collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
        worker_init_fn=_ignore_interrupts,
        generator=torch.Generator(),  # or each epoch would draw from the random numbers that dropout uses
    )


def _ignore_interrupts(worker: int) -> None:
    # Ctrl-C goes to every process of the terminal; the training process ends the loaders when it is ready.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
