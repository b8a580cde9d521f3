"""TimeSformer of transformers: frames in patches, a CLS token, attention over time and space by turns, or over all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.timesformer.modeling_timesformer import TimesformerLayer, TimesformerSelfAttention

import fastvivit.functional as F
from fastvivit.hf.attention import must_be_original
from fastvivit.hf.call import Call, Link, choose, current
from fastvivit.hf.divided import (
    Division,
    Sequences,
    all_by_place,
    by_place,
    divide,
    space_positions,
    time_positions,
)
from fastvivit.hf.embed import Norm, clip_grid, embed, kernel_of
from fastvivit.hf.patches import replace
from fastvivit.ops.tubelet_embed.geometry import Size3, grid_of


def patch(model: nn.Module, link: Link, norm: Norm) -> None:
    """Replace the forwards within a ``TimesformerModel``."""
    kind = model.config.attention_type
    own = (model.config.num_frames, *model.embeddings.patch_embeddings.image_size)
    replace(model.embeddings, embeddings_forward, link, norm, own, model.encoder)
    replace(model.embeddings.patch_embeddings, patches_forward, norm)
    divided = kind == "divided_space_time"
    if divided:
        replace(model.encoder, encoder_forward, link)
    for module in model.encoder.modules():
        if isinstance(module, TimesformerSelfAttention):
            replace(module, attention_forward, link)
        elif isinstance(module, TimesformerLayer) and divided:
            replace(module, layer_forward)


def embeddings_forward(
    module: nn.Module,
    original: Callable,
    link: Link,
    norm: Norm,
    own: Size3,
    encoder: nn.Module,
    /,
    pixel_values: Tensor,
) -> Tensor:
    """CLS and kept patches with their positions; see ``TimesformerEmbeddings.forward``.

    Returns:
        (B, 1 + K, D): the patches in the order of ``keep``, but by place, then by time for divided attention,
        and without ``keep``, as in the original. (B·T, 1 + k, D), frame by frame, with "space_only", where
        each frame keeps k patches.

    Raises:
        ValueError: besides those of sizes and ids, kept tokens where attention would need dropout or
            probabilities that only the original has; frames that keep different numbers with "space_only".
    """
    projection = module.patch_embeddings.projection
    kernel = kernel_of(projection)
    grid = slots, height, width = clip_grid(pixel_values, kernel, own, projection.weight.shape[1], norm)
    call = current(link)
    kind = module.attention_type
    if kind == "divided_space_time" and call is not None and call.masking.asked:
        _refuse_original(encoder, call)
    table = module.position_embeddings[0]
    pos = space_positions(table[1:], grid_of(own, kernel, kernel, (0, 0, 0))[1:], (height, width))
    if kind == "space_only":
        ids = _frame_ids(link, call, pixel_values, grid)
        tokens = module.patch_embeddings(pixel_values.flatten(0, 1).unsqueeze(1), pos=pos, keep=ids)[0]
        head = (module.cls_token + table[:1]).expand(tokens.shape[0], -1, -1)
        return module.pos_drop(torch.cat((head, tokens), dim=1))
    keep = choose(link, pixel_values.shape[0], grid, pixel_values.device)
    if keep is None:
        ids = all_by_place(pixel_values.shape[0], grid, pixel_values.device)
    else:
        ids = by_place(keep, grid)[0] if kind == "divided_space_time" else keep
    times = time_positions(module.time_embeddings[0], slots)
    # Dropout comes between the two kinds of positions, so they are one table only without it.
    at_once = not (module.training and (module.pos_drop.p or module.time_drop.p))
    pos = pos.repeat(slots, 1)
    if at_once:
        pos = pos + times.repeat_interleave(height * width, 0)
    tokens = module.patch_embeddings(pixel_values, pos=pos, keep=ids)[0]
    head = (module.cls_token + table[:1]).expand(tokens.shape[0], -1, -1)
    if not at_once:
        head, tokens = module.pos_drop(head), module.pos_drop(tokens)
        # Not by index: a bad id is a row of NaN on a GPU, as everywhere, and no failed assertion that ends the process.
        times = F.gather_tokens(times.expand(ids.shape[0], -1, -1), ids // (height * width))
        tokens = module.time_drop(tokens + times)
    return torch.cat((head, tokens), dim=1)


def patches_forward(
    module: nn.Module,
    original: Callable,
    norm: Norm,
    /,
    pixel_values: Tensor,
    *,
    pos: Tensor | None = None,
    keep: Tensor | None = None,
) -> tuple[Tensor, int, int]:
    """Tokens (B, K, D) of patches, frames and patches in a row of the picture, like the original."""
    width = pixel_values.shape[-1] // module.patch_size[1]
    return embed(module.projection, pixel_values, pos, keep, norm), pixel_values.shape[1], width


def encoder_forward(
    module: nn.Module,
    original: Callable,
    link: Link,
    /,
    hidden_states: Tensor,
    output_attentions: bool = False,
    output_hidden_states: bool = False,
    return_dict: bool = True,
) -> BaseModelOutput | tuple:
    """Layers with divided attention over (B, 1 + K, D); its rows come out in the order of ``keep``."""
    call = current(link)
    if call is None or call.grid is None:
        return original(hidden_states, output_attentions, output_hidden_states, return_dict)
    clips, restore = hidden_states.shape[0], None
    if call.keep is None:
        ids = all_by_place(clips, call.grid, hidden_states.device)
    else:
        ids, order = by_place(call.keep, call.grid)
        restore = torch.cat((order.new_zeros(clips, 1), order + 1), 1)
    division = divide(ids, call.grid, full=restore is None)
    states, probabilities = [hidden_states], []
    for layer in module.layer:
        hidden_states, *found = layer(hidden_states, output_attentions, division)
        states.append(hidden_states)
        probabilities += found
    states = states if output_hidden_states else states[-1:]
    if restore is not None:
        states = [F.gather_tokens(x, restore, distinct=True) for x in states]
    out = BaseModelOutput(
        last_hidden_state=states[-1],
        hidden_states=tuple(states) if output_hidden_states else None,
        attentions=tuple(probabilities) if output_attentions else None,
    )
    return out if return_dict else out.to_tuple()


def layer_forward(
    module: nn.Module,
    original: Callable,
    /,
    hidden_states: Tensor,
    output_attentions: bool = False,
    division: Division | None = None,
) -> tuple[Tensor, ...]:
    """A layer with divided attention, checkpointed where the layer's class would; the original without a division.

    The division is an argument, so that any kind of checkpointing computes the layer again with that of its own call.
    """
    if division is None:
        return original(hidden_states, output_attentions)
    # transformers 5 checkpoints the class's forward, which this one stands for; 4 does it around the call.
    around = any("__call__" in vars(cls) for cls in type(module).__mro__ if cls is not nn.Module)
    if module.gradient_checkpointing and module.training and not around:
        return module._gradient_checkpointing_func(
            partial(_divided, module), hidden_states, output_attentions, division
        )
    return _divided(module, hidden_states, output_attentions, division)


def attention_forward(
    module: nn.Module, original: Callable, link: Link, /, hidden_states: Tensor, output_attentions: bool = False
) -> tuple[Tensor, ...]:
    """Attention over (S, L, D), all of one length."""
    if must_be_original(module, link, module.attn_drop.p, output_attentions=output_attentions):
        return original(hidden_states, output_attentions)
    q, k, v = module.qkv(hidden_states).unflatten(-1, (3, module.num_heads, -1)).unbind(2)
    return (F.attention(q, k, v, softmax_scale=module.scale).flatten(2),)


def _divided(layer: nn.Module, hidden: Tensor, output_attentions: bool, division: Division) -> tuple[Tensor, ...]:
    """``TimesformerLayer.forward`` with divided attention, on rows by place, then by time: (B, 1 + K, D)."""
    head, tokens = hidden[:, :1], hidden[:, 1:]
    rows = layer.temporal_layernorm(tokens).flatten(0, 1)
    rows, *_ = _attend(layer.temporal_attention, rows, division.in_time, output_attentions)
    rows = layer.temporal_dense(_drop_path(layer.drop_path, rows, division.in_time))
    hidden = torch.cat((head, tokens + rows.view_as(tokens)), 1)

    rows = F.gather_tokens(layer.layernorm_before(hidden).flatten(0, 1), division.spread)
    rows, *found = _attend(layer.attention, rows, division.in_space, output_attentions)
    rows = F.gather_tokens(_drop_path(layer.drop_path, rows, division.in_space), division.back, distinct=True)
    copies, rows = rows.tensor_split((division.clips * division.slots,))
    copies = copies.unflatten(0, (division.clips, division.slots)).mean(1, keepdim=True)
    hidden = hidden + torch.cat((copies, rows.view_as(tokens)), 1)

    out = layer.output(layer.intermediate(layer.layernorm_after(hidden)))
    return (hidden + layer.drop_path(out), *found)


def _attend(attention: nn.Module, rows: Tensor, sequences: Sequences, output_attentions: bool) -> tuple[Tensor, ...]:
    """Self-attention of rows (R, D) within their sequences, with its output projection; probabilities where asked."""
    if sequences.length is not None:
        out, *found = attention(rows.view(-1, sequences.length, rows.shape[-1]), output_attentions)
        return (out.flatten(0, 1), *found)
    inner, longest = attention.attention, sequences.longest
    q, k, v = inner.qkv(rows).unflatten(-1, (3, inner.num_heads, -1)).unbind(1)
    out = F.varlen_attention(
        q, k, v, sequences.cu_seqlens, None, longest, longest, softmax_scale=inner.scale, schedule=sequences.schedule
    )
    return (attention.output(out.flatten(1)),)


def _drop_path(drop_path: nn.Module, rows: Tensor, sequences: Sequences) -> Tensor:
    """Stochastic depth by sequence, as the original has it: its module, given a one for each sequence."""
    if isinstance(drop_path, nn.Identity) or not drop_path.training:
        return rows
    alive = drop_path(rows.new_ones(sequences.cu_seqlens.shape[0] - 1, 1))
    return rows * F.gather_tokens(alive, sequences.segment)


def _refuse_original(encoder: nn.Module, call: Call) -> None:
    """Divided attention over dropped tokens has sequences of many lengths, which the original can't compute."""
    if call.attentions:
        raise ValueError("output_attentions: wanted False beside keep or mask_ratio with divided attention, got True")
    attentions = (module for module in encoder.modules() if isinstance(module, TimesformerSelfAttention))
    rates = [attention.attn_drop.p for attention in attentions if attention.training]
    if any(rates):
        raise ValueError(
            "attention_probs_dropout_prob: wanted 0 in training beside keep or mask_ratio with divided attention, "
            f"got {max(rates)}"
        )


def _frame_ids(link: Link, call: Call | None, pixel_values: Tensor, grid: Size3) -> Tensor | None:
    """(B·T, k) ids of each frame's kept patches, or None for all."""
    clips, (slots, height, width), device = pixel_values.shape[0], grid, pixel_values.device
    if call is None or call.masking.keep is None:
        # The model is one of pictures: each keeps as many.
        return choose(link, clips * slots, (1, height, width), device)
    keep = choose(link, clips, grid, device)
    frame = keep // (height * width)
    order = frame.argsort(dim=1, stable=True)
    each = keep.shape[1] // slots
    wanted = torch.arange(slots, device=device).repeat_interleave(each)
    # Compiled, and on a GPU, the embedding finds ids of another frame: they lie outside this one.
    look = keep.device.type == "cpu" and not torch.compiler.is_compiling()
    if keep.shape[1] % slots or (look and not frame.gather(1, order).eq(wanted).all()):
        raise ValueError("keep: wanted equally many ids in each frame with attention_type='space_only', got others")
    return (keep.gather(1, order) - wanted * height * width).view(clips * slots, each)
