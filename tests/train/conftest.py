"""Runs small enough to be taken again and again: 24 clips of 8 frames, 32 pixels a side, one block."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fastvivit.models import ViViTConfig
from fastvivit.train import (
    DataConfig,
    InitConfig,
    MaskConfig,
    OptimiserConfig,
    RunConfig,
    ScheduleConfig,
    TextConfig,
    TrainConfig,
)


@pytest.fixture(autouse=True)
def one_thread():
    """Such small products only wait for threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """Manifests of moving digits: (train, held-out)."""
    pytest.importorskip("av", reason='PyAV is not installed: pip install "fastvivit[video]"')
    pytest.importorskip("transformers", reason='transformers is not installed: pip install "fastvivit[hf]"')
    from fastvivit.data import DigitsConfig, write_digits

    folder = tmp_path_factory.mktemp("digits")
    small = DigitsConfig(frames=8, size=32, digit=16, step=8)
    train = write_digits(folder / "train", 24, seed=0, config=small)
    return train, write_digits(folder / "heldout", 8, seed=0, split="heldout", config=small)


@pytest.fixture
def config(digits):
    train, heldout = digits
    return TrainConfig(
        steps=10,
        batch_size=6,
        dim=16,
        model=ViViTConfig(frames=8, size=32, width=32, depth=1, heads=2, ff=64, drop_path=0.1),
        text=TextConfig(width=32, depth=1, heads=2, max_length=24),
        init=InitConfig(time_std=0.2),
        data=DataConfig(train=str(train), heldout=str(heldout), fps=8.0, cache=True),
        optimiser=OptimiserConfig(lr=1e-3),
        schedule=ScheduleConfig(warmup=2),
        mask=MaskConfig(ratio=0.5),
        run=RunConfig(save_every=5, tensorboard=False, device="cpu"),
    )


@pytest.fixture
def change():
    """``change(config, run={"save_every": 1}, steps=3)``: a copy with some fields changed, tables by dict."""

    def changed(config, **changes):
        nested = {
            name: dataclasses.replace(getattr(config, name), **value) if isinstance(value, dict) else value
            for name, value in changes.items()
        }
        return dataclasses.replace(config, **nested)

    return changed


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    """The folder of a tiny encoder."""
    import fastvivit as fv

    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = fv.ViViT(ViViTConfig(frames=8, size=32, width=32, depth=1, heads=2, ff=64, images=False))
    return fv.save_pretrained(model, tmp_path_factory.mktemp("encoder") / "vivit")


@pytest.fixture
def captioning(digits, encoder):
    """A run of stage "video_to_text" with a language model from scratch."""
    train, heldout = digits
    return TrainConfig.for_stage(
        "video_to_text",
        start=str(encoder),
        steps=8,
        batch_size=6,
        data=DataConfig(train=str(train), heldout=str(heldout), fps=8.0),
        language={
            "width": 32,
            "depth": 2,
            "heads": 2,
            "max_length": 32,
            "pretrain_steps": 5,
            "resampler": {"dim": 32, "depth": 1, "heads": 2, "ff": 64},
            "cross": {"head_dim": 16},
        },
        vision={"masks": 2},
        captions={"describe": 4, "max_new_tokens": 8},
        optimiser={"lr": 1e-2},
        schedule=ScheduleConfig(warmup=2),
        run=RunConfig(save_every=4, tensorboard=False, device="cpu"),
    )
