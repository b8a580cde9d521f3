"""The dual encoder of contrastive training: clips and captions in one space."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

import fastvivit.functional as F
from fastvivit.modules.clips import Keep
from fastvivit.modules.text import TextTower
from fastvivit.modules.vivit import EncoderOutput, ViViT


class VideoTextModel(nn.Module):
    """A video encoder and a text encoder, each projected without bias onto ``dim`` shared dimensions.

    The temperature is CLIP's (Radford et al. 2021): learned as a logarithm, from 1/0.07, never above 100.

    Args:
        video: the encoder; its ``pooled`` is projected.
        text: the text tower.
        dim: shared dimensions.
    """

    def __init__(self, video: ViViT, text: TextTower, dim: int = 512) -> None:
        super().__init__()
        if video.config.pool is None:
            raise ValueError("video: wanted an encoder that pools, got one with pool=None")
        self.video, self.text, self.dim = video, text, dim
        self.video_proj = nn.Linear(video.num_features, dim, bias=False)
        self.text_proj = nn.Linear(text.width, dim, bias=False)
        for proj in (self.video_proj, self.text_proj):
            nn.init.normal_(proj.weight, std=proj.in_features**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @property
    def scale(self) -> Tensor:
        """What multiplies the cosines, 0-d."""
        return self.logit_scale.clamp(max=math.log(100.0)).exp()

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that an optimiser should not decay, beside those of one dimension."""
        return {f"video.{name}" for name in self.video.no_weight_decay()} | {"logit_scale"}

    def project_video(self, out: EncoderOutput) -> Tensor:
        """(B, dim) unit vectors of encoded clips."""
        return nnf.normalize(self.video_proj(out.pooled), dim=-1)

    def encode_video(
        self,
        video: Tensor | Sequence[Tensor],
        mask_ratio: float = 0.0,
        *,
        keep: Keep = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """(B, dim) unit vectors of clips or images, as ``ViViT`` takes them."""
        return self.project_video(self.video(video, mask_ratio=mask_ratio, keep=keep, generator=generator))

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """(B, dim) unit vectors of strings."""
        return nnf.normalize(self.text_proj(self.text(texts)), dim=-1)

    def forward(
        self,
        video: Tensor | Sequence[Tensor],
        texts: Sequence[str],
        *,
        mask_ratio: float = 0.0,
        keep: Keep = None,
        generator: torch.Generator | None = None,
        gather: bool = False,
    ) -> Tensor:
        """Contrastive loss of clips and their captions, 0-d.

        Args:
            video: B clips or images.
            texts: B captions.
            mask_ratio: share of the tokens to drop.
            keep: the tokens to keep instead.
            generator: source of randomness for ``mask_ratio``.
            gather: take negatives from every rank.
        """
        clips = self.encode_video(video, mask_ratio, keep=keep, generator=generator)
        return F.nce_loss(clips, self.encode_text(texts), self.scale, gather=gather)
