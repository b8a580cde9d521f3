"""A text encoder: any transformers encoder, averaged over its real tokens."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class TextTower(nn.Module):
    """Captions as the mean of their token states, padding left out (paper, section 3.1).

    Args:
        model: a transformers encoder whose output has ``last_hidden_state``.
        tokenizer: its tokenizer.
        max_length: tokens a caption is cut to; None is the tokenizer's own limit, at most 512.
    """

    def __init__(self, model: nn.Module, tokenizer, *, max_length: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.max_length = max_length or min(getattr(tokenizer, "model_max_length", 512), 512)

    @property
    def width(self) -> int:
        """Width of the text vectors."""
        return self.model.config.hidden_size

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Return (B, width) for a list of B strings. Raises ``ValueError`` for anything else, or for none."""
        if isinstance(texts, str) or not texts or not all(isinstance(t, str) for t in texts):
            raise ValueError(f"texts: wanted a list of strings, at least one, got {texts!r}")
        batch = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        device = next(self.model.parameters()).device
        batch = {k: v.to(device) for k, v in batch.items() if k in ("input_ids", "attention_mask")}
        states = self.model(**batch).last_hidden_state
        real = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
        return (states * real).sum(1) / real.sum(1).clamp(min=1)
