"""ViViT of transformers: tubelets, learned positions, a CLS token, joint attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastvivit.hf.attention import attend, must_be_original
from fastvivit.hf.call import Link, choose
from fastvivit.hf.embed import Norm, clip_grid, kernel_of, patches_forward, positions
from fastvivit.hf.patches import replace
from fastvivit.ops.tubelet_embed.geometry import Size3, grid_of


def patch(model: nn.Module, link: Link, norm: Norm) -> None:
    """Replace the forwards within a ``VivitModel``."""
    size = model.config.image_size
    own = (model.config.num_frames, *((size, size) if isinstance(size, int) else size))
    replace(model.embeddings, embeddings_forward, link, norm, own)
    replace(model.embeddings.patch_embeddings, patches_forward, norm)
    for module in model.modules():
        if type(module).__name__ in ("VivitAttention", "VivitSelfAttention"):
            if hasattr(module, "q_proj"):
                replace(module, attention_forward, link)
            elif hasattr(module, "query"):
                replace(module, inner_attention_forward, link)


def embeddings_forward(
    module: nn.Module,
    original: Callable,
    link: Link,
    norm: Norm,
    own: Size3,
    /,
    pixel_values: Tensor,
    interpolate_pos_encoding: bool = False,
) -> Tensor:
    """CLS and kept tubelets with their positions, (B, 1 + K, D); see ``VivitEmbeddings.forward``."""
    projection = module.patch_embeddings.projection
    kernel = kernel_of(projection)
    grid = clip_grid(pixel_values, kernel, own, projection.weight.shape[1], norm)
    table = module.position_embeddings[0]
    pos = positions(table[1:], grid_of(own, kernel, kernel, (0, 0, 0)), grid, interpolate_pos_encoding)
    keep = choose(link, pixel_values.shape[0], grid, pixel_values.device)
    tokens = module.patch_embeddings(pixel_values, pos=pos, keep=keep)
    head = (module.cls_token + table[:1]).expand(tokens.shape[0], -1, -1)
    return module.dropout(torch.cat((head, tokens), dim=1))


def attention_forward(
    module: nn.Module, original: Callable, link: Link, /, hidden_states: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Attention of transformers 5: projections, attention and output in one module."""
    if must_be_original(module, link, module.attention_dropout, args, **kwargs):
        return original(hidden_states, *args, **kwargs)
    q, k, v = (project(hidden_states) for project in (module.q_proj, module.k_proj, module.v_proj))
    return module.o_proj(attend(q, k, v, module.num_attention_heads, module.scaling)), None


def inner_attention_forward(
    module: nn.Module, original: Callable, link: Link, /, hidden_states: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Attention of transformers 4: the output projection is another module."""
    if must_be_original(module, link, module.dropout_prob, args, **kwargs):
        return original(hidden_states, *args, **kwargs)
    q, k, v = (project(hidden_states) for project in (module.query, module.key, module.value))
    return attend(q, k, v, module.num_attention_heads, module.scaling), None
