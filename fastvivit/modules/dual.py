"""The dual encoder of contrastive training: clips and captions in one space."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

import fastvivit.functional as F
from fastvivit.losses import mean_count
from fastvivit.modules.auxiliary import AuxiliaryConfig, MaskedLanguageHead, make_head
from fastvivit.modules.clips import Keep
from fastvivit.modules.text import TextTower
from fastvivit.modules.tubelets import Tubelets
from fastvivit.modules.vivit import EncoderOutput, ViViT

LOSSES = ("infonce", "siglip")


class VideoTextModel(nn.Module):
    """A video encoder and a text encoder, each projected without bias onto ``dim`` shared dimensions.

    The temperature is CLIP's (Radford et al. 2021): learned as a logarithm, from 1/0.07, never above 100. With
    ``loss="siglip"`` it starts at SigLIP's 1/10, beside a learned bias of -10 (Zhai et al. 2023, section 3.2).

    Args:
        video: the encoder; its ``pooled`` is projected.
        text: the text tower.
        dim: shared dimensions.
        auxiliary: a loss beside the contrastive one (paper, appendix C.2): "mlm", "captioning", or a config with
            its weight, depth and so on. None, as one of kind "none", has none.
        loss: the contrastive loss, "infonce" (``F.nce_loss``, the paper's) or "siglip" (``F.sigmoid_loss``).

    Attributes:
        auxiliary: the head of that loss, or None.
        logit_bias: SigLIP's, 0-d; None with "infonce".

    Raises:
        ValueError: an encoder that does not pool; a head that does not fit the text tower; an unknown loss.
    """

    def __init__(
        self,
        video: ViViT,
        text: TextTower,
        dim: int = 512,
        auxiliary: AuxiliaryConfig | str | None = None,
        *,
        loss: str = "infonce",
    ) -> None:
        super().__init__()
        if video.config.pool is None:
            raise ValueError("video: wanted an encoder that pools, got one with pool=None")
        if loss not in LOSSES:
            raise ValueError(f"loss: wanted one of {', '.join(map(repr, LOSSES))}, got {loss!r}")
        self.video, self.text, self.dim, self.loss = video, text, dim, loss
        self.video_proj = nn.Linear(video.num_features, dim, bias=False)
        self.text_proj = nn.Linear(text.width, dim, bias=False)
        for proj in (self.video_proj, self.text_proj):
            nn.init.normal_(proj.weight, std=proj.in_features**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07 if loss == "infonce" else 10.0)))
        self.logit_bias = None if loss == "infonce" else nn.Parameter(torch.tensor(-10.0))
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
        spared = {f"video.{name}" for name in self.video.no_weight_decay()}
        spared |= {"logit_scale"} if self.logit_bias is None else {"logit_scale", "logit_bias"}
        if self.auxiliary is not None:
            spared |= {f"auxiliary.{name}" for name in self.auxiliary.no_weight_decay()}
        return spared

    def project_video(self, out: EncoderOutput | Tensor) -> Tensor:
        """(B, dim) unit vectors of encoded clips, or of their ``pooled`` (B, D)."""
        return nnf.normalize(self.video_proj(out if isinstance(out, Tensor) else out.pooled), dim=-1)

    def project_text(self, features: Tensor) -> Tensor:
        """(B, dim) unit vectors of what the text tower made of strings, (B, text.width)."""
        return nnf.normalize(self.text_proj(features), dim=-1)

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
        return self.project_text(self.text(texts))

    def contrast(
        self,
        video: Tensor,
        text: Tensor,
        *,
        scale: Tensor | None = None,
        bias: Tensor | None = None,
        loss: str | None = None,
        gather: bool = False,
    ) -> Tensor:
        """The contrastive loss of unit vectors, 0-d.

        Args:
            video: (B, dim).
            text: (B, dim).
            scale: multiplies the cosines; None is the model's.
            bias: is added to them by "siglip"; None is the model's.
            loss: "infonce" or "siglip"; None is the model's.
            gather: take negatives from every rank.

        Raises:
            ValueError: an unknown loss; "siglip" for a model without a bias.
        """
        scale = self.scale if scale is None else scale
        if self.require_loss(loss) == "infonce":
            return F.nce_loss(video, text, scale, gather=gather)
        return F.sigmoid_loss(video, text, scale, self.logit_bias if bias is None else bias, gather=gather)

    def require_loss(self, loss: str | None) -> str:
        """The name of a contrastive loss that this model can take; None is its own. Raises ``ValueError``."""
        loss = self.loss if loss is None else loss
        if loss not in LOSSES:
            raise ValueError(f"loss: wanted one of {', '.join(map(repr, LOSSES))}, got {loss!r}")
        if loss == "siglip" and self.logit_bias is None:
            raise ValueError("loss: wanted a model made with loss='siglip', which has a bias, got one without")
        return loss

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
        loss: str | None = None,
    ) -> dict[str, Tensor]:
        """The loss and its parts. The encoder runs once, and an auxiliary head sees the same masked clips.

        Args:
            video: B clips or images, or their kept ``Tubelets``.
            texts: B captions.
            mask_ratio: share of the tokens to drop.
            keep: the tokens to keep instead.
            generator: source of randomness for ``mask_ratio``, and then for ``text_seeds``.
            gather: take negatives from every rank; an auxiliary loss is a mean over the tokens of every rank.
            text_seeds: B whole numbers >= 0; caption b's tokens are masked by number b ("mlm"). None draws them.
            loss: "infonce" or "siglip"; None is the model's.

        Returns:
            ``loss``, 0-d: ``contrastive`` and, with a head, ``weight`` times the part named "mlm" or
            "captioning". Parts are unweighted.

        Raises:
            ValueError: captions or seeds that are not one a clip, and what the encoders raise.
        """
        loss = self.require_loss(loss)
        out = self.video(video, mask_ratio=mask_ratio, keep=keep, generator=generator)
        contrastive = self.contrast(self.project_video(out), self.encode_text(texts), loss=loss, gather=gather)
        head = self.auxiliary
        if head is None:
            return {"loss": contrastive, "contrastive": contrastive}
        count = mean_count(head.count(self.text, texts), contrastive.device, gather=True) if gather else None
        part = self.auxiliary_loss(out, texts, self.seeds(text_seeds, len(texts), generator), count=count)
        return {"loss": contrastive + head.config.weight * part, "contrastive": contrastive, head.config.kind: part}

    def auxiliary_loss(
        self,
        out: EncoderOutput,
        texts: Sequence[str],
        seeds: Sequence[int] | None,
        *,
        count: int | Tensor | None = None,
    ) -> Tensor:
        """The loss of the head, 0-d, unweighted: a mean over tokens, or their sum over ``count``.

        Args:
            out: B encoded clips.
            texts: B captions.
            seeds: one a caption, of ``seeds``.
            count: see the heads.
        """
        if isinstance(self.auxiliary, MaskedLanguageHead):
            return self.auxiliary(out, self.text, texts, seeds, count=count)
        return self.auxiliary(out, self.text, texts, count=count)

    def seeds(
        self, given: Sequence[int] | None, count: int, generator: torch.Generator | None = None
    ) -> list[int] | None:
        """One seed a caption, drawn where none are given; None where nothing is drawn from them.

        Raises:
            ValueError: seeds that are not one a caption, or below 0.
        """
        if not isinstance(self.auxiliary, MaskedLanguageHead):
            return None
        if given is None:
            device = "cpu" if generator is None else generator.device
            return torch.randint(2**62, (count,), generator=generator, device=device).tolist()
        seeds = [int(seed) for seed in given]
        if len(seeds) != count or min(seeds) < 0:
            raise ValueError(f"text_seeds: wanted {count} whole numbers of at least 0, one a caption, got {seeds}")
        return seeds
