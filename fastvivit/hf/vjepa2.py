"""V-JEPA 2 of transformers: tubelets without a position table, rotary attention, a predictor, an attentive pooler."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

import fastvivit.functional as F
from fastvivit.hf.attention import attend, must_be_original
from fastvivit.hf.call import Link, choose, current
from fastvivit.hf.embed import Norm, clip_grid, embed, kernel_of
from fastvivit.hf.patches import replace
from fastvivit.hf.rotary import Places, rotate
from fastvivit.ops.tubelet_embed.geometry import Size3


def patch(model: nn.Module, link: Link, norm: Norm) -> None:
    """Replace the forwards within a ``VJEPA2Model``, and its own, which has masks of its own."""
    own = (model.config.frames_per_clip, model.config.crop_size, model.config.crop_size)
    embeddings = model.encoder.embeddings
    replace(model, model_forward, link)
    replace(embeddings, embeddings_forward, link, norm, own)
    replace(embeddings.patch_embeddings, patches_forward, norm)
    replace(model.predictor, predictor_forward, link)
    for layer in (*model.encoder.layer, *model.predictor.layer):
        replace(layer.attention, attention_forward, link)


def patch_outer(outer: nn.Module, link: Link, norm: Norm) -> None:
    """Replace the attention of the pooler of a ``VJEPA2ForVideoClassification``."""
    pooler = outer._modules.get("pooler")
    if type(pooler).__name__ == "VJEPA2AttentivePooler":
        replace(pooler.cross_attention_layer.cross_attn, cross_attention_forward, link)
        for layer in pooler.self_attention_layers:
            replace(layer.self_attn, self_attention_forward, link)


def model_forward(module: nn.Module, original: Callable, link: Link, /, *args: Any, **kwargs: Any) -> Any:
    """``VJEPA2Model.forward``; with ``keep`` or ``mask_ratio`` the kept tokens are the predictor's context.

    The encoder then has nothing to say about other tokens, so ``context_mask`` must be None, and the
    predictor's output has no ``target_hidden_state``: targets come from another encoder's forward, as in
    training. ``target_mask`` is a list of one (B, n) tensor of grid ids; None is every token of the grid, in
    order, as in the original. ``last_hidden_state`` and ``masked_hidden_state`` are the kept tokens (B, K, D)
    in the order of ``keep``.

    Raises:
        ValueError: beside ``keep`` or ``mask_ratio``: a ``context_mask``, masks given by position, more than
            one target.
    """
    call = current(link)
    if not call.masking.asked:
        return original(*args, **kwargs)
    if len(args) > 1:
        raise ValueError(
            "context_mask, target_mask, skip_predictor: wanted by name beside keep or mask_ratio, got by position"
        )
    target = kwargs.pop("target_mask", None)
    if kwargs.get("context_mask") is not None:
        raise ValueError("context_mask: wanted None beside keep or mask_ratio: the kept tokens are it, got ids")
    if target is not None and (not isinstance(target, list | tuple) or len(target) != 1):
        got = f"{len(target)}" if isinstance(target, list | tuple) else type(target).__name__
        raise ValueError(f"target_mask: wanted a list of one (B, n) tensor of ids beside keep or mask_ratio, got {got}")
    call.shared["target"] = target
    return_dict = kwargs.pop("return_dict", None)
    out = original(*args, **kwargs, return_dict=True)
    found = out.predictor_output
    if found is not None:
        found = {name: value for name, value in found.items() if name != "target_hidden_state"}
        out.predictor_output = type(out.predictor_output)(**found)
    plain = return_dict is False or (return_dict is None and not getattr(module.config, "return_dict", True))
    return out.to_tuple() if plain else out


def embeddings_forward(
    module: nn.Module, original: Callable, link: Link, norm: Norm, own: Size3, /, pixel_values_videos: Tensor
) -> Tensor:
    """Kept tubelets (B, K, D); see ``VJEPA2Embeddings.forward``."""
    projection = module.patch_embeddings.proj
    kernel = kernel_of(projection)
    # As in the original, a picture becomes a clip.
    shape = getattr(pixel_values_videos, "shape", ())
    if len(shape) == 5 and 0 < shape[1] < kernel[0]:
        pixel_values_videos = pixel_values_videos.repeat(1, kernel[0], 1, 1, 1)
    grid = clip_grid(pixel_values_videos, kernel, own, projection.weight.shape[1], norm)
    keep = choose(link, pixel_values_videos.shape[0], grid, pixel_values_videos.device)
    return module.patch_embeddings(pixel_values_videos.transpose(1, 2), keep=keep)


def patches_forward(
    module: nn.Module, original: Callable, norm: Norm, /, pixel_values_videos: Tensor, *, keep: Tensor | None = None
) -> Tensor:
    """Tokens (B, K, D) of clips (B, C, T, H, W)."""
    return embed(module.proj, pixel_values_videos.transpose(1, 2), None, keep, norm)


def attention_forward(
    module: nn.Module,
    original: Callable,
    link: Link,
    /,
    hidden_states: Tensor,
    position_mask: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Rotary attention over (B, K, D), on the grid of the clip: the original reads places off the configuration.

    ``position_mask`` (B, K) are grid ids, which the predictor gives; None: those of the call's tokens.
    """
    call = current(link)
    if call is None or call.grid is None:
        return original(hidden_states, position_mask, *args, **kwargs)
    of = "encoder" if position_mask is None else "predictor"
    places = call.shared.get(of)
    if places is None or (position_mask is not None and places.ids is not position_mask):
        ids = call.keep if position_mask is None else position_mask
        places = call.shared[of] = Places(call.grid, ids, hidden_states.device)
    if must_be_original(module, link, module.dropout_prob, args, **kwargs):
        return _original_at(module, original, places, hidden_states, *args, **kwargs)
    heads, scale = module.num_attention_heads, module.scaling
    q, k = (project(hidden_states).unflatten(-1, (heads, -1)) for project in (module.query, module.key))
    table = places.table((module.d_dim, module.h_dim, module.w_dim), q.shape[-1], q.dtype)
    q, k = rotate(q, *table).flatten(2), rotate(k, *table).flatten(2)
    return module.proj(attend(q, k, module.value(hidden_states), heads, scale)), None


def predictor_forward(
    module: nn.Module,
    original: Callable,
    link: Link,
    /,
    encoder_hidden_states: Tensor,
    context_mask: list[Tensor],
    target_mask: list[Tensor],
    **kwargs: Any,
) -> Any:
    """The predictor, its context the kept tokens at their places on the grid."""
    call = current(link)
    if call is None or call.keep is None:
        return original(encoder_hidden_states, context_mask, target_mask, **kwargs)
    clips, tokens = encoder_hidden_states.shape[0], prod(call.grid)
    device = encoder_hidden_states.device
    rows = (call.keep + torch.arange(clips, device=device).unsqueeze(1) * tokens).flatten()
    states = F.scatter_tokens(encoder_hidden_states.flatten(0, 1), rows, clips * tokens)
    target = call.shared.get("target") or [torch.arange(tokens, device=device).repeat(clips, 1)]
    return original(states.unflatten(0, (clips, tokens)), [call.keep], target, **kwargs)


def self_attention_forward(
    module: nn.Module, original: Callable, link: Link, /, hidden_states: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Self-attention of the pooler."""
    if must_be_original(module, link, module.dropout, args, **kwargs):
        return original(hidden_states, *args, **kwargs)
    q, k, v = (project(hidden_states) for project in (module.q_proj, module.k_proj, module.v_proj))
    return module.out_proj(attend(q, k, v, module.num_heads, module.scale)), None


def cross_attention_forward(
    module: nn.Module,
    original: Callable,
    link: Link,
    /,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *args: Any,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Cross-attention of the pooler's query, which has no output projection."""
    if must_be_original(module, link, module.dropout, args, **kwargs):
        return original(queries, keys, values, *args, **kwargs)
    q, k, v = module.q_proj(queries), module.k_proj(keys), module.v_proj(values)
    return attend(q, k, v, module.num_heads, module.scale), None


def _original_at(
    module: nn.Module, original: Callable, places: Places, hidden_states: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """The original attention at places that its own arithmetic of ids may not know."""
    if places.grid[1:] == (module.grid_size, module.grid_size):
        return original(hidden_states, places.ids, *args, **kwargs)
    stand_in = copy(module)
    stand_in.get_position_ids = places.for_heads
    return type(module).forward(stand_in, hidden_states, None, *args, **kwargs)
