"""The encoder: clips of different length and size in one batch, most of their tokens never computed.

python examples/encode_long_clip.py
"""

from __future__ import annotations

import torch

import fastvivit as fv


def main() -> fv.EncoderOutput:
    """Encode three clips at once, then a longer one."""
    torch.manual_seed(0)
    config = fv.ViViTConfig.tiny(frames=32, size=64, depth=4, images=False)
    encoder = fv.ViViT(config).eval()

    # uint8, (C, T, H, W) each; nothing is padded, and no mask has to be carried along.
    clips = [
        torch.randint(0, 256, (3, 32, 64, 64), dtype=torch.uint8),
        torch.randint(0, 256, (3, 8, 64, 64), dtype=torch.uint8),
        torch.randint(0, 256, (3, 16, 64, 96), dtype=torch.uint8),
    ]
    with torch.no_grad():
        out = encoder(clips, mask_ratio=0.75, generator=torch.Generator().manual_seed(0))
    print(f"packed tokens of all clips: {tuple(out.tokens.shape)}; each clip's rows: {out.cu_seqlens.tolist()}")
    for clip, grid, keep in zip(clips, out.grid, out.keep, strict=True):
        places = grid[0] * grid[1] * grid[2]
        print(f"  {tuple(clip.shape)}: grid {tuple(grid)}, kept {len(keep)} of {places} tokens")
    print(f"one vector a clip: {tuple(out.pooled.shape)}")

    # A clip alone, with the same tokens kept, gives the same vector: batching changes nothing.
    with torch.no_grad():
        alone = encoder([clips[1]], keep=[out.keep[1]])
    print(f"largest difference to the clip on its own: {(alone.pooled[0] - out.pooled[1]).abs().max():.1e}")

    # Longer than the positions: make room for them first. Position tables are interpolated in time.
    encoder.extend_frames(128)
    film = torch.randint(0, 256, (1, 3, 128, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        long = encoder(film, mask_ratio=0.9)
    print(f"128 frames, 90 % masked: {tuple(long.last_hidden_state.shape)}")
    return out


if __name__ == "__main__":
    main()
