"""Clips that need no decoder: what is in one depends on its file's name and on its start."""

from __future__ import annotations

import torch

from fastvivit.data import VideoError

LOOK = {"frames": 8, "fps": 2.0, "size": 64, "tubelet": (2, 16, 16)}


def pixels(entry, frames, fps, size):
    """A clip of noise as ``read_entry`` gives one: what it holds depends on the file's name and on the start."""
    if "broken" in entry.video.name:
        raise VideoError(f"{entry.video}: no video")
    seed = sum(entry.video.name.encode()) * 1000 + int(entry.start * 10)
    sides = (size, size) if isinstance(size, int) else size
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (frames, *sides, 3), dtype=torch.uint8, generator=generator).permute(3, 0, 1, 2)
