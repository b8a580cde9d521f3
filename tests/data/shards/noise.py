"""Clips that need no decoder: what is in one depends on its file's name and on its start."""

from __future__ import annotations

import torch

from fastvivit.data import VideoError

LOOK = {"frames": 8, "fps": 2.0, "size": 64, "tubelet": (2, 16, 16), "deadline": None}


def pixels(entry, frames, fps, size):
    """A clip, or image, of noise, as ``read_entry`` gives one."""
    if "broken" in entry.video.name:
        raise VideoError(f"{entry.video}: no video")
    seed = sum(entry.video.name.encode()) * 1000 + int(entry.start * 10)
    sides = (size, size) if isinstance(size, int) else size
    generator = torch.Generator().manual_seed(seed)
    if entry.kind == "image":
        return torch.randint(256, (*sides, 3), dtype=torch.uint8, generator=generator).movedim(-1, 0)
    return torch.randint(256, (frames, *sides, 3), dtype=torch.uint8, generator=generator).permute(3, 0, 1, 2)
