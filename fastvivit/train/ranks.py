"""Which of the processes of a run this one is, and what they say to each other.

``torchrun`` starts the processes and says in their environment which is which (RANK, WORLD_SIZE, LOCAL_RANK). A run
that it did not start is alone: nothing here touches ``torch.distributed`` then.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

_Found = TypeVar("_Found")
_LONG = timedelta(days=365)


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The processes of a run, seen by one of them; by default the only one.

    Attributes:
        rank: this one, from 0.
        size: how many there are.
        group: their process group for words and small numbers, on the CPU; None where there is one process.
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None

    @property
    def alone(self) -> bool:
        """Whether this is the only process."""
        return self.size == 1

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes and speaks for all."""
        return self.rank == 0

    def largest(self, values: Sequence[float]) -> list[float]:
        """For each place the largest of all ranks' numbers; a GPU is not waited for."""
        if self.alone:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(numbers, dist.ReduceOp.MAX, group=self.group)
        return numbers.tolist()

    def gather(self, value: _Found) -> list[_Found]:
        """Every rank's value, in their order."""
        if self.alone:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.group)
        return found

    def lead(self, call: Callable[[], _Found]) -> _Found:
        """What ``call`` returns on rank 0, the only one that calls it; an error of it is raised on all of them."""
        if self.alone:
            return call()
        said: list[Any] = [None, None]
        if self.first:
            try:
                said[0] = call()
            except Exception as error:
                said[1] = error
        dist.broadcast_object_list(said, src=0, group=self.group)
        if said[1] is not None:
            raise said[1]
        return said[0]

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of all ranks' tensors of one shape, the same bits on each of them."""
        if self.alone:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total / self.size

    def meet(self) -> None:
        """Wait for all ranks."""
        if not self.alone:
            dist.barrier(group=self.group)

    @contextmanager
    def patient(self) -> Iterator[Ranks]:
        """The same ranks for work that keeps some of them waiting: for as long as it takes, and not half an hour.

        A rank that is gone ends the wait, too. One that hangs does not, so a step's words have the other group.
        """
        if self.alone:
            yield self
            return
        group = dist.new_group(backend="gloo", timeout=_LONG)
        yield replace(self, group=group)
        dist.destroy_process_group(group)  # not after an error: it may wait for the others


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """The ranks of this run; a process group that is not there yet is made, and stays for the runs that follow.

    There is no barrier at the end: a rank that fails must not wait for others, nor they for it.

    Args:
        device: where the run computes; on "cuda" each process takes the GPU of its LOCAL_RANK.

    Raises:
        ValueError: more processes on this machine than GPUs.
    """
    made = dist.is_available() and dist.is_initialized()
    size = dist.get_world_size() if made else int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks()
        return
    if device.type == "cuda":
        _take_gpu()
    if not made:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        # Not after this run: what it leaves in torchrun's store would confuse the group of the next.
        atexit.register(_leave)
    # Of its own: the default group may know GPUs alone, and a word must not wait for one.
    group = dist.new_group(backend="gloo")
    try:
        yield Ranks(rank=dist.get_rank(), size=size, group=group)
    except BaseException:
        # Ending a group may wait for the others, who wait for this rank: torchrun ends them when it is gone.
        atexit.unregister(_leave)
        raise
    dist.destroy_process_group(group)


def is_first() -> bool:
    """Whether this process is rank 0, or the only one."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    return int(os.environ.get("RANK", "0")) == 0


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _take_gpu() -> None:
    local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= count:
        raise ValueError(f"run.device: wanted a GPU for each process of this machine, found {count} for rank {local}")
    torch.cuda.set_device(local)
