"""transformers ViViT in and out, in both key layouts, bit for bit."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from fastvivit.convert.build import account, load
from fastvivit.convert.hf_names import CLS, LAYOUTS, POSITIONS, PROJECTION, VIT_BLOCK
from fastvivit.convert.reader import Reader, check_waive, prefix_of, read_blocks
from fastvivit.convert.settings import hf_config
from fastvivit.convert.source import read_source
from fastvivit.convert.video import video_config
from fastvivit.convert.weights import norm_pair
from fastvivit.modules.vivit import ViViT

_KIND = "transformers ViViT"
_DEFAULTS = {
    "num_attention_heads": 12,
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu_fast",
    "image_size": 224,
    "num_frames": 32,
}
_OUTSIDE = ("*pooler.*", "classifier.*")


def from_hf_vivit(
    model_or_folder: nn.Module | Mapping[str, Tensor] | str | os.PathLike,
    *,
    config: Any = None,
    waive: Sequence[str] = (),
    pool: str | None = "cls",
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> ViViT:
    """The encoder of a transformers ViViT (``VivitModel``, ``VivitForVideoClassification``): the same outputs.

    Reads the names of version 5 in memory, and those of files and of version 4; with ``vivit.`` before them or
    without. The CLS stays at the head of every clip, so ``last_hidden_state`` is theirs, and ``pooled`` is what
    their classifier reads. Clips are (B, C, T, H, W) here, (B, T, C, H, W) there.

    The pooler and the classifier have no place in an encoder: they are left out, and remembered for
    ``to_hf_state_dict``. Parameters are float32. Dropout is not taken over.

    Args:
        model_or_folder: a model, its state dict, or a local folder. Nothing is downloaded.
        config: a ``VivitConfig`` or its dict, needed beside a state dict.
        waive: patterns (``fnmatch``) of the source's names to leave out beside its heads.
        pool: "cls", "mean" or None.
        mean: of uint8 pixels in units of 0..1. None: that of the folder's image processor, or 0.5. The
            published ones shift and then normalise, into -3..1, which is mean 0.75 and std 0.25.
        std: see ``mean``.

    Returns:
        The encoder, in eval mode, with ``encoder.imported``: an ``ImportReport``. It has no image path.

    Raises:
        ValueError: another layout, tensors that are missing, unknown or of a wrong shape, no config.
    """
    waive = check_waive(waive)
    source = read_source(model_or_folder, config)
    prefix = prefix_of(source.state, f"{PROJECTION}.weight")
    if prefix is None or prefix + CLS not in source.state:
        few = ", ".join(list(source.state)[:4]) or "none"
        raise ValueError(f"model_or_folder: wanted the tensors of a {_KIND}, got {few}, ...")
    settings = hf_config(source.config, _DEFAULTS)
    reader = Reader(source.state, prefix)
    kernel, pos = reader.take(f"{PROJECTION}.weight"), reader.take(POSITIONS)[0]
    if kernel.dim() != 5:
        raise ValueError(
            f"model_or_folder: wanted a video model, got a kernel of shape {tuple(kernel.shape)}; "
            "from_image_vit reads image models"
        )
    layers = read_blocks(reader, VIT_BLOCK) | norm_pair(reader, "norm", "layernorm")
    encoder = ViViT(video_config(source, settings, kernel, layers, pool=pool, cls=True, mean=mean, std=std))
    tensors = layers | {"cls": reader.take(CLS)[0], "cls_pos": pos[:1], "embed.weight": kernel, "embed.pos": pos[1:]}
    bias = reader.optional(f"{PROJECTION}.bias")
    if bias is not None:
        tensors["embed.bias"] = bias
    missing = load(encoder, tensors)
    own = [name for name in source.state if any(fnmatchcase(name, pattern) for pattern in _OUTSIDE)]
    wide = {name: torch.promote_types(source.state[name].dtype, torch.float32) for name in own}
    heads = {name: source.state[name].detach().to(wide[name], copy=True) for name in own}
    return account(encoder, _KIND, reader, outside=_OUTSIDE, waive=waive, missing=missing, reshaped={}, heads=heads)


@torch.no_grad()
def to_hf_state_dict(encoder: ViViT, layout: str = "memory") -> dict[str, Tensor]:
    """The encoder's video path as a state dict of transformers' ViViT; of an imported float32 one, bit for bit.

    Load it into ``VivitModel`` (``add_pooling_layer=False`` unless the source had a pooler), or, where the
    encoder came from a ``VivitForVideoClassification``, into that: prefix and heads are the source's. Clips
    made longer by ``extend_frames`` want ``num_frames`` to match. The image path and an attention pool have no
    place there and are left out.

    Args:
        encoder: joint attention, a CLS, a final norm.
        layout: "memory": the names of version 5's modules; "disk": those of files and of version 4.

    Returns:
        {name: tensor}, detached copies.

    Raises:
        ValueError: an unknown layout, an encoder that transformers' ViViT can't express, adapters not merged.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout: wanted one of {', '.join(map(repr, LAYOUTS))}, got {layout!r}")
    config = encoder.config
    for what, fits in (
        (f"attention='joint', got {config.attention!r}", config.attention == "joint"),
        ("a CLS, got none", config.class_token),
        ("no norm before the blocks, got pre_norm=True", not config.pre_norm),
        ("a final norm, got final_norm=False", config.final_norm),
    ):
        if not fits:
            raise ValueError(f"encoder: transformers' ViViT wants {what}")
    state = encoder.state_dict()
    with torch.device("meta"):
        plain = ViViT(config).state_dict().keys()
    if state.keys() != plain:
        odd = ", ".join(sorted(state.keys() ^ plain)[:4])
        raise ValueError(f"encoder: wanted one without adapters (merge or remove them first), got {odd}, ...")
    which = LAYOUTS.index(layout)
    out = {
        CLS: state["cls"].unsqueeze(0),
        POSITIONS: torch.cat([state["cls_pos"], encoder.embed.table()]).unsqueeze(0),
        f"{PROJECTION}.weight": state["embed.weight"],
        f"{PROJECTION}.bias": state["embed.bias"],
    }
    for n in range(config.depth):
        for part in ("weight", "bias"):
            parts = {"norm1": "norm1", "proj": "attn.proj", "norm2": "norm2", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
            tensors = {theirs: state[f"blocks.{n}.{ours}.{part}"] for theirs, ours in parts.items()}
            if part == "weight" or config.qkv_bias:
                tensors |= dict(zip("qkv", state[f"blocks.{n}.attn.qkv.{part}"].chunk(3), strict=True))
            out |= {VIT_BLOCK[theirs][which].format(n=n, p=part): tensor for theirs, tensor in tensors.items()}
    out |= {f"layernorm.{part}": state[f"norm.{part}"] for part in ("weight", "bias")}
    imported = encoder.imported
    prefix, heads = (imported.prefix, imported.heads) if imported and imported.source == _KIND else ("", {})
    return {prefix + name: tensor.detach().clone() for name, tensor in out.items()} | {
        name: tensor.clone() for name, tensor in heads.items()
    }
