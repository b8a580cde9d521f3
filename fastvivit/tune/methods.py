"""Ways to tune an encoder: each freezes it but for a part."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from fastvivit.modules.adapters import Adapter, LoRALinear
from fastvivit.modules.block import Block
from fastvivit.modules.cross import require_counts
from fastvivit.modules.vivit import ViViT
from fastvivit.tune.freeze import added, require_flag, require_plain, require_vivit, settle


def last_layers(enc: ViViT, k: int, *, images: bool = False) -> list[nn.Parameter]:
    """Train the last ``k`` blocks (paper, section 6.1: 4, for long clips). Those before them keep no graph.

    Args:
        enc: the encoder, changed in place.
        k: blocks, 1 to the depth.
        images: train the 2-D image embedding as well; images then keep a graph through all blocks.

    Returns:
        The trainable parameters.

    Raises:
        ValueError: not a ViViT, one with adapters or LoRA, ``k`` out of range, ``images`` without a path for them.
    """
    require_plain(enc, images)
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= len(enc.blocks):
        raise ValueError(f"k: wanted a whole number in 1..{len(enc.blocks)} (the blocks), got {k!r}")
    return settle(enc, {"method": "last_layers", "k": k, "images": images})


def add_adapters(
    enc: ViViT, width: int | None = None, *, init: str = "houlsby", position: str = "ffn", images: bool = False
) -> list[nn.Parameter]:
    """Train a bottleneck adapter after the feed-forward layer of every block (paper, appendix A).

    At first they change nothing. See ``fastvivit.modules.adapters.Adapter`` for their equation.

    Args:
        enc: the encoder, changed in place.
        width: inside the adapters; None is half of the encoder's, the paper's 384 for ViT-B. For ViT-L it has 768.
        init: "houlsby", or "paper", with which they can't learn (see ``Adapter``): kept for the record.
        position: "ffn", on the output of the feed-forward layer before it is added (Houlsby et al. 2019), or
            "residual", on the sum. The paper's text fits either.
        images: train the 2-D image embedding as well.

    Returns:
        The trainable parameters.

    Raises:
        ValueError: not a ViViT, one with adapters or LoRA, a width below 1, an unknown ``init`` or ``position``,
            ``images`` without a path for them.
    """
    require_plain(enc, images)
    width = enc.config.width // 2 if width is None else width
    require_counts(width=width)
    for name, value, known in (("init", init, ("houlsby", "paper")), ("position", position, ("ffn", "residual"))):
        if value not in known:
            raise ValueError(f"{name}: wanted one of {', '.join(map(repr, known))}, got {value!r}")
    if init == "paper":
        warnings.warn(
            "init='paper': adapters that are all zeros can't learn: the LayerNorm of zeros is 0, and every gradient "
            "but that of the last bias with it; use init='houlsby'",
            UserWarning,
            stacklevel=2,
        )
    for block in enc.blocks:
        beside = block.mlp.fc2.weight
        options = {"eps": enc.config.eps, "init": init, "device": beside.device, "dtype": beside.dtype}
        block.adapter = Adapter(enc.config.width, width, **options).train(block.training)
        block.adapter_position = position
    return settle(enc, {"method": "add_adapters", "width": width, "position": position, "images": images})


def add_lora(
    enc: ViViT, rank: int = 64, *, scale: float | None = None, separate: bool = False, images: bool = False
) -> list[nn.Parameter]:
    """Train updates of low rank of every linear layer in the blocks (paper, appendix A; Hu et al. 2022).

    At first they change nothing. The layers are the projections of attention (temporal and cross-view attention
    too) and both of the feed-forward layer; their biases stay frozen. ``merge_lora`` folds the updates in.

    Args:
        enc: the encoder, changed in place.
        rank: of an update. The paper has 64 for ViT-B, 128 for ViT-L.
        scale: of the updates; None is 1 / rank. The paper divides by α = 1/64 in its equation 4, which would
            multiply by 64; that 1/64 is the factor is the reading that trains.
        separate: an update each for queries, keys and values instead of one for the three.
        images: train the 2-D image embedding as well.

    Returns:
        The trainable parameters.

    Raises:
        ValueError: not a ViViT, one with adapters or LoRA, a rank below 1, a scale that is not above 0, ``images``
            without a path for them.
    """
    require_plain(enc, images)
    require_counts(rank=rank)
    scale = 1 / rank if scale is None else scale
    if not isinstance(scale, int | float) or not 0 < scale < math.inf:
        raise ValueError(f"scale: wanted a number above 0, got {scale!r}")
    require_flag("separate", separate)
    for block in enc.blocks:
        for owner, name in _linears(block):
            layer, parts = getattr(owner, name), 3 if separate and name == "qkv" else 1
            setattr(owner, name, LoRALinear(layer, rank, scale=scale, parts=parts).train(layer.training))
    tuning = {"method": "add_lora", "rank": rank, "scale": float(scale), "separate": separate, "images": images}
    return settle(enc, tuning)


def temporal_only(enc: ViViT, *, images: bool = False) -> list[nn.Parameter]:
    """Train the temporal attention of a factorised encoder, with its norms and gates (paper, section 4).

    While a gate is shut only the gate has a gradient that is not zero; it opens with the first step.

    Args:
        enc: the encoder, changed in place.
        images: train the 2-D image embedding as well.

    Returns:
        The trainable parameters.

    Raises:
        ValueError: not a ViViT, one with adapters or LoRA, one without temporal attention, ``images`` without a
            path for them.
    """
    require_plain(enc, images)
    if enc.config.attention != "factorised":
        raise ValueError(
            f"enc: wanted attention='factorised', which has temporal attention, got {enc.config.attention!r}"
        )
    return settle(enc, {"method": "temporal_only", "images": images})


def merge_lora(enc: ViViT) -> None:
    """Fold ``add_lora``'s updates into the weights: a plain encoder again, ``enc.tuning`` is None.

    Parameters stay frozen or trainable as they were.

    Raises:
        ValueError: not a ViViT, one without LoRA.
    """
    require_vivit(enc)
    if added(enc) != "LoRA":
        raise ValueError(f"enc: wanted an encoder with LoRA, got one with {added(enc) or 'nothing added'}")
    for block in enc.blocks:
        for owner, name in _linears(block):
            setattr(owner, name, getattr(owner, name).merge())
    enc.tuning = None


def apply(enc: ViViT, tuning: dict[str, Any]) -> list[nn.Parameter]:
    """Tune as ``tuning`` says: the ``tuning`` of another encoder, one of the functions above and its settings.

    Returns:
        The trainable parameters.

    Raises:
        ValueError: an unknown method or setting, and what that function raises.
    """
    if not isinstance(tuning, dict):
        raise ValueError(f"tuning: wanted a dict, got {type(tuning).__name__}")
    settings = dict(tuning)
    method = settings.pop("method", None)
    if method not in _METHODS:
        raise ValueError(f"tuning: wanted a method of {', '.join(map(repr, _METHODS))}, got {method!r}")
    try:
        inspect.signature(_METHODS[method]).bind(enc, **settings)
    except TypeError as error:
        raise ValueError(f"tuning: wanted the settings of {method}, got {settings}: {error}") from None
    return _METHODS[method](enc, **settings)


def _linears(block: Block) -> Iterator[tuple[nn.Module, str]]:
    """The linear layers that LoRA takes: their owner and name."""
    for attn in [block.attn] if block.extra is None else [block.attn, block.extra.attn]:
        yield attn, "qkv"
        yield attn, "proj"
    yield block.mlp, "fc1"
    yield block.mlp, "fc2"


_METHODS: dict[str, Callable[..., list[nn.Parameter]]] = {
    method.__name__: method for method in (last_layers, add_adapters, add_lora, temporal_only)
}
