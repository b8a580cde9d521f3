"""One point of the sweep as it runs: ``python -m benchmarks.sweep_measure peak|time POINT DEVICE`` prints JSON.

On a CPU each is a process of its own, as in ``benchmarks.memory``.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable

import torch

from fastvivit import ViViT

from .accounting import loss_of
from .measure import interleaved
from .memory import fresh, peak_of
from .sweep_points import Point

# Every tensor of any size in pages of its own, given back when it is freed. What glibc's heap keeps otherwise, a
# fifth of the peak and more, would say little of the encoder.
PAGES = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def step_of(point: Point, device: str) -> Callable[[], object]:
    """Make model and clips, and return the step."""
    torch.manual_seed(0)
    config = point.config()
    model = ViViT(config).train().to(device)
    model.set_grad_checkpointing(point.checkpointing)
    shape = (point.clips, config.channels, config.frames, *config.size)
    video = torch.randint(0, 256, shape, dtype=torch.uint8).to(device)

    def step() -> torch.Tensor:
        loss = loss_of(model, video, point.mask_ratio, point.torch_dtype)
        loss.backward()
        # At the end: the peak of any step holds gradients that were not there before it.
        model.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def measure(point: Point, device: str) -> dict[str, object]:
    """Seconds of a step and its peak memory beyond weights and clips, with the reason where there are none."""
    if device.startswith("cuda"):
        return _on_gpu(point, device)
    found, why = {}, []
    for what, environment in (("peak", PAGES), ("time", {})):
        printed = fresh(__spec__.name, [what, point.to_json(), device], **environment)
        if printed is None:
            why.append(f"{what}: the process failed")
        else:
            found |= json.loads(printed.splitlines()[-1])
    return found | ({"not_measured": "; ".join(why)} if why else {})


def _on_gpu(point: Point, device: str) -> dict[str, object]:
    try:
        step = step_of(point, device)
        step()  # the first call compiles
        return peak(step, device) | time(step, device, point.quick)
    except torch.OutOfMemoryError:
        return {"not_measured": "out of memory"}
    finally:
        step = None
        gc.collect()
        torch.cuda.empty_cache()


def peak(step: Callable[[], object], device: str) -> dict[str, object]:
    """``measured_peak_bytes``, beyond weights and clips; None where it can't be told."""
    return {"measured_peak_bytes": peak_of(step, device)}


def time(step: Callable[[], object], device: str, quick: bool) -> dict[str, object]:
    """``seconds``: median, 10 and 90 % points, rounds."""
    seconds, rounds = (0.05, 2) if quick else (2.0, 3)
    spread = interleaved({"step": step}, seconds=seconds, min_rounds=rounds, device=device)["step"]
    numbers = {"median": spread.median, "p10": spread.p10, "p90": spread.p90, "rounds": len(spread.samples)}
    return {"seconds": numbers}


def main(argv: list[str]) -> int:
    """Run the command line; return the exit status."""
    what, text, device = argv
    point = Point.from_json(text)
    step = step_of(point, device)
    print(json.dumps(peak(step, device) if what == "peak" else time(step, device, point.quick)))
    return 0


def memory_bytes(device: str) -> int:
    """All of the device's memory."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
