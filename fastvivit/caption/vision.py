"""Clips as a frozen encoder left them: what the trained part of a captioner reads, and what is worth keeping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as nnf

import fastvivit.functional as F
from fastvivit._checks import require_tensor
from fastvivit.modules.pooling import temporal_mean
from fastvivit.modules.vivit import EncoderOutput


@dataclass(frozen=True, eq=False)
class Vision:
    """Tokens of B clips without a graph, padded.

    Attributes:
        tokens: (B, S, D), 0 where masked.
        mask: (B, S) bool, True where there is a token: a place of which something was kept.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit each other, no clip.
    """

    tokens: Tensor
    mask: Tensor

    def __post_init__(self) -> None:
        require_tensor("tokens", self.tokens, (3,))
        require_tensor("mask", self.mask, (2,), (torch.bool,), self.tokens)
        if self.mask.shape != self.tokens.shape[:2] or self.tokens.shape[0] == 0:
            raise ValueError(
                f"mask: wanted (B, S) like tokens (B, S, D) of B > 0 clips, got {tuple(self.mask.shape)} and "
                f"{tuple(self.tokens.shape)}"
            )

    @classmethod
    def of(cls, out: EncoderOutput, *, over_time: bool = True) -> Vision:
        """What an encoder made of some clips, without its graph.

        Args:
            out: of a ViViT.
            over_time: average each place over time (paper, section 3.2); otherwise every token, CLS included.
        """
        if over_time:
            tokens, mask = temporal_mean(out)
            return cls(tokens.detach(), mask)
        longest = max(out.counts)
        # Counts are known here: a device that counts its own would be waited for.
        mask = torch.arange(longest) < torch.tensor(out.counts).unsqueeze(1)
        rows, device = out.tokens.detach(), out.tokens.device
        if len(set(out.counts)) > 1:
            places = mask.flatten().nonzero().squeeze(1).to(device, non_blocking=True)
            rows = F.scatter_tokens(rows, places, mask.numel())
        return cls(rows.unflatten(0, mask.shape), mask.to(device, non_blocking=True))

    @classmethod
    def stack(cls, parts: Sequence[Vision]) -> Vision:
        """Several batches as one; shorter ones are padded."""
        if not parts:
            raise ValueError("parts: wanted at least one Vision, got none")
        longest = max(part.tokens.shape[1] for part in parts)
        pads = [longest - part.tokens.shape[1] for part in parts]
        tokens = [nnf.pad(part.tokens, (0, 0, 0, pad)) for part, pad in zip(parts, pads, strict=True)]
        masks = [nnf.pad(part.mask, (0, pad)) for part, pad in zip(parts, pads, strict=True)]
        return cls(torch.cat(tokens), torch.cat(masks))

    def __len__(self) -> int:
        """B."""
        return self.tokens.shape[0]

    def __getitem__(self, clip: int | slice) -> Vision:
        """One clip, or some, as a batch. Raises ``IndexError`` past the last clip, as sequences do."""
        if not isinstance(clip, slice) and not -len(self) <= clip < len(self):
            raise IndexError(f"clip: wanted one of {len(self)}, got {clip}")
        part = clip if isinstance(clip, slice) else slice(clip, clip + 1 or None)
        return Vision(self.tokens[part], self.mask[part])

    def pin_memory(self) -> Vision:
        """The same in page-locked memory; loaders with ``pin_memory=True`` call it."""
        return Vision(self.tokens.pin_memory(), self.mask.pin_memory())

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Vision:
        """The same on a device."""
        return Vision(
            self.tokens.to(device, non_blocking=non_blocking), self.mask.to(device, non_blocking=non_blocking)
        )
