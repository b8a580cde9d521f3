"""Tuning: a frozen encoder, a few parameters that learn, and a small file that holds them.

python examples/tune_an_encoder.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

import fastvivit as fv

CONFIG = fv.ViViTConfig.tiny(frames=8, size=64, depth=4, attention="factorised", images=False)
WAYS = {
    "last_layers(k=1)": lambda encoder: fv.tune.last_layers(encoder, 1),
    "temporal_only": fv.tune.temporal_only,
    "add_adapters(width=96)": lambda encoder: fv.tune.add_adapters(encoder, width=96),
    "add_lora(rank=4)": lambda encoder: fv.tune.add_lora(encoder, rank=4),
}


def main() -> float:
    """Tune in each way, then save, load and merge the last one."""
    torch.manual_seed(0)
    weights = fv.ViViT(CONFIG).state_dict()
    video = torch.randint(0, 256, (4, 3, 8, 64, 64), dtype=torch.uint8)
    target = torch.randn(4, 192)
    with tempfile.TemporaryDirectory() as folder:
        for name, tune in WAYS.items():
            encoder = fv.ViViT(CONFIG)
            encoder.load_state_dict(weights)
            parameters = tune(encoder)
            share = sum(p.numel() for p in parameters) / sum(p.numel() for p in encoder.parameters())
            optimiser, losses = torch.optim.AdamW(parameters, lr=2e-3), []
            for _ in range(5):
                loss = (encoder(video, mask_ratio=0.5).pooled - target).square().mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                losses.append(loss.item())
            file = fv.tune.save(encoder, Path(folder) / "tuning.safetensors")
            size = f"{file.stat().st_size / 1e6:.1f} MB"
            print(f"{name}: {share:.0%} trained, loss {losses[0]:.2f} to {losses[-1]:.2f}, a file of {size}")

        plain = fv.ViViT(CONFIG).eval()
        plain.load_state_dict(weights)
        fv.tune.load(plain, file)
    with torch.no_grad():
        tuned = plain(video).pooled
        fv.tune.merge_lora(plain)
        difference = (plain(video).pooled - tuned).abs().max().item()
    print(f"the file on the plain encoder, merged, largest difference: {difference:.1e}")
    return difference


if __name__ == "__main__":
    main()
