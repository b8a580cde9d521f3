"""A ViViT from an image ViT: inflated kernels, resized positions, copied blocks (paper, appendix A)."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

import fastvivit.functional as F
from fastvivit.convert import clip, dinov2, hf_vit, open_clip, timm_vit
from fastvivit.convert.build import account, load
from fastvivit.convert.reader import check_waive
from fastvivit.convert.report import Shape
from fastvivit.convert.source import Source, read_source
from fastvivit.convert.weights import ImageWeights, block_sizes
from fastvivit.models import ViViTConfig
from fastvivit.modules.embed import PatchEmbed
from fastvivit.modules.vivit import ViViT

_LAYOUTS = (open_clip, clip, dinov2, hf_vit, timm_vit)
_INFLATE = ("average", "central")
_POSITIONS = ("repeat", "interpolate", "tile")


def from_image_vit(
    model_or_folder: nn.Module | Mapping[str, Tensor] | str | os.PathLike,
    cfg: ViViTConfig,
    inflate: str = "average",
    positions: str = "repeat",
    *,
    config: Any = None,
    waive: Sequence[str] = (),
    time_std: float = 0.0,
) -> ViViT:
    """A video encoder that starts as an image ViT (paper, section 3.1 and appendix A; ViViT section 3.4).

    Reads transformers ViT, DINOv2 and CLIP vision (both key layouts), timm's and open_clip's
    VisionTransformer. A still clip through frame-level attention gives the image model's own tokens; so does
    an image through the image path. Parameters are float32 whatever the source's are. Dropout is not taken
    over.

    Width, depth, heads, ff, eps, activation, biases, the LayerNorm before the blocks and the final one come
    from the source, and so does its CLS unless ``cfg.cls`` is False. The rest is ``cfg``'s: frames, size,
    tubelet, attention, pool, images, drop path, and the ``mean`` and ``std`` of uint8 pixels, which differ
    between sources (ViT 0.5 and 0.5; DINOv2 ImageNet's; CLIP its own).

    Kernels of another size are resized, then inflated (``F.inflate``). Positions of another grid are resized as
    transformers does it (``F.resize_positions``; timm and open_clip antialias); the CLS' is kept. With "tubes"
    this holds for each tube. The temporal attention of "factorised", and that across views of "tubes", starts
    as a copy of the spatial one behind a closed gate. CLIP's last norm, which it applies to the CLS alone,
    becomes the final norm of every token.

    Args:
        model_or_folder: a model, its state dict, or a local folder. Nothing is downloaded.
        cfg: the encoder wanted.
        inflate: "average" or "central", as ``F.inflate``'s ``how``.
        positions: how the image's table becomes one of T' time slots, as ``F.resize_positions``' ``how``. From
            a single slot "repeat", "interpolate" and "tile" come to the same: every slot holds the image's.
            With ``positions="factorised"`` in ``cfg`` it is the table of places beside a zero one of times.
        config: the source's configuration, needed beside a state dict: the transformers config or its dict;
            for timm and open_clip a dict with ``heads``, and ``eps``, ``act``, ``image_size`` where they are
            not the library's defaults (OpenAI's CLIP weights want ``act="quick_gelu"``).
        waive: patterns (``fnmatch``) of the source's names to leave out. Heads, text towers and decoders are
            known and need none.
        time_std: standard deviation of a random offset for each time slot's positions, drawn from PyTorch's
            default generator. Positions that repeat make order very slow to learn; 0.2 breaks the tie.

    Returns:
        The encoder, in eval mode, with ``encoder.imported``: an ``ImportReport``.

    Raises:
        ValueError: an unknown layout or option, tensors that are missing, unknown or of a wrong shape, a
            configuration that does not say what is needed, pool="cls" or cls=True from a source without a CLS.
    """
    if not isinstance(cfg, ViViTConfig):
        raise ValueError(f"cfg: wanted a ViViTConfig, got {type(cfg).__name__}")
    for name, value, known in (("inflate", inflate, _INFLATE), ("positions", positions, _POSITIONS)):
        if value not in known:
            raise ValueError(f"{name}: wanted one of {', '.join(map(repr, known))}, got {value!r}")
    if time_std < 0 or (time_std and cfg.attention == "frame"):
        wanted = "0 with attention='frame', whose positions have no time" if time_std > 0 else "at least 0"
        raise ValueError(f"time_std: wanted {wanted}, got {time_std}")
    waive = check_waive(waive)
    source = read_source(model_or_folder, config)
    weights = _read(source)
    encoder = ViViT(_config(cfg, weights))
    tensors, reshaped, outside = dict(weights.layers), {}, weights.outside
    for name, module in encoder.named_modules():
        if isinstance(module, PatchEmbed):
            tensors |= _embedding(module, name, weights, inflate, positions, reshaped)
    if encoder.config.class_token:
        tensors |= {"cls": weights.cls, "cls_pos": weights.cls_pos}
    elif weights.cls is not None:
        outside += (weights.reader.forgo(weights.cls_name),)
    missing = load(encoder, tensors)
    for block in encoder.blocks:
        if block.extra is not None:
            block.extra.copy_(block.norm1, block.attn)
    if time_std:
        encoder.embed.offset_times_(time_std)
    missing = [name for name in missing if ".extra." not in name]
    options = {"outside": outside, "waive": waive, "missing": missing, "reshaped": reshaped}
    options["notes"] = _normalisation(encoder.config, source)
    return account(encoder, weights.source, weights.reader, **options)


def _normalisation(cfg: ViViTConfig, source: Source) -> tuple[str, ...]:
    """A note where the folder's image processor treats bytes otherwise than the encoder will."""
    said, ours = source.preprocessing(), (cfg.mean, cfg.std)
    if said is None or all(
        math.isclose(a, b, abs_tol=1e-3)
        for mine, theirs in zip(ours, said, strict=True)
        for a, b in zip(mine, theirs * len(mine), strict=False)
    ):
        return ()
    return (f"the source's bytes become pixels by mean {said[0]} and std {said[1]}, cfg's by {ours[0]} and {ours[1]}",)


def _read(source: Source) -> ImageWeights:
    for layout in _LAYOUTS:
        prefix = layout.prefix(source.state)
        if prefix is not None:
            for name, tensor in source.state.items():
                if name.startswith(prefix) and tensor.dim() == 5:
                    raise ValueError(
                        f"model_or_folder: wanted an image model, got {name} of shape {tuple(tensor.shape)}; "
                        "from_hf_vivit and from_hf_videomae read video models"
                    )
            return layout.read(source, prefix)
    known, few = (layout.KIND for layout in _LAYOUTS), ", ".join(list(source.state)[:4]) or "none"
    raise ValueError(f"model_or_folder: wanted tensors named like those of {', '.join(known)}, got {few}, ...")


def _config(cfg: ViViTConfig, weights: ImageWeights) -> ViViTConfig:
    has_cls = weights.cls is not None
    if not has_cls and (cfg.pool == "cls" or cfg.cls):
        name, value = ("cls", cfg.cls) if cfg.cls else ("pool", cfg.pool)
        raise ValueError(f"cfg.{name}: wanted an encoder without CLS, like the source, got {name}={value!r}")
    if cfg.channels != weights.kernel.shape[1]:
        raise ValueError(f"cfg.channels: wanted {weights.kernel.shape[1]} like the source, got {cfg.channels}")
    source = {"heads": weights.heads, "eps": weights.eps, "act": weights.act, **block_sizes(weights.layers)}
    return cfg.replace(cls=has_cls if cfg.cls is None else cfg.cls, **source)


def _embedding(
    module: PatchEmbed,
    name: str,
    weights: ImageWeights,
    inflate: str,
    positions: str,
    reshaped: dict[str, tuple[Shape, Shape]],
) -> dict[str, Tensor]:
    """Weight, bias and positions of one patch embedding, 2-D or 3-D."""
    kernel, size = weights.kernel, tuple(module.weight.shape[-2:])
    if module.weight.dim() == 4:
        weight = F.inflate(kernel, 1, size=size)[:, :, 0]
    else:
        weight = F.inflate(kernel, module.weight.shape[2], size=size, how=inflate)
    slots, height, width = module.grid
    pos = F.resize_positions(weights.pos, (1, *weights.grid), (1, height, width))
    out = {"weight": weight, "pos": pos}
    if weights.bias is not None:
        out["bias"] = weights.bias
    if module.pos_time is not None:
        out["pos_time"] = pos.new_zeros(slots, pos.shape[1])
    elif slots > 1:
        out["pos"] = F.resize_positions(pos, (1, height, width), module.grid, how=positions)
    for part, before in (("weight", kernel), ("pos", weights.pos)):
        if out[part].shape != before.shape:
            reshaped[f"{name}.{part}"] = (tuple(before.shape), tuple(out[part].shape))
    return {f"{name}.{part}": tensor for part, tensor in out.items()}
