"""How likely a language model finds texts, token by token and as wholes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

import fastvivit.functional as F
from fastvivit.caption.language import Head, last_states
from fastvivit.caption.texts import Targets


def token_losses(lm: nn.Module, head: Head | None, batch: Targets) -> Tensor:
    """``-log p`` of each target, (M,) float32.

    Args:
        lm: a causal language model.
        head: of ``find_head``; with None logits are taken whole.
        batch: R texts.
    """
    if head is None:
        logits = lm(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
        return nnf.cross_entropy(logits.flatten(0, 1)[batch.index].float(), batch.target, reduction="none")
    states = last_states(lm, batch.input_ids, batch.attention_mask)
    linear = lm.get_output_embeddings()
    return F.linear_cross_entropy(
        states.flatten(0, 1)[batch.index], linear.weight, batch.target, linear.bias,
        scale=head.scale, softcap=head.softcap, reduction="none",
    )  # fmt: skip


def log_likelihoods(losses: Tensor, counts: list[int], *, mean: bool) -> Tensor:
    """Of texts from the losses (M,) of their tokens: sums or means of ``counts`` in a row, (R,) float32."""
    lengths = torch.tensor(counts, device=losses.device)
    owner = torch.repeat_interleave(lengths, output_size=len(losses))
    # The same to the bit every time: index_add_ is not, on a GPU.
    means = -F.segment_mean(losses.float().unsqueeze(1), owner, len(counts))[0].squeeze(1)
    return means if mean else means * lengths
