"""What leads from a frozen encoder to the new layers of a language model: a resampler or a linear layer."""

from __future__ import annotations

import torch
from torch.nn import functional as nnf

import fastvivit.functional as F
from fastvivit.caption.media import Media
from fastvivit.caption.vision import Vision
from fastvivit.modules.linear import Linear
from fastvivit.modules.perceiver import PerceiverResampler
from fastvivit.modules.vivit import ViViT


def make_bridge(
    video: ViViT, width: int, resampler: bool | PerceiverResampler
) -> tuple[PerceiverResampler | None, Linear | None]:
    """A resampler, or a linear layer to ``width``; see ``VideoCaptioner``.

    Raises:
        ValueError: anything but a bool or a resampler, or one for another width.
    """
    if isinstance(resampler, PerceiverResampler):
        if resampler.in_dim != video.num_features:
            raise ValueError(
                f"resampler: wanted in_dim = {video.num_features}, the encoder's width, got {resampler.in_dim}"
            )
        return resampler, None
    if not isinstance(resampler, bool):
        raise ValueError(f"resampler: wanted True, False or a PerceiverResampler, got {type(resampler).__name__}")
    if not resampler:
        return None, Linear(video.num_features, width)
    # As many latents as places, the paper's choice; tubes share no places.
    places = 256 if video.config.attention == "tubes" else video.config.grid[1] * video.config.grid[2]
    return PerceiverResampler(in_dim=video.num_features, latents=places, out_dim=width), None


def cross(bridge: PerceiverResampler | Linear, vision: Vision) -> Media:
    """Bring clips to the new layers, in the dtype of the bridge.

    Raises:
        ValueError: clips on another device than the bridge.
    """
    weight = next(bridge.parameters())
    tokens, mask = vision.tokens, vision.mask
    if tokens.device != weight.device:
        raise ValueError(f"video: wanted a Vision on {weight.device}, as the captioner, got {tokens.device}")
    tokens = tokens.to(weight.dtype)
    clips, places = mask.shape
    ends = torch.arange(clips + 1, dtype=torch.int32, device=mask.device)
    if isinstance(bridge, PerceiverResampler):
        latents = bridge(tokens, mask)
        return Media(tokens=latents.flatten(0, 1), cu_seqlens=ends * latents.shape[1], max_seqlen=latents.shape[1])
    # Real tokens first, clip by clip; masked ones behind all of them, where no clip ends. Attention ignores those,
    # but the gradient of a weight would not ignore their NaN.
    tokens = tokens.masked_fill(~mask.unsqueeze(2), 0)
    clip = torch.where(mask, ends[:-1].unsqueeze(1), clips).flatten()
    rows = F.gather_tokens(tokens.flatten(0, 1), clip.argsort(stable=True), distinct=True)
    return Media(tokens=bridge(rows), cu_seqlens=nnf.pad(mask.sum(1).cumsum(0), (1, 0)).int(), max_seqlen=places)
