"""V-JEPA 2 of transformers: tubelets without a position table, rotary attention, a predictor, an attentive pooler."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from inspect import signature
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.vjepa2.modeling_vjepa2 import (
    VJEPA2AttentivePooler,
    VJEPA2PoolerCrossAttention,
    VJEPA2PoolerSelfAttention,
    VJEPA2RopeAttention,
    VJEPA2WithMaskedInputPredictorOutput,
    apply_masks,
)

from fastvivit.hf.attention import attend, must_be_original
from fastvivit.hf.call import Link, choose, current
from fastvivit.hf.embed import Norm, clip_grid, embed, kernel_of
from fastvivit.hf.layers import patch_layers
from fastvivit.hf.patches import replace
from fastvivit.hf.rotary import Places, rotate
from fastvivit.ops.tubelet_embed.geometry import Size3


def patch(model: nn.Module, link: Link, norm: Norm) -> None:
    """Replace the forwards within a ``VJEPA2Model``, and its own, which has masks of its own."""
    own = (model.config.frames_per_clip, model.config.crop_size, model.config.crop_size)
    embeddings = model.encoder.embeddings
    collects = "output_hidden_states" in signature(type(model.encoder).forward).parameters
    replace(model, model_forward, link)
    replace(model.encoder, encoder_forward, link, collects)
    replace(embeddings, embeddings_forward, link, norm, own)
    replace(embeddings.patch_embeddings, patches_forward, norm)
    replace(model.predictor, predictor_forward, link, collects)
    for module in model.modules():
        if isinstance(module, VJEPA2RopeAttention):
            replace(module, attention_forward, link)


def patch_outer(outer: nn.Module, link: Link, norm: Norm) -> None:
    """Replace forwards within the pooler of a ``VJEPA2ForVideoClassification``."""
    pooler = outer._modules.get("pooler")
    if not isinstance(pooler, VJEPA2AttentivePooler):
        return
    patch_layers(pooler)
    for module in pooler.modules():
        if isinstance(module, VJEPA2PoolerSelfAttention):
            replace(module, self_attention_forward, link)
        elif isinstance(module, VJEPA2PoolerCrossAttention):
            replace(module, cross_attention_forward, link)


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
    if kwargs.get("context_mask") is not None:
        raise ValueError("context_mask: wanted None beside keep or mask_ratio: the kept tokens are it, got ids")
    target, skip = kwargs.pop("target_mask", None), kwargs.pop("skip_predictor", False)
    if target is not None and (not isinstance(target, list | tuple) or len(target) != 1):
        got = f"{len(target)}" if isinstance(target, list | tuple) else type(target).__name__
        raise ValueError(f"target_mask: wanted a list of one (B, n) tensor of ids beside keep or mask_ratio, got {got}")
    return_dict = kwargs.pop("return_dict", None)
    out = original(*args, **kwargs, skip_predictor=True, return_dict=True)
    if not skip:
        states, tokens = out.last_hidden_state, prod(call.grid)
        target = target or [torch.arange(tokens, device=states.device).repeat(states.shape[0], 1)]
        hidden_states = kwargs.get("output_hidden_states")
        if hidden_states is None:
            hidden_states = module.config.output_hidden_states
        wanted = {"output_attentions": call.attentions, "output_hidden_states": hidden_states}
        found = module.predictor(states, [call.keep], target, **wanted)
        out.predictor_output = VJEPA2WithMaskedInputPredictorOutput(**found)
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
    grid = clip_grid(pixel_values_videos, kernel, own, projection.weight.shape[1], norm, "pixel_values_videos")
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
    position_mask: Tensor | Places | None = None,
    *args: Any,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Rotary attention over (B, K, D), on the grid of the clip: the original reads places off the configuration.

    ``position_mask`` are the ``Places`` of ``encoder_forward`` and ``predictor_forward``; anything else goes to
    the original.
    """
    places = position_mask
    if not isinstance(places, Places):
        return original(hidden_states, position_mask, *args, **kwargs)
    if places.attentions or must_be_original(module, link, module.dropout_prob, args, **kwargs):
        return _original_at(module, original, places, hidden_states, *args, **kwargs)
    heads, scale = module.num_attention_heads, module.scaling
    q, k = (project(hidden_states).unflatten(-1, (heads, -1)) for project in (module.query, module.key))
    table = places.table((module.d_dim, module.h_dim, module.w_dim), q.shape[-1], q.dtype)
    q, k = rotate(q, *table).flatten(2), rotate(k, *table).flatten(2)
    return module.proj(attend(q, k, module.value(hidden_states), heads, scale)), None


def encoder_forward(
    module: nn.Module, original: Callable, link: Link, collects: bool, /, pixel_values_videos: Tensor, **kwargs: Any
) -> BaseModelOutput:
    """Embeddings and layers, which get the places of the tokens; see ``VJEPA2Encoder.forward``."""
    call = current(link)
    if call is None:
        return original(pixel_values_videos, **kwargs)
    states = module.embeddings(pixel_values_videos)
    places = Places(call.grid, call.keep, states.device, call.attentions)
    out = _layers(module.layer, states, places, collects, **kwargs)
    out.last_hidden_state = module.layernorm(out.last_hidden_state)
    if out.hidden_states is not None:
        out.hidden_states = (*out.hidden_states[:-1], out.last_hidden_state)
    return out


def predictor_forward(
    module: nn.Module,
    original: Callable,
    link: Link,
    collects: bool,
    /,
    encoder_hidden_states: Tensor,
    context_mask: list[Tensor],
    target_mask: list[Tensor],
    head_mask: Any = None,
    **kwargs: Any,
) -> BaseModelOutput:
    """Context and mask tokens on the grid of the clip; see ``VJEPA2Predictor.forward``.

    With ``keep`` the encoder's rows are the context as they come.
    """
    head_masks = () if head_mask is None else (head_mask,)  # an argument of transformers 4
    call = current(link)
    if call is None:
        return original(encoder_hidden_states, context_mask, target_mask, *head_masks, **kwargs)
    context = encoder_hidden_states if call.keep is not None else apply_masks(encoder_hidden_states, context_mask)
    states, ids = module.embeddings(context, context_mask, target_mask)
    order = ids.argsort(1)
    states, ids, *head_masks = module.sort_tokens(states, ids, order, *head_masks)
    places = Places(call.grid, ids, states.device, call.attentions)
    out = _layers(module.layer, states, places, collects, *head_masks, **kwargs)
    states = module.unsort_tokens(module.layernorm(out.last_hidden_state), order)
    out.last_hidden_state = module.proj(states[:, context.shape[1] :])
    return out


def _layers(
    layers: nn.ModuleList, states: Tensor, places: Places, collects: bool, head_mask: Any = None, **kwargs: Any
) -> BaseModelOutput:
    """Layers over (B, K, D), given the places where the original gives ids or None.

    transformers 4 collects hidden states and probabilities in the loop (``collects``), 5 in hooks on the layers.
    """
    hidden_states = kwargs.pop("output_hidden_states", False) and collects
    attentions = kwargs.get("output_attentions", False) and collects
    every, probabilities = [states], []
    for index, layer in enumerate(layers):
        mask = {} if head_mask is None or head_mask[index] is None else {"head_mask": head_mask[index]}
        states, *found = layer(states, places, **mask, **kwargs)
        every.append(states)
        probabilities += found
    return BaseModelOutput(
        last_hidden_state=states,
        hidden_states=tuple(every) if hidden_states else None,
        attentions=tuple(probabilities) if attentions else None,
    )


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
