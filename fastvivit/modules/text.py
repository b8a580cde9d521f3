"""A text encoder: any transformers encoder, averaged over its real tokens."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fastvivit.modules.offload import HostOffload, offloading


class TextTower(nn.Module):
    """Captions as the mean of their token states, padding left out (paper, section 3.1).

    Args:
        model: a transformers encoder whose output has ``last_hidden_state``.
        tokenizer: its tokenizer.
        max_length: tokens a caption is cut to; None is the limit of the tokenizer or the model, at most 512.
    """

    def __init__(self, model: nn.Module, tokenizer, *, max_length: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.offload: HostOffload | None = None
        limits = (getattr(tokenizer, "model_max_length", None), getattr(model.config, "max_position_embeddings", None))
        self.max_length = max_length or min(512, *(limit for limit in limits if limit))

    @property
    def width(self) -> int:
        """Width of the text vectors."""
        return self.model.config.hidden_size

    @property
    def embeddings(self) -> nn.Embedding:
        """The word embeddings of the text model; their weight is (V, De)."""
        return self.model.get_input_embeddings()

    def set_grad_checkpointing(self, enable: bool = True, *, offload: bool = False) -> None:
        """Keep no activations inside the model's blocks while training; they are computed again in the backward.

        By transformers' own means; a model that has none stays as it is, and so does a frozen one, which keeps nothing
        and would be given a backward. With ``offload`` the inputs that are kept wait in host memory: see
        ``HostOffload``.
        """
        self.offload = None
        if not getattr(self.model, "supports_gradient_checkpointing", False):
            return
        # transformers 5 has renamed what its version 4 calls gradient checkpointing.
        kind = "activation" if hasattr(self.model, "activation_checkpointing_enable") else "gradient"
        # transformers makes the embeddings' output need a gradient, and through frozen blocks one would be computed.
        if enable and any(parameter.requires_grad for parameter in self.model.parameters()):
            getattr(self.model, f"{kind}_checkpointing_enable")({"use_reentrant": False})
            self.offload = HostOffload() if offload else None
        else:
            getattr(self.model, f"{kind}_checkpointing_disable")()

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Strings as token ids, on the CPU.

        Args:
            texts: B strings.

        Returns:
            ``input_ids`` (B, L) int64, padded; ``attention_mask`` (B, L) int64, 1 = real; ``special_tokens_mask``
            (B, L) int64, 1 = padding, or added by the tokenizer.

        Raises:
            ValueError: anything but a list of strings, or none.
        """
        if isinstance(texts, str) or not texts or not all(isinstance(t, str) for t in texts):
            raise ValueError(f"texts: wanted a list of strings, at least one, got {texts!r}")
        options = {"truncation": True, "return_special_tokens_mask": True, "return_tensors": "pt"}
        batch = self.tokenizer(list(texts), padding=True, max_length=self.max_length, **options)
        if not batch["input_ids"].shape[1]:
            # Texts without a token, and nobody beside them who has one: models want a place, if only of padding.
            batch = self.tokenizer(list(texts), padding="max_length", max_length=1, **options)
        return {name: batch[name] for name in ("input_ids", "attention_mask", "special_tokens_mask")}

    def states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(B, L, width) states of ``input_ids`` and ``attention_mask`` of ``tokenize``, on the model's device."""
        device = next(self.model.parameters()).device
        # A blocking copy would wait for all that the device has to do before it.
        ids, mask = (one.to(device, non_blocking=True) for one in (ids, mask))
        with offloading(self.offload):
            return self.model(input_ids=ids, attention_mask=mask).last_hidden_state

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Return (B, width) for a list of B strings. Raises ``ValueError`` for anything else, or for none."""
        batch = self.tokenize(texts)
        states = self.states(batch["input_ids"], batch["attention_mask"])
        real = batch["attention_mask"].to(states.device, non_blocking=True).unsqueeze(-1).to(states.dtype)
        return (states * real).sum(1) / real.sum(1).clamp(min=1)
