"""Encoders without memory: what a model needs to go through a step under fake tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod

import torch
from torch import Tensor, nn

import fastvivit.functional as F
from fastvivit.models import ViViTConfig
from fastvivit.modules.recompute import remade
from fastvivit.modules.vivit import GROUPS, ViViT
from fastvivit.tokens import Grouping, Tokens, Views


def widen_norms(model: nn.Module) -> None:
    """Give every LayerNorm float32, as a GPU's autocast does; a CPU's own leaves it in 16 bits.

    Those of blocks that are checkpointed by "selective" make what they widened again, as on a GPU.
    """
    again = {
        norm
        for encoder in model.modules()
        if isinstance(encoder, ViViT) and encoder.checkpointing == "selective"
        for block in encoder.blocks
        for norm in [block.norm1, block.norm2] + ([] if block.extra is None else [block.extra.norm])
    }
    for module in model.modules():
        if module in again:
            module.forward = partial(_norm_made_again, module)
        elif isinstance(module, nn.LayerNorm):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))


def _norm_made_again(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    wide = x.float()
    with remade(wide, x.detach().float):
        return nn.functional.layer_norm(wide, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def fill(model: nn.Module, device: str) -> None:
    """Give a model made on "meta" parameters of ``device``, of whatever kind ``torch.empty`` makes now."""
    for module in model.modules():
        for name, old in module.named_parameters(recurse=False):
            new = torch.empty(old.shape, dtype=old.dtype, device=device)
            setattr(module, name, nn.Parameter(new, requires_grad=old.requires_grad))


def attended(
    config: ViViTConfig, mask_ratio: float, clips: int, views: Views | None = None
) -> dict[tuple[int, int], int]:
    """Sums of squared lengths of the groupings that attention runs in, by (sequences, longest): one seeded draw.

    Args:
        config: of the encoder.
        mask_ratio: share of the tokens that are dropped.
        clips: how many.
        views: their grids; None is the config's.
    """
    generator = torch.Generator().manual_seed(0)
    parts, start = [], 0
    views = config.views if views is None else views
    for grid in views:
        size = prod(grid)
        parts.append(F.random_keep(clips, size, mask_ratio, generator=generator) + start)
        start += size
    ids = torch.cat(parts, 1)
    cls = GROUPS[config.attention] if config.class_token else None
    tokens = Tokens([views] * clips, [ids.shape[1]] * clips, ids.reshape(-1), ids.device, cls=cls)
    groups = [tokens.grouping(GROUPS[config.attention])]
    if config.attention == "factorised":
        groups.append(tokens.by_place)
    if config.cross_view:
        groups.append(tokens.by_clip)
    return {(group.sequences, group.max_seqlen): _squares(group) for group in groups}


def _squares(group: Grouping) -> int:
    return int(group.cu_seqlens.long().diff().square().sum())


def attention_flops(config: ViViTConfig, lengths: dict[tuple[int, int], int]) -> dict[object, Callable]:
    """Formulas that know the lengths: the op's own sees shapes, and takes sequences for equally long.

    Which those of attention pooling are; nothing is known of them.
    """

    def forward(q, k, v, cu_seqlens_q, cu_seqlens_k, longest, *_rest, **_more) -> int:
        sequences = cu_seqlens_q[0] - 1
        scores = lengths.get((sequences, longest), q[0] * k[0] // sequences)
        return 4 * config.width * scores

    def backward(grad_out, grad_lse, q, k, v, out, lse, *settings, **_more) -> int:
        return 5 * forward(q, k, v, *settings) // 2

    return {torch.ops.fastvivit.varlen_attention: forward, torch.ops.fastvivit.varlen_attention_backward: backward}
