"""The op: embed only the tubelets that are kept, straight from uint8 video.

A Conv3d embeds every tubelet of a clip, and then most of them are thrown away. ``tubelet_embed`` takes the
same weight and reads only the kept ones: the same numbers, and as much less work as was dropped.

    python examples/embed_kept_tubelets.py
"""

from __future__ import annotations

import time

import torch

import fastvivit.functional as F


def by_conv3d(video, conv, pos, keep, mean, std):
    """What one writes in plain PyTorch: normalise everything, embed everything, take a quarter."""
    shape = (1, -1, 1, 1, 1)
    pixels = (video.float() / 255 - mean.view(shape)) / std.view(shape)
    tokens = conv(pixels).flatten(2).transpose(1, 2) + pos
    return tokens.gather(1, keep.unsqueeze(2).expand(-1, -1, tokens.shape[2]))


def seconds(function) -> float:
    """The fastest of three calls."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> float:
    """Compare both ways; returns the largest difference."""
    torch.manual_seed(0)
    clips, frames, size, width = 2, 8, 128, 384
    # As a decoder leaves it: (B, T, H, W, C). The permuted view costs nothing.
    video = torch.randint(0, 256, (clips, frames, size, size, 3), dtype=torch.uint8).permute(0, 4, 1, 2, 3)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    conv = torch.nn.Conv3d(3, width, (2, 16, 16), stride=(2, 16, 16))
    grid = (frames // 2, size // 16, size // 16)
    places = grid[0] * grid[1] * grid[2]
    pos = torch.randn(places, width) * 0.02

    keep = F.random_keep(clips, places, mask_ratio=0.75)  # (B, K) ids of the grid, ascending

    def ours():
        return F.tubelet_embed(video, conv.weight, conv.bias, pos=pos, keep=keep, mean=mean.tolist(), std=std.tolist())

    def plain():
        return by_conv3d(video, conv, pos, keep, mean, std)

    with torch.no_grad():
        tokens = ours()
        difference = (tokens - plain()).abs().max().item()
        ratio = seconds(plain) / seconds(ours)
    print(f"kept {keep.shape[1]} of {places} tubelets of each clip: tokens {tuple(tokens.shape)}")
    print(f"largest difference to Conv3d and index: {difference:.1e}; {ratio:.1f} times as fast here")

    # Gradients reach weight, bias and positions, and only kept places have one.
    pos.requires_grad_()
    ours().square().mean().backward()
    touched = (pos.grad.abs().sum(1) > 0).sum().item()
    print(f"positions with a gradient: {touched} of {places}, the union of what the clips kept")
    return difference


if __name__ == "__main__":
    main()
