"""Auxiliary losses of contrastive training: tokens of the caption, predicted from the clip (paper, appendix C.2).

Extra multimodal layers on top of the dual encoder, as VideoCoCa (Yan et al. 2022) has them: "mlm", a multimodal
encoder that fills in masked tokens, or "captioning", a multimodal decoder that predicts each token from those
before it. Both cross-attend to all the kept tokens of the clip. In the paper neither helps (table 7).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import fastvivit.functional as F
from fastvivit.modules.linear import Linear
from fastvivit.modules.multimodal import Media, MultimodalLayer, group_texts
from fastvivit.modules.text import TextTower
from fastvivit.modules.vivit import EncoderOutput, ViViT
from fastvivit.tokens import Grouping

KINDS = ("none", "mlm", "captioning")
# A clip's video mask may be drawn from the same seed: other numbers.
_STREAM = 0x6D6C6D


@dataclass(frozen=True, kw_only=True)
class AuxiliaryConfig:
    """An auxiliary loss beside the contrastive one.

    Attributes:
        kind: "none", "mlm" or "captioning".
        weight: multiplies it; paper: 1, beside a contrastive loss of weight 1.
        depth: multimodal layers. The paper gives no number; 3 is small beside its 12 layers of video.
        heads: their attention heads, which divide the width of the text tower; None takes the text model's.
        mlm_ratio: share of the tokens of a caption that "mlm" masks; paper: 0.15.
    """

    kind: str = "none"
    weight: float = 1.0
    depth: int = 3
    heads: int | None = None
    mlm_ratio: float = 0.15

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"auxiliary.kind: wanted one of {', '.join(map(repr, KINDS))}, got {self.kind!r}")
        if not 0 < self.weight < math.inf:
            raise ValueError(f"auxiliary.weight: wanted above 0, and finite, got {self.weight!r}")
        for name, value in (("depth", self.depth), ("heads", 1 if self.heads is None else self.heads)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"auxiliary.{name}: wanted a whole number of at least 1, got {value!r}")
        if not 0 < self.mlm_ratio <= 1:
            raise ValueError(f"auxiliary.mlm_ratio: wanted 0 < ratio <= 1, got {self.mlm_ratio!r}")


class AuxiliaryHead(nn.Module):
    """Multimodal layers over packed text and video, and logits over the text model's own input embeddings.

    Text of the text tower's width goes through ``config.depth`` layers and a LayerNorm; a token's logits are
    ``E (W x + c) + b`` with E the (V, De) input embeddings of the text model, tied. The text tower is an argument
    of ``forward`` and no part of the head.

    Args:
        config: "mlm" or "captioning".
        video: the encoder; only its width is looked at.
        text: the text tower; only its widths, heads and tokenizer are looked at.

    Raises:
        ValueError: heads that do not divide the width of the text tower, or that the text model does not name.
    """

    causal: bool

    def __init__(self, config: AuxiliaryConfig, video: ViViT, text: TextTower) -> None:
        super().__init__()
        heads, width = config.heads or getattr(text.model.config, "num_attention_heads", None), text.width
        if heads is None or width % heads:
            raise ValueError(f"auxiliary.heads: wanted a divisor of the text tower's width {width}, got {heads}")
        self.config = config
        vocabulary, embedding_width = text.embeddings.weight.shape
        self.norm_media = nn.LayerNorm(video.num_features)
        self.layers = nn.ModuleList(
            MultimodalLayer(width, video.num_features, heads, causal=self.causal) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width)
        self.out = Linear(width, embedding_width)
        nn.init.xavier_uniform_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that an optimiser should not decay, beside those of one dimension."""
        return set()

    def fuse(self, x: Tensor, group: Grouping, out: EncoderOutput) -> Tensor:
        """X (M, D) packed text, one text a clip of ``out`` → (M, D), normed."""
        cu_seqlens, schedule = out.cu_seqlens, None
        if cu_seqlens.is_cuda:
            schedule = F.varlen_schedule(group.cu_seqlens, cu_seqlens, x.shape[0], out.tokens.shape[0])
        media = Media(
            tokens=self.norm_media(out.tokens),
            cu_seqlens=cu_seqlens,
            max_seqlen=max([0, *out.counts]),
            schedule=schedule,
        )
        for layer in self.layers:
            x = layer(x, group, media)
        return self.norm(x)

    def loss(self, x: Tensor, text: TextTower, target: Tensor, count: int | Tensor | None) -> Tensor:
        """Cross-entropy of rows x (n, D) against target (n,) int64, summed, over ``count``; None is n. 0 of no row."""
        total = F.linear_cross_entropy(self.out(x), text.embeddings.weight, target, self.bias, reduction="sum")
        if isinstance(count, Tensor):
            return total / count.to(total.dtype)
        return total / max(1, target.shape[0] if count is None else count)

    def count(self, text: TextTower, texts: Sequence[str]) -> int:
        """How many tokens of B captions are predicted, known without the clips."""
        raise NotImplementedError


class MaskedLanguageHead(AuxiliaryHead):
    """Masked language modelling by a multimodal encoder (paper, appendix C.2): ``-log p(w_m | rest, clip)``.

    The text tower reads the caption a second time with some tokens masked, and its states go through layers
    without a causal mask. As in BERT (Devlin et al. 2019, section 3.1 and appendix A.1), of n tokens that are not
    the tokenizer's special ones ``max(1, ⌊n · ratio + ½⌋)`` are chosen; of these each becomes, with probability
    0.8, the mask token, 0.1, a random token of the vocabulary, 0.1, itself. Only they are predicted.

    Raises:
        ValueError: a tokenizer without a mask token, and what ``AuxiliaryHead`` raises.
    """

    causal = False

    def __init__(self, config: AuxiliaryConfig, video: ViViT, text: TextTower) -> None:
        mask, vocabulary = text.tokenizer.mask_token_id, text.embeddings.weight.shape[0]
        if mask is None or mask >= vocabulary:
            raise ValueError(
                "auxiliary.kind: wanted a tokenizer with a mask token for 'mlm', its id among the text model's "
                f"{vocabulary} embeddings, got {mask}"
            )
        super().__init__(config, video, text)

    def count(self, text: TextTower, texts: Sequence[str]) -> int:
        """How many tokens of B captions are predicted, whatever the seeds."""
        return sum(map(self._chosen, _maskable(text.tokenize(texts)).sum(1).tolist()))

    def _chosen(self, maskable: int) -> int:
        return max(1, math.floor(maskable * self.config.mlm_ratio + 0.5)) if maskable else 0

    def mask_tokens(
        self, ids: Tensor, maskable: Tensor, text: TextTower, seeds: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Choose tokens and hide them, each caption by its own seed: the same in any batch.

        Args:
            ids: (B, L) int64 on the CPU.
            maskable: (B, L) bool, the tokens to choose from.
            text: its tokenizer's mask token and vocabulary are used.
            seeds: one a caption.

        Returns:
            ids (B, L) with the chosen ones replaced; chosen (B, L) bool. A caption with nothing to choose from
            has none.
        """
        hidden, chosen = ids.clone(), torch.zeros_like(maskable)
        vocabulary = min(len(text.tokenizer), self.bias.shape[0])
        for row, seed in enumerate(seeds):
            places = maskable[row].nonzero().squeeze(1)
            if not len(places):
                continue
            generator = torch.Generator().manual_seed(seed ^ _STREAM)
            count = self._chosen(len(places))
            places = places[torch.rand(len(places), generator=generator).argsort()[:count]]
            fate = torch.rand(count, generator=generator)
            anything = torch.randint(vocabulary, (count,), generator=generator)
            kept_or_random = torch.where(fate < 0.9, anything, ids[row, places])
            hidden[row, places] = torch.where(fate < 0.8, text.tokenizer.mask_token_id, kept_or_random)
            chosen[row, places] = True
        return hidden, chosen

    def forward(
        self,
        out: EncoderOutput,
        text: TextTower,
        texts: Sequence[str],
        seeds: Sequence[int],
        *,
        count: int | Tensor | None = None,
    ) -> Tensor:
        """Loss of B encoded clips and their captions, 0-d: the mean over the masked tokens of the batch.

        Args:
            out: of the video encoder, masked or not.
            text: the tower whose sizes the head was made for.
            texts: B captions.
            seeds: B whole numbers that the masks are drawn from.
            count: what the sum over tokens is divided by, ``count`` of a batch that these are a part of, or a 0-d
                tensor above 0; None is that of these.
        """
        device = out.tokens.device
        batch = text.tokenize(texts)
        real = batch["attention_mask"].bool()
        hidden, chosen = self.mask_tokens(batch["input_ids"], _maskable(batch), text, seeds)
        states = text.states(hidden, batch["attention_mask"]).flatten(0, 1)
        rows = real.flatten().nonzero().squeeze(1).to(device, non_blocking=True)
        x = F.gather_tokens(states, rows, distinct=True)
        x = self.fuse(x, group_texts(real, device), out)
        predicted = chosen[real].nonzero().squeeze(1).to(device, non_blocking=True)
        target = batch["input_ids"][chosen].to(device, non_blocking=True)
        return self.loss(F.gather_tokens(x, predicted, distinct=True), text, target, count)


class CaptioningHead(AuxiliaryHead):
    """Captioning by a multimodal decoder (paper, appendix C.2): ``-log p(w_t | w_<t, clip)`` of every token.

    The text tower sees both ways, so that its states would tell the decoder what it is to predict. The decoder
    therefore reads the text model's word embeddings, with positions of its own, and its self-attention is causal.
    A learned start vector stands before the first token. A token that the tokenizer puts in front ([CLS], <s>) is
    left out, as it is always the same; one at the end is predicted like any other.
    """

    causal = True

    def __init__(self, config: AuxiliaryConfig, video: ViViT, text: TextTower) -> None:
        super().__init__(config, video, text)
        width = text.width
        self.embed = Linear(self.out.out_features, width)
        nn.init.xavier_uniform_(self.embed.weight)
        nn.init.zeros_(self.embed.bias)
        self.start = nn.Parameter(torch.randn(width) * width**-0.5)
        self.pos = nn.Parameter(torch.randn(text.max_length, width) * width**-0.5)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that an optimiser should not decay, beside those of one dimension."""
        return {"pos"}

    def decode(self, ids: Tensor, real: Tensor, text: TextTower, out: EncoderOutput) -> Tensor:
        """States that predict each token.

        Args:
            ids: (B, L) int64 on the CPU.
            real: (B, L) bool, the tokens that count.
            text: whose embeddings are read.
            out: B encoded clips.

        Returns:
            (M, D), a row a real token, caption after caption; a row depends on the tokens before its own alone.
        """
        device = out.tokens.device
        place = (real.cumsum(1) - 1)[real]
        first = (place == 0).to(device, non_blocking=True)
        # Rolled over the packed rows: what comes in at a caption's first place is replaced by the start vector.
        before = ids[real].roll(1).to(device, non_blocking=True)
        x = self.embed(text.embeddings(before))
        x = torch.where(first.unsqueeze(1), self.start.to(x.dtype), x)
        x = x + F.gather_tokens(self.pos, place.to(device, non_blocking=True))
        return self.fuse(x, group_texts(real, device), out)

    def count(self, text: TextTower, texts: Sequence[str]) -> int:
        """How many tokens of B captions are predicted: all but those that the tokenizer put in front."""
        return int(_after_the_first(text.tokenize(texts)).sum())

    def forward(
        self, out: EncoderOutput, text: TextTower, texts: Sequence[str], *, count: int | Tensor | None = None
    ) -> Tensor:
        """Loss of B encoded clips and their captions, 0-d: the mean over the tokens of the batch.

        Args:
            out: of the video encoder, masked or not.
            text: the tower whose sizes the head was made for.
            texts: B captions.
            count: what the sum over tokens is divided by, ``count`` of a batch that these are a part of, or a 0-d
                tensor above 0; None is that of these.
        """
        batch = text.tokenize(texts)
        ids, real = batch["input_ids"], _after_the_first(batch)
        x = self.decode(ids, real, text, out)
        return self.loss(x, text, ids[real].to(x.device, non_blocking=True), count)


def _maskable(batch: dict[str, Tensor]) -> Tensor:
    """(B, L) bool, the real tokens that are not special."""
    return batch["attention_mask"].bool() & (batch["special_tokens_mask"] == 0)


def _after_the_first(batch: dict[str, Tensor]) -> Tensor:
    """(B, L) bool, the real tokens without a special one in front."""
    real = batch["attention_mask"].bool()
    leading = real & (real.cumsum(1) == 1) & (batch["special_tokens_mask"] != 0)
    return real & ~leading


def make_head(config: AuxiliaryConfig, video: ViViT, text: TextTower) -> MaskedLanguageHead | CaptioningHead | None:
    """The head that ``config`` asks for; None for "none"."""
    kinds = {"mlm": MaskedLanguageHead, "captioning": CaptioningHead}
    return kinds[config.kind](config, video, text) if config.kind in kinds else None
