"""VideoMAE of transformers: tubelets, a fixed table of positions, no CLS token, masks as booleans."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from fastvivit.hf.attention import attend, must_be_original
from fastvivit.hf.call import Link, Masking, choose, current
from fastvivit.hf.embed import Norm, clip_grid, kernel_of, normalised, patches_forward, positions
from fastvivit.hf.layers import patch_layers
from fastvivit.hf.patches import replace
from fastvivit.ops.linear import linear
from fastvivit.ops.tubelet_embed.geometry import Size3, grid_of


def patch(model: nn.Module, link: Link, norm: Norm) -> None:
    """Replace the forwards within a ``VideoMAEModel``."""
    own = (model.config.num_frames, *model.embeddings.patch_embeddings.image_size)
    replace(model.embeddings, embeddings_forward, link, norm, own)
    replace(model.embeddings.patch_embeddings, patches_forward, norm)
    _patch_attention(model, link)


def patch_outer(model: nn.Module, link: Link, norm: Norm) -> None:
    """Replace what a model around a ``VideoMAEModel`` does with pixels and masks of its own."""
    if any(cls.__name__ == "VideoMAEForPreTraining" for cls in type(model).__mro__):
        replace(model, pretraining_forward, link, norm)
        _patch_attention(model.decoder, link)
        patch_layers(model.decoder)


def _patch_attention(model: nn.Module, link: Link) -> None:
    for module in model.modules():
        if type(module).__name__ == "VideoMAESelfAttention":
            replace(module, attention_forward, link)


def embeddings_forward(
    module: nn.Module,
    original: Callable,
    link: Link,
    norm: Norm,
    own: Size3,
    /,
    pixel_values: Tensor,
    bool_masked_pos: Tensor | None = None,
) -> Tensor:
    """Kept tubelets with their positions, (B, K, D); see ``VideoMAEEmbeddings.forward``."""
    projection = module.patch_embeddings.projection
    kernel = kernel_of(projection)
    grid = clip_grid(pixel_values, kernel, own, projection.weight.shape[1], norm)
    # transformers keeps the table on the CPU, in float32.
    table = module.position_embeddings[0].detach().to(projection.weight)
    pos = positions(table, grid_of(own, kernel, kernel, (0, 0, 0)), grid)
    keep = choose(link, pixel_values.shape[0], grid, pixel_values.device)
    if bool_masked_pos is not None:
        if keep is not None:
            raise ValueError("bool_masked_pos: wanted None beside keep or mask_ratio, got a mask")
        keep = visible(bool_masked_pos, pixel_values.shape[0], prod(grid)).to(pixel_values.device)
    return module.patch_embeddings(pixel_values, pos=pos, keep=keep)


def visible(bool_masked_pos: Tensor, batch: int, tokens: int) -> Tensor:
    """The ids that a mask leaves, (B, K) int64, ascending.

    Args:
        bool_masked_pos: (B, N) bool, True = dropped.
        batch: B.
        tokens: N.

    Raises:
        ValueError: another shape or dtype, or clips that keep different numbers of tokens: transformers would hand one
            clip's tokens to the next.
    """
    if bool_masked_pos.dtype != torch.bool or tuple(bool_masked_pos.shape) != (batch, tokens):
        got = f"{bool_masked_pos.dtype} {tuple(bool_masked_pos.shape)}"
        raise ValueError(f"bool_masked_pos: wanted bool ({batch}, {tokens}), got {got}")
    counts = (~bool_masked_pos).sum(1).tolist()
    if len(set(counts)) > 1:
        raise ValueError(f"bool_masked_pos: wanted equally many visible tokens in each clip, got {counts}")
    return bool_masked_pos.to(torch.uint8).argsort(dim=1, stable=True)[:, : counts[0]]


def masked(keep: Tensor, tokens: int) -> Tensor:
    """The mask that leaves ``keep``, (B, N) bool, True = dropped; the opposite of ``visible``.

    Raises ``ValueError`` for ids out of range or repeated, on every device: the loss waits for the mask anyway.
    """
    if keep.numel() and (int(keep.min()) < 0 or int(keep.max()) >= tokens):
        raise ValueError(f"keep: wanted ids in 0..{tokens - 1}, got {int(keep.min())}..{int(keep.max())}")
    mask = torch.ones(keep.shape[0], tokens, dtype=torch.bool, device=keep.device).scatter(1, keep, False)
    if (mask.sum(1) != tokens - keep.shape[1]).any():
        raise ValueError("keep: wanted distinct ids, got one twice in a clip")
    return mask


def attention_forward(
    module: nn.Module, original: Callable, link: Link, /, hidden_states: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Attention without its output projection. Keys never have a bias.

    transformers 4 keeps the biases of queries and values beside their layers (``q_bias``), 5 in them.
    """
    if must_be_original(module, link, module.dropout_prob, args, **kwargs):
        return original(hidden_states, *args, **kwargs)
    if hasattr(module, "q_bias"):
        q = linear(hidden_states, module.query.weight, module.q_bias)
        k = linear(hidden_states, module.key.weight)
        v = linear(hidden_states, module.value.weight, module.v_bias)
    else:
        q, k, v = (project(hidden_states) for project in (module.query, module.key, module.value))
    return attend(q, k, v, module.num_attention_heads, module.scaling), None


def pretraining_forward(
    module: nn.Module,
    original: Callable,
    link: Link,
    norm: Norm,
    /,
    pixel_values: Tensor,
    bool_masked_pos: Tensor | None = None,
    **kwargs: Any,
) -> Any:
    """``VideoMAEForPreTraining.forward``, whose decoder and loss need the mask and floating pixels.

    ``keep`` and ``mask_ratio`` become the mask, so tokens are in ascending order whatever that of ``keep``. The
    decoder has positions for the model's own size only.
    """
    embeddings = module.videomae.embeddings
    projection = embeddings.patch_embeddings.projection
    kernel = kernel_of(projection)
    own = (module.config.num_frames, *embeddings.patch_embeddings.image_size)
    grid = clip_grid(pixel_values, kernel, own, projection.weight.shape[1], norm)
    if grid != grid_of(own, kernel, kernel, (0, 0, 0)):
        size = (pixel_values.shape[1], *pixel_values.shape[3:])
        raise ValueError(f"pixel_values: wanted (T, H, W) = {own}, the decoder's size, got {size}")
    keep = choose(link, pixel_values.shape[0], grid, pixel_values.device)
    if keep is not None:
        if bool_masked_pos is not None:
            raise ValueError("bool_masked_pos: wanted None beside keep or mask_ratio, got a mask")
        bool_masked_pos = masked(keep, prod(grid))
        # The models within get the mask, and nothing more to drop.
        current(link).masking = Masking()
    if pixel_values.dtype == torch.uint8:
        pixel_values = normalised(pixel_values, norm, projection.weight.dtype)
    return original(pixel_values, bool_masked_pos, **kwargs)
