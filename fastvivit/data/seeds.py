"""Random numbers that depend on what they are for, and on nothing that ran before."""

from __future__ import annotations

import hashlib


def sample_seed(seed: int, epoch: int, index: int, purpose: str) -> int:
    """A seed for one use of one sample in one epoch.

    The same in every process, on every machine, in whatever order samples are read; so a run that resumes,
    or has another number of loader processes, draws the same masks and captions.

    Args:
        seed: the run's seed.
        epoch: counts from 0.
        index: the sample's place in the data set.
        purpose: two purposes get unrelated seeds.

    Returns:
        An int in ``[0, 2**63)``, as `torch.Generator.manual_seed` and int64 tensors take it.
    """
    text = f"{purpose}/{seed}/{epoch}/{index}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
