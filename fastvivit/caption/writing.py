"""A language model's own ``generate``, greedy unless told otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastvivit.caption.texts import Texts

_GREEDY = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "num_beams": 1}
# What ``write`` gives ``generate`` itself.
_OURS = {"input_ids", "inputs", "inputs_embeds", "attention_mask", "generation_config", "max_length"}


def require_options(options: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` for an option that is not for the caller to set."""
    if taken := sorted(_OURS & options.keys()):
        raise ValueError(f"options: wanted those of the language model's generate but {sorted(_OURS)}, got {taken}")


def write(
    lm: nn.Module,
    texts: Texts,
    prompts: list[str],
    max_new_tokens: int,
    options: Mapping[str, Any],
    device: torch.device,
) -> Tensor:
    """Token ids (R, n) that go on from prompts, without them.

    Args:
        lm: a causal language model.
        texts: how prompts become tokens.
        prompts: one or more.
        max_new_tokens: n at most; fewer where the model takes no more. A prompt too long for both to fit keeps its end,
            half of what the model takes at least.
        options: of the language model's ``generate``.
        device: where the language model begins.
    """
    start = texts.prompts(prompts, min(max_new_tokens, texts.max_length // 2), device)
    if not options.get("do_sample"):
        options = _GREEDY | options
    # Compiled for a static cache, every clip's keys would be new constants.
    options = {"pad_token_id": texts.pad, "eos_token_id": _ends(lm, texts), "disable_compile": True} | options
    ids = lm.generate(
        input_ids=start.input_ids,
        attention_mask=start.attention_mask,
        max_new_tokens=min(max_new_tokens, texts.max_length - start.input_ids.shape[1]),
        max_length=None,  # a model's own would be warned of at every call
        **options,
    )
    return getattr(ids, "sequences", ids)[:, start.input_ids.shape[1] :]


def _ends(lm: nn.Module, texts: Texts) -> list[int] | None:
    """Tokens that end a text: the language model's own, and the one that captions are learned with."""
    own = getattr(lm.generation_config, "eos_token_id", None)
    own = own if isinstance(own, list) else [own]
    return sorted({token for token in (*own, texts.end) if token is not None}) or None
