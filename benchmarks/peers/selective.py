"""A block under ``torch.utils.checkpoint`` with a policy that keeps products and attention."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

import fastvivit.ops.linear  # noqa: F401, registers what is named below
from fastvivit.modules.block import Block
from fastvivit.tokens import Grouping


class SelectiveBlock(nn.Module):
    """``block``, of which the results of products and attention are kept and all else is computed again.

    Args:
        block: one of ours.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block
        aten, ours = torch.ops.aten, torch.ops.fastvivit
        keep = [aten.mm.default, aten.addmm.default, ours.linear.default, ours.varlen_attention.default]
        self.contexts = partial(create_selective_checkpoint_contexts, keep)

    def forward(self, x: Tensor, group: Grouping, clips: Grouping, extra: Grouping | None = None) -> Tensor:
        """As the block."""
        return checkpoint(self.block, x, group, clips, extra, use_reentrant=False, context_fn=self.contexts)
