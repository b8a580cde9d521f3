"""Running out of memory, said in words that help."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fastvivit.train.checkpoint import latest_checkpoint
from fastvivit.train.config import DUAL, TrainConfig

_log = logging.getLogger(__name__)
_WORDS = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
_LINES = 8


class OutOfMemory(RuntimeError):
    """A step needed more memory than there is; the message says how much, and what to turn.

    The error that it began with is its cause. The checkpoints before it are intact.
    """


def is_shortage(error: BaseException) -> bool:
    """Whether an error is an allocator's: that of a GPU, of a CPU, of cuBLAS."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


@contextmanager
def shortages_explained(what: str, config: TrainConfig, device: torch.device, run: Path) -> Iterator[None]:
    """Turn an allocator's error into ``OutOfMemory``; every other passes.

    Args:
        what: was being done.
        config: the run.
        device: where it computes.
        run: its folder, which may hold a checkpoint.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_shortage(error):
            raise
        # The frames hold what did not fit; whoever catches this may want to go on with less.
        traceback.clear_frames(error.__traceback__)
        raise OutOfMemory(_message(error, what, config, device, latest_checkpoint(run))) from error


def _message(
    error: BaseException, what: str, config: TrainConfig, device: torch.device, checkpoint: Path | None
) -> str:
    memory, tuning = config.memory, config.tuning
    settings = f"batch_size={config.batch_size}, memory.chunk={memory.chunk}, mask.ratio={config.mask.ratio:g}, "
    settings += f"memory.checkpointing={memory.checkpointing}, tuning.method={tuning.method}"
    if tuning.method == "last_layers":
        settings += f" ({tuning.layers})"
    kept = "there is no checkpoint yet"
    if checkpoint is not None:
        kept = f"intact: {checkpoint}; a resumed run goes on from there, and may differ in memory.*"
    return "\n".join(
        [
            f"out of memory in {what}: {str(error).strip().splitlines()[0] if str(error) else type(error).__name__}",
            f"  memory      {_used(device)}",
            f"  settings    {settings}",
            f"  checkpoint  {kept}",
            "  what helps, best first:",
            *(f"    {line}" for line in _advice(config, device)[:_LINES]),
        ]
    )


def _used(device: torch.device) -> str:
    if device.type != "cuda":
        return "the machine's, shared with everything else that runs there"
    peak, total = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
    return f"{peak / 1e9:.1f} of {total / 1e9:.1f} GB were in tensors at most, on {torch.cuda.get_device_name(device)}"


def _advice(config: TrainConfig, device: torch.device) -> list[str]:
    if device.type == "cuda" and config.stage in DUAL:
        try:
            properties = torch.cuda.get_device_properties(device)
            return planned_advice(config, properties.total_memory, properties.name)
        except Exception as error:  # a prediction that fails must not hide what has happened
            _log.warning("no plan of this run: %s", error)
    return switches(config, device)


def planned_advice(config: TrainConfig, memory: int, gpu: str) -> list[str]:
    """What ``fastvivit plan`` says of a run on a device with so many bytes, in the times of a GPU that it knows."""
    from fastvivit.planning import advice
    from fastvivit.planning.devices import names_of

    known = names_of(gpu)
    return advice(config, memory, device=known[0]) if known else advice(config, memory)


def switches(config: TrainConfig, device: torch.device) -> list[str]:
    """What a config could turn to need less memory: first what changes nothing that is learned."""
    memory, dual, found = config.memory, config.stage in DUAL, []
    share = max(source.batch for source in config.sources)
    if dual and (memory.chunk == 0 or memory.chunk > 1) and share > 1:
        chunk = max(1, (memory.chunk or share) // 4)
        found.append(f"memory.chunk={chunk}: so many clips' activations at once, the same losses; about a third slower")
    if memory.checkpointing == "none" and dual:
        found.append('memory.checkpointing="selective": cheap parts of blocks are computed again')
    if memory.checkpointing != "full":
        found.append('memory.checkpointing="full": blocks are computed again, about a third slower')
    elif not memory.offload:
        found.append("memory.offload=true: what checkpointing keeps waits in host memory")
    if dual and memory.prefix == "device" and memory.chunk and config.tuning.method == "last_layers":
        found.append('memory.prefix="host": outputs of frozen blocks wait in host memory')
    if config.run.precision == "float32" and device.type == "cuda":
        found.append('run.precision="auto": bfloat16')
    if config.optimiser.states == "float32" and device.type == "cuda":
        found.append('optimiser.states="8bit": a quarter of AdamW\'s states')
    if dual and config.tuning.method == "all" and config.start is not None:
        found.append('tuning.method="last_layers": activations of the last blocks alone; changes what is learned')
    if config.mask.ratio < 0.75:
        found.append(f"mask.ratio=0.75: fewer tokens than {config.mask.ratio:g} leaves; changes what is learned")
    if config.batch_size > 2:
        found.append(f"batch_size={config.batch_size // 2}: fewer clips a step; changes what is learned")
    return found
