"""The dual encoder of contrastive training: clips and captions in one space."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

import fastvivit.functional as F
from fastvivit.modules.auxiliary import AuxiliaryConfig, MaskedLanguageHead, make_head
from fastvivit.modules.clips import Keep
from fastvivit.modules.text import TextTower
from fastvivit.modules.tubelets import Tubelets
from fastvivit.modules.vivit import EncoderOutput, ViViT


class VideoTextModel(nn.Module):
    """A video encoder and a text encoder, each projected without bias onto ``dim`` shared dimensions.

    The temperature is CLIP's (Radford et al. 2021): learned as a logarithm, from 1/0.07, never above 100.

    Args:
        video: the encoder; its ``pooled`` is projected.
        text: the text tower.
        dim: shared dimensions.
        auxiliary: a loss beside the contrastive one (paper, appendix C.2): "mlm", "captioning", or a config with
            its weight, depth and so on. None, as one of kind "none", has none.

    Attributes:
        auxiliary: the head of that loss, or None.

    Raises:
        ValueError: an encoder that does not pool; a head that does not fit the text tower.
    """

    def __init__(
        self, video: ViViT, text: TextTower, dim: int = 512, auxiliary: AuxiliaryConfig | str | None = None
    ) -> None:
        super().__init__()
        if video.config.pool is None:
            raise ValueError("video: wanted an encoder that pools, got one with pool=None")
        self.video, self.text, self.dim = video, text, dim
        self.video_proj = nn.Linear(video.num_features, dim, bias=False)
        self.text_proj = nn.Linear(text.width, dim, bias=False)
        for proj in (self.video_proj, self.text_proj):
            nn.init.normal_(proj.weight, std=proj.in_features**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        if not isinstance(auxiliary, AuxiliaryConfig):
            auxiliary = AuxiliaryConfig(kind="none" if auxiliary is None else auxiliary)
        self.auxiliary = make_head(auxiliary, video, text)

    @property
    def scale(self) -> Tensor:
        """What multiplies the cosines, 0-d."""
        return self.logit_scale.clamp(max=math.log(100.0)).exp()

    def set_grad_checkpointing(self, enable: bool = True, policy: str = "full", *, offload: bool = False) -> None:
        """Checkpoint both encoders: see ``ViViT.set_grad_checkpointing``.

        "selective" is for the video encoder alone; the text encoder is checkpointed by "full", where transformers
        can, or keeps everything.
        """
        self.video.set_grad_checkpointing(enable, policy, offload=offload)
        self.text.set_grad_checkpointing(enable and policy == "full", offload=offload)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that an optimiser should not decay, beside those of one dimension."""
        spared = {f"video.{name}" for name in self.video.no_weight_decay()} | {"logit_scale"}
        if self.auxiliary is not None:
            spared |= {f"auxiliary.{name}" for name in self.auxiliary.no_weight_decay()}
        return spared

    def project_video(self, out: EncoderOutput) -> Tensor:
        """(B, dim) unit vectors of encoded clips."""
        return nnf.normalize(self.video_proj(out.pooled), dim=-1)

    def encode_video(
        self,
        video: Tensor | Sequence[Tensor] | Tubelets,
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
        video: Tensor | Sequence[Tensor] | Tubelets,
        texts: Sequence[str],
        *,
        mask_ratio: float = 0.0,
        keep: Keep = None,
        generator: torch.Generator | None = None,
        gather: bool = False,
        text_seeds: Sequence[int] | None = None,
    ) -> Tensor:
        """``losses(...)["loss"]``: the contrastive loss of clips and their captions, with any auxiliary one, 0-d."""
        parts = self.losses(
            video,
            texts,
            mask_ratio=mask_ratio,
            keep=keep,
            generator=generator,
            gather=gather,
            text_seeds=text_seeds,
        )
        return parts["loss"]

    def losses(
        self,
        video: Tensor | Sequence[Tensor] | Tubelets,
        texts: Sequence[str],
        *,
        mask_ratio: float = 0.0,
        keep: Keep = None,
        generator: torch.Generator | None = None,
        gather: bool = False,
        text_seeds: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """The loss and its parts. The encoder runs once, and an auxiliary head sees the same masked clips.

        Args:
            video: B clips or images, or their kept ``Tubelets``.
            texts: B captions.
            mask_ratio: share of the tokens to drop.
            keep: the tokens to keep instead.
            generator: source of randomness for ``mask_ratio``, and then for ``text_seeds``.
            gather: take negatives from every rank; an auxiliary loss is this rank's own mean.
            text_seeds: B whole numbers >= 0; caption b's tokens are masked by number b ("mlm"). None draws them.

        Returns:
            ``loss``, 0-d: ``contrastive`` and, with a head, ``weight`` times the part named "mlm" or
            "captioning". Parts are unweighted.

        Raises:
            ValueError: captions or seeds that are not one a clip, and what the encoders raise.
        """
        out = self.video(video, mask_ratio=mask_ratio, keep=keep, generator=generator)
        contrastive = F.nce_loss(self.project_video(out), self.encode_text(texts), self.scale, gather=gather)
        head = self.auxiliary
        if head is None:
            return {"loss": contrastive, "contrastive": contrastive}
        if isinstance(head, MaskedLanguageHead):
            part = head(out, self.text, texts, _seeds(text_seeds, len(texts), generator))
        else:
            part = head(out, self.text, texts)
        return {"loss": contrastive + head.config.weight * part, "contrastive": contrastive, head.config.kind: part}


def _seeds(given: Sequence[int] | None, count: int, generator: torch.Generator | None) -> list[int]:
    """One seed a caption, drawn where none are given."""
    if given is None:
        device = "cpu" if generator is None else generator.device
        return torch.randint(2**62, (count,), generator=generator, device=device).tolist()
    seeds = [int(seed) for seed in given]
    if len(seeds) != count or min(seeds) < 0:
        raise ValueError(f"text_seeds: wanted {count} whole numbers of at least 0, one a caption, got {seeds}")
    return seeds
