"""The text tower of a planned step: a BERT by its equations and sizes, without transformers or a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from fastvivit.modules.offload import HostOffload
from fastvivit.modules.recompute import checkpointed


@dataclass(frozen=True, kw_only=True)
class TextSize:
    """Sizes of a text tower.

    Attributes:
        width: of its states.
        depth: layers.
        heads: attention heads.
        ff: inner width of the feed-forward layers.
        vocabulary: word embeddings.
        positions: position embeddings.
        tokens: of a caption, the longest of a batch, to which the others are padded.
        dropout: rate after embeddings and branches; above 0 their masks are kept.
    """

    width: int
    depth: int
    heads: int
    ff: int
    vocabulary: int = 30522
    positions: int = 512
    tokens: int = 77
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "ff", "vocabulary", "positions", "tokens"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"text.{name}: wanted a whole number of at least 1, got {value!r}")
        if self.width % self.heads:
            raise ValueError(f"text.heads: wanted a divisor of width {self.width}, got {self.heads}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"text.dropout: wanted 0 <= rate < 1, got {self.dropout}")


# The paper's text towers: BERT-medium beside ViT-B (section 5), BERT-base beside ViT-L (section 6.2).
TEXTS = {
    "none": None,
    "bert-medium": TextSize(width=512, depth=8, heads=8, ff=2048),
    "bert-base": TextSize(width=768, depth=12, heads=12, ff=3072),
}


class PlannedText(nn.Module):
    """A post-LayerNorm BERT as ``TextTower`` calls one; texts count, and are not read.

    Args:
        size: its sizes.
    """

    def __init__(self, size: TextSize) -> None:
        super().__init__()
        self.size, self.width = size, size.width
        self.words = nn.Embedding(size.vocabulary, size.width)
        self.positions = nn.Embedding(size.positions, size.width)
        self.kinds = nn.Embedding(2, size.width)
        self.norm = nn.LayerNorm(size.width)
        self.dropout = _Dropout(size.dropout)
        self.blocks = nn.ModuleList(_Layer(size) for _ in range(size.depth))
        self.checkpointing = False
        self.offload: HostOffload | None = None

    def set_grad_checkpointing(self, enable: bool = True, *, offload: bool = False) -> None:
        """As ``TextTower``."""
        self.checkpointing, self.offload = enable, HostOffload() if enable and offload else None

    def forward(self, texts: Sequence[str]) -> Tensor:
        """(B, width) for B texts."""
        device = self.words.weight.device
        shape = (len(texts), self.size.tokens)
        ids = torch.zeros(shape, dtype=torch.int64, device=device)
        place = torch.arange(self.size.tokens, device=device).unsqueeze(0)
        x = self.words(ids) + self.kinds(ids) + self.positions(place)
        x = self.dropout(self.norm(x))
        for block in self.blocks:
            x = checkpointed(block, x, offload=self.offload) if self.checkpointing else block(x)
        real = torch.ones((*shape, 1), dtype=x.dtype, device=device)
        return (x * real).sum(1) / real.sum(1)


class _Dropout(nn.Dropout):
    """As a GPU has it: the mask is kept in bytes, where a CPU's own would have the dtype of the rows."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.native_dropout(x, self.p, self.training)[0] if self.p and self.training else x


class _Layer(nn.Module):
    """A layer of BERT (Devlin et al. 2019): attention, then feed-forward, each with its LayerNorm after the sum."""

    def __init__(self, size: TextSize) -> None:
        super().__init__()
        width = size.width
        self.heads = size.heads
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, size.ff), nn.Linear(size.ff, width)
        self.dropout = _Dropout(size.dropout)

    def forward(self, x: Tensor) -> Tensor:
        # Without a mask and without dropout of the weights, so that fakes of a CPU too keep no (L, L) scores, as no
        # fused kernel of a GPU does.
        q, k, v = (part(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        out = nnf.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.dropout(self.proj(out)))
        return self.norm2(x + self.dropout(self.fc2(nnf.gelu(self.fc1(x)))))
