"""Self-attention of transformers' layers by ``F.attention``, and when it must stay theirs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

import fastvivit.functional as F
from fastvivit.hf.call import Link, current

# What models hand down to every layer without a meaning for attention.
_NO_MATTER = ("output_hidden_states", "return_dict", "num_items_in_batch")
# Names of transformers' own kernels: all the same attention. Another one may compute something else.
_SAME = (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention")


def must_be_original(module: nn.Module, link: Link, dropout: float, args: Sequence[Any] = (), /, **kwargs: Any) -> bool:
    """Whether a layer's attention has to be computed as transformers does.

    It does for what ours has not: probabilities, dropout, masks of any kind, an attention function of the user's own,
    and whatever argument of a later version nobody here has heard of.

    Args:
        module: the attention.
        link: of its model.
        dropout: rate, in training.
        args: positional arguments after the hidden states.
        kwargs: keyword arguments.
    """
    call = current(link)
    if (call is not None and call.attentions) or (module.training and dropout > 0):
        return True
    if getattr(getattr(module, "config", None), "_attn_implementation", None) not in _SAME:
        return True
    given = [*args, *(value for name, value in kwargs.items() if name not in _NO_MATTER)]
    return bool(getattr(module, "is_causal", False)) or any(v is not None and v is not False for v in given)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> Tensor:
    """Q, k, v (B, N, H·d) → (B, N, H·d)."""
    q, k, v = (t.unflatten(-1, (heads, -1)) for t in (q, k, v))
    return F.attention(q, k, v, softmax_scale=scale).flatten(2)
