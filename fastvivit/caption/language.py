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
    if not isinstance(getattr(lm, "get_output_embeddings", lambda: None)(), nn.Module):
        raise ValueError(f"lm: wanted a model with a language-model head, got {type(lm).__name__}")
    depth = getattr(_text_config(lm), "num_hidden_layers", None)
    lists = [module for module in lm.modules() if isinstance(module, nn.ModuleList) and len(module) == depth]
    if not lists:
        raise ValueError(f"lm: wanted a list of its {depth} blocks, found none in {type(lm).__name__}")
    return max(lists, key=lambda blocks: sum(parameter.numel() for parameter in blocks.parameters()))


def width_of(lm: nn.Module) -> int:
    """Width of the hidden states between blocks."""
    width = getattr(_text_config(lm), "hidden_size", None)
    if not isinstance(width, int):
        raise ValueError(f"lm: wanted a config with one hidden_size, got {width!r} in {type(lm).__name__}")
    return width


def queries_per_key(lm: nn.Module) -> int:
    """How many query heads share a key in the model's own attention; 1 where it doesn't say."""
    config = _text_config(lm)
    heads = getattr(config, "num_attention_heads", None)
    shared = getattr(config, "num_key_value_heads", None)
    known = isinstance(heads, int) and isinstance(shared, int) and shared > 0 and heads % shared == 0
    return heads // shared if known else 1


def longest_text(lm: nn.Module, tokenizer) -> int:
    """Tokens that the model and its tokenizer take."""
    config = _text_config(lm)
    limits = [getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len")]
    limits.append(getattr(tokenizer, "model_max_length", None))
    return min([limit for limit in limits if limit], default=1024)


def _text_config(lm: nn.Module):
    config = lm.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


@dataclass(frozen=True, eq=False, kw_only=True)
class Head:
    """Logits of final hidden states: ``softcap · tanh(scale · linear(x) / softcap)``, without the cap where 0.

    Attributes:
        scale: what multiplies the products of the model's own linear head (Cohere, Granite).
        softcap: what bounds them (Gemma 2).
    """

    scale: float = 1.0
    softcap: float = 0.0

    def logits(self, products: Tensor) -> Tensor:
        """(..., V) of the linear head → (..., V)."""
        logits = products * self.scale
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
    ids = torch.arange(3, device=linear.weight.device).unsqueeze(0)
    # Some models attend otherwise without a mask; under autocast a factor or a cap would be lost in rounding.
    mask = torch.ones_like(ids)
    with torch.autocast(ids.device.type, enabled=False):
        wanted = lm(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
        states = last_states(lm, ids, mask)
        if not isinstance(states, Tensor) or states.shape[-1] != linear.in_features:
            return None
        products = linear(states).float()
    if products.shape != wanted.shape:
        return None
    softcap = getattr(config, "final_logit_softcapping", None) or 0.0
    divisor = getattr(config, "logits_scaling", None) or 1.0
    factors = [getattr(config, name, None) for name in ("logit_scale", "lm_head_multiplier")]
    scales = [1.0 / divisor, *(factor for factor in factors if isinstance(factor, float)), 1.0]
    # What the config names comes first: a cap far above the logits of three tokens hardly shows in them.
    heads = [Head(scale=scale, softcap=cap) for cap in dict.fromkeys((softcap, 0.0)) for scale in dict.fromkeys(scales)]
    errors = [float((head.logits(products) - wanted).abs().max()) for head in heads]
    best = min(range(len(heads)), key=errors.__getitem__)
    rounding = 1e-2 if linear.weight.dtype in (torch.float16, torch.bfloat16) else 1e-4
    return heads[best] if errors[best] <= rounding * float(wanted.abs().max()) else None


def last_states(lm: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """(R, n, width) of the model without its head."""
    model = lm.base_model
    if model is lm:  # some classes misname their base, and are their own then
        blocks = find_blocks(lm)
        inner = (child for child in lm.children() if child is not blocks and any(m is blocks for m in child.modules()))
        model = next(inner, lm)
    return model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)[0]
