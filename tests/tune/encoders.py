"""Small encoders to tune, the ways to tune them, and a step."""

import torch

import fastvivit as fv

CFG = fv.ViViTConfig(frames=4, size=16, tubelet=(2, 8, 8), width=48, depth=3, heads=3, ff=64, pos_std=0.2)
TUBES = (fv.Tube(kernel=(4, 4, 4), stride=(4, 8, 8)), fv.Tube(kernel=(1, 8, 8), stride=(2, 8, 8)))
KINDS = {
    "joint": {"pool": "attention", "pool_heads": 3},
    "factorised": {"attention": "factorised", "positions": "factorised", "cls": True},
    "frame": {"attention": "frame"},
    "tubes": {"attention": "tubes", "tubes": TUBES, "cross_view": True},
}
WAYS = {
    "last_layers": lambda enc, **options: fv.tune.last_layers(enc, 2, **options),
    "adapters": fv.tune.add_adapters,
    "residual": lambda enc, **options: fv.tune.add_adapters(enc, 20, position="residual", **options),
    "lora": lambda enc, **options: fv.tune.add_lora(enc, 4, **options),
    "separate": lambda enc, **options: fv.tune.add_lora(enc, 4, scale=2.0, separate=True, **options),
    "temporal_only": fv.tune.temporal_only,
}
PAIRS = [(kind, way) for kind in KINDS for way in WAYS if way != "temporal_only" or kind == "factorised"]


def encoder(kind="joint", **changes):
    torch.manual_seed(1)
    return fv.ViViT(CFG.replace(**KINDS[kind] | changes))


def clips(count=2):
    return torch.randint(256, (count, 3, 4, 16, 16), dtype=torch.uint8)


def images(count=2):
    return torch.randint(256, (count, 3, 16, 16), dtype=torch.uint8)


def train(enc, parameters, *, steps=3, still=False):
    """Steps of AdamW towards pooled vectors of random numbers; gradients of the last one are left.

    In the first a gate opens, in the second B moves behind it, in the third A.
    """
    optimiser = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
    generator = torch.Generator().manual_seed(7)
    video = images() if still else clips()
    target = torch.randn(2, enc.num_features, generator=generator)
    for _ in range(steps):
        optimiser.zero_grad()
        (enc(video).pooled - target).square().mean().backward()
        optimiser.step()
