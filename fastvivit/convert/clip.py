"""transformers CLIP's vision tower, with the prefix of version 4 or none; its text tower is left out."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fastvivit.convert.reader import Reader, prefix_of, read_blocks
from fastvivit.convert.settings import activation, hf_config, table_grid
from fastvivit.convert.source import Source
from fastvivit.convert.weights import ImageWeights, norm_pair

KIND = "transformers CLIP vision"
_AT = "encoder.layers.{n}."
_BLOCK = {
    "norm1": (_AT + "layer_norm1.{p}",),
    "q": (_AT + "self_attn.q_proj.{p}",),
    "k": (_AT + "self_attn.k_proj.{p}",),
    "v": (_AT + "self_attn.v_proj.{p}",),
    "proj": (_AT + "self_attn.out_proj.{p}",),
    "norm2": (_AT + "layer_norm2.{p}",),
    "fc1": (_AT + "mlp.fc1.{p}",),
    "fc2": (_AT + "mlp.fc2.{p}",),
}
_CLS = "embeddings.class_embedding"
_DEFAULTS = {"num_attention_heads": 12, "layer_norm_eps": 1e-5, "hidden_act": "quick_gelu", "image_size": 224}
_OUTSIDE = (
    "text_model.*",
    "text_projection.weight",
    "visual_projection.weight",
    "logit_scale",
    "*position_ids",
    "classifier.*",
)


def prefix(state: Mapping[str, Tensor]) -> str | None:
    """What the names begin with where this is the layout, else None."""
    found = prefix_of(state, "embeddings.patch_embedding.weight")
    return found if found is not None and found + _CLS in state else None


def read(source: Source, prefix: str) -> ImageWeights:
    """Raises ``ValueError`` for tensors that are missing and for settings that nobody gave."""
    given = source.config
    config = hf_config(given.get("vision_config", given) if given else None, _DEFAULTS)
    reader = Reader(source.state, prefix)
    kernel = reader.take("embeddings.patch_embedding.weight")
    pos = reader.take("embeddings.position_embedding.weight")
    return ImageWeights(
        source=KIND,
        reader=reader,
        heads=config["num_attention_heads"],
        eps=config["layer_norm_eps"],
        act=activation(config["hidden_act"]),
        kernel=kernel,
        bias=reader.optional("embeddings.patch_embedding.bias"),
        pos=pos[1:],
        grid=table_grid(pos.shape[0] - 1, tuple(kernel.shape[2:]), config["image_size"]),
        cls=reader.take(_CLS).unsqueeze(0),
        cls_pos=pos[:1],
        cls_name=_CLS,
        # Its own spelling.
        layers=norm_pair(reader, "pre_norm", "pre_layrnorm")
        | read_blocks(reader, _BLOCK)
        | norm_pair(reader, "norm", "post_layernorm"),
        outside=_OUTSIDE,
    )
