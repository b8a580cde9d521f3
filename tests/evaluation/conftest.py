"""Files of one grey each, manifests of them, and a captioner that says which grey it saw."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import fastvivit as fv
from fastvivit.caption import Vision
from fastvivit.data import Entry, write_manifest

__all__ = ["one_thread"]

from tests.train.conftest import one_thread


@pytest.fixture(scope="session")
def greys(tmp_path_factory):
    """Folder of ``0.mp4`` to ``4.mp4``: 20 pictures at 1 a second, grey 20 + 50 i, and one broken file."""
    pytest.importorskip("av", reason='PyAV is not installed: pip install "fastvivit[video]"')
    pytest.importorskip("transformers", reason='transformers is not installed: pip install "fastvivit[hf]"')
    from fastvivit.data import write_clip

    folder = tmp_path_factory.mktemp("greys")
    for number in range(5):
        write_clip(folder / f"{number}.mp4", np.full((20, 32, 32, 3), 20 + 50 * number, np.uint8), fps=1.0)
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture
def manifest(greys, tmp_path):
    """``manifest(rows)``: a file; a row is the name of a video, its captions, and further fields."""

    def written(*rows):
        entries = [
            Entry(video=greys / f"{name}.mp4", captions=tuple(captions), **fields) for name, captions, fields in rows
        ]
        return write_manifest(tmp_path / "manifest.jsonl", entries)

    return written


class Teller(nn.Module):
    """Says "grey 3" of ``3.mp4``; whatever ``likes`` says of its options. Remembers what it was given."""

    def __init__(self, frames=8, likes=None, name="grey"):
        super().__init__()
        torch.manual_seed(0)
        self.video = fv.ViViT(fv.ViViTConfig(frames=frames, size=32, width=32, depth=1, heads=2, ff=64))
        self.likes, self.name = likes, name
        self.clips, self.masks, self.prompts, self.modes = [], [], [], []

    def encode_video(self, video, mask_ratio=0.0, *, keep=None, generator=None):
        assert video.shape[0] == 1 and not torch.is_grad_enabled()
        self.clips.append(video[0])
        self.modes.append(self.training)
        self.masks.append((mask_ratio, int(torch.randint(1 << 30, (), generator=generator))))
        return Vision(video.float().mean().view(1, 1, 1), torch.ones(1, 1, dtype=torch.bool))

    def generate(self, video, prompt="", max_new_tokens=32, *, mask_ratio=0.0, keep=None, generator=None):
        self.prompts.append((prompt, max_new_tokens))
        if isinstance(video, torch.Tensor):
            video = Vision.stack([self.encode_video(one[None], mask_ratio, generator=generator) for one in video])
        return [f" {self.name} {round((float(mean) - 20) / 50)} " for mean in video.tokens.flatten()]

    def score(self, video, prompts, options, normalise="sum", *, mask_ratio=0.0, keep=None, generator=None):
        assert len(video) == len(prompts) == len(options)
        self.prompts += prompts
        most = max(map(len, options))
        rows = [[self.likes(o, normalise) for o in several] for several in options]
        return torch.tensor([row + [float("-inf")] * (most - len(row)) for row in rows])


@pytest.fixture
def teller():
    return Teller
