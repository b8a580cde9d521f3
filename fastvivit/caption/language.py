"""A causal language model of transformers by its structure: its blocks, its width, what makes logits of its states."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


def find_blocks(lm: nn.Module) -> nn.ModuleList:
    """The list of a language model's blocks: as many as its config says, the largest such list.

    Raises:
        ValueError: no causal language model of transformers, or no such list.
    """
    config = getattr(lm, "config", None)
    if not isinstance(lm, nn.Module) or config is None or not hasattr(lm, "generate"):
        raise ValueError(
            f"lm: wanted a causal language model of transformers (config, generate), got {type(lm).__name__}"
        )
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"lm: wanted a decoder alone, got the encoder and decoder of {type(lm).__name__}")
    if not isinstance(lm.get_output_embeddings(), nn.Module):
        raise ValueError(f"lm: wanted a model with a language-model head, got {type(lm).__name__}")
    depth = _text_config(lm).num_hidden_layers
    lists = [module for module in lm.modules() if isinstance(module, nn.ModuleList) and len(module) == depth]
    if not lists:
        raise ValueError(f"lm: wanted a list of its {depth} blocks, found none in {type(lm).__name__}")
    return max(lists, key=lambda blocks: sum(parameter.numel() for parameter in blocks.parameters()))


def width_of(lm: nn.Module) -> int:
    """Width of the hidden states between blocks."""
    return _text_config(lm).hidden_size


def longest_text(lm: nn.Module, tokenizer) -> int:
    """Tokens that the model and its tokenizer take."""
    limits = [getattr(_text_config(lm), "max_position_embeddings", None), getattr(tokenizer, "model_max_length", None)]
    return min([limit for limit in limits if limit], default=1024)


def _text_config(lm: nn.Module):
    config = lm.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


@dataclass(frozen=True, eq=False, kw_only=True)
class Head:
    """Logits of final hidden states: ``softcap · tanh(scale · linear(x) / softcap)``, without the cap where 0.

    Attributes:
        linear: the model's own head.
        scale: what multiplies its products (Cohere, Granite).
        softcap: what bounds them (Gemma 2).
    """

    linear: nn.Linear
    scale: float = 1.0
    softcap: float = 0.0

    def logits(self, states: Tensor) -> Tensor:
        """(..., width) → (..., V)."""
        logits = self.linear(states) * self.scale
        return self.softcap * torch.tanh(logits / self.softcap) if self.softcap else logits


@torch.no_grad()
def find_head(lm: nn.Module) -> Head | None:
    """How this model makes logits of its last hidden states, tried out on three tokens.

    Returns:
        The head; None where it is something else than a linear layer, a factor and a cap. Logits of such a model have
        to be taken whole.
    """
    linear, config = lm.get_output_embeddings(), _text_config(lm)
    if not isinstance(linear, nn.Linear):
        return None
    softcap = getattr(config, "final_logit_softcapping", None) or 0.0
    scaling = getattr(config, "logits_scaling", None) or 1.0
    scale = getattr(config, "logit_scale", None) or 1.0
    ids = torch.arange(3, device=linear.weight.device).unsqueeze(0)
    wanted = lm(input_ids=ids, use_cache=False).logits.float()
    states = last_states(lm, ids, torch.ones_like(ids))
    for head in (
        Head(linear=linear),
        Head(linear=linear, scale=1.0 / scaling, softcap=softcap),
        Head(linear=linear, scale=scale, softcap=softcap),
    ):
        found = head.logits(states).float()
        if found.shape == wanted.shape and torch.allclose(found, wanted, rtol=1e-2, atol=1e-3 * float(wanted.std())):
            return head
    return None


def last_states(lm: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """(R, n, width) of the model without its head."""
    return lm.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)[0]
