"""What a training step of an encoder keeps and computes, without running it: see ``fastvivit.planning.ledger``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from fastvivit import ViViT
from fastvivit.models import ViViTConfig
from fastvivit.planning.fakes import attended, attention_flops, fill, widen_norms
from fastvivit.planning.ledger import Ledger, saved_storages
from fastvivit.planning.parts import kept_tokens


@dataclass(frozen=True, kw_only=True)
class Account:
    """One training step: forward, a loss on the pooled clips, backward.

    Attributes:
        tokens: kept of a clip.
        parameters: of the encoder.
        weight_bytes: of the same.
        clip_bytes: of the uint8 clips.
        saved_bytes: what the forward leaves for the backward, beyond weights and clips and views of them.
        peak_bytes: most that is alive at once from the first op of the forward to the last of the backward, gradients
            of the weights with it, beyond weights and clips.
        flops_forward: of matrix products and attention.
        flops_step: the same of forward and backward.
        exponentials: attention's, of the forward.
    """

    tokens: int
    parameters: int
    weight_bytes: int
    clip_bytes: int
    saved_bytes: int
    peak_bytes: int
    flops_forward: int
    flops_step: int
    exponentials: int


def account(
    config: ViViTConfig,
    mask_ratio: float,
    *,
    clips: int = 1,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    checkpointing: bool = False,
) -> Account:
    """Account for a step on ``clips`` clips of ``config.frames`` frames.

    Args:
        config: of the encoder.
        mask_ratio: share of the tokens that are dropped.
        clips: B.
        dtype: float32, or 16 bits under autocast over float32 weights, as ``fastvivit train`` runs on a GPU.
        device: whose kernels would run; "cuda" needs a PyTorch that knows CUDA, since its fakes ask for the device.
        checkpointing: whether blocks keep their inputs alone.
    """
    lengths = attended(config, mask_ratio, clips)
    with torch.device("meta"):
        model = ViViT(config).train()
    model.set_grad_checkpointing(checkpointing)
    if dtype != torch.float32:
        widen_norms(model)
    with FakeTensorMode():
        fill(model, device)
        video = torch.empty(clips, config.channels, config.frames, *config.size, dtype=torch.uint8, device=device)
        with Ledger([*model.parameters(), video], attention_flops(config, lengths)) as ledger:
            with saved_storages([*model.parameters(), video]) as saved:
                loss = loss_of(model, video, mask_ratio, dtype)
            forward = ledger.flops
            loss.backward()
    return Account(
        tokens=kept_tokens(config.views, mask_ratio),
        parameters=sum(p.numel() for p in model.parameters()),
        weight_bytes=sum(p.numel() * p.element_size() for p in model.parameters()),
        clip_bytes=video.numel(),
        saved_bytes=sum(saved.values()),
        peak_bytes=ledger.peak,
        flops_forward=forward,
        flops_step=ledger.flops,
        exponentials=config.depth * config.heads * sum(lengths.values()),
    )


def loss_of(
    model: ViViT, video: Tensor, mask_ratio: float, dtype: torch.dtype, generator: torch.Generator | None = None
) -> Tensor:
    """The loss of the step that is accounted for, timed and measured."""
    half = dtype != torch.float32
    with torch.autocast(video.device.type, dtype if half else None, enabled=half):
        pooled = model(video, mask_ratio=mask_ratio, generator=generator).pooled
    return pooled.float().square().mean()
