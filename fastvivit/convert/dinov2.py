"""transformers DINOv2, in both key layouts; LayerScale goes into the output matrices."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fastvivit.convert.hf_names import PROJECTION
from fastvivit.convert.hf_vit import vit_weights
from fastvivit.convert.reader import Reader, prefix_of
from fastvivit.convert.settings import hf_config
from fastvivit.convert.source import Source
from fastvivit.convert.weights import ImageWeights

KIND = "transformers DINOv2"
_AT = "encoder.layer.{n}."
_BLOCK = {
    "norm1": (_AT + "norm1.{p}",),
    "q": (_AT + "attention.q_proj.{p}", _AT + "attention.attention.query.{p}"),
    "k": (_AT + "attention.k_proj.{p}", _AT + "attention.attention.key.{p}"),
    "v": (_AT + "attention.v_proj.{p}", _AT + "attention.attention.value.{p}"),
    "proj": (_AT + "attention.o_proj.{p}", _AT + "attention.output.dense.{p}"),
    "norm2": (_AT + "norm2.{p}",),
    "fc1": (_AT + "mlp.fc1.{p}",),
    "fc2": (_AT + "mlp.fc2.{p}",),
    "scale1": (_AT + "layer_scale1.lambda1",),
    "scale2": (_AT + "layer_scale2.lambda1",),
}
_DEFAULTS = {"num_attention_heads": 12, "layer_norm_eps": 1e-6, "hidden_act": "gelu", "image_size": 224}
_OUTSIDE = ("*embeddings.mask_token", "classifier.*")


def prefix(state: Mapping[str, Tensor]) -> str | None:
    """What the names begin with where this is the layout, else None."""
    found = prefix_of(state, f"{PROJECTION}.weight")
    return found if found is not None and f"{found}encoder.layer.0.layer_scale1.lambda1" in state else None


def read(source: Source, prefix: str) -> ImageWeights:
    """Raises ``ValueError`` for register tokens, SwiGLU, tensors that are missing, settings nobody gave."""
    reader = Reader(source.state, prefix)
    if "embeddings.register_tokens" in reader:
        raise ValueError("model_or_folder: wanted a DINOv2 without register tokens, got one with them")
    if "encoder.layer.0.mlp.fc1.weight" not in reader:
        raise ValueError("model_or_folder: wanted a DINOv2 with a plain feed-forward layer, got SwiGLU (ViT-g)")
    return vit_weights(reader, hf_config(source.config, _DEFAULTS), KIND, _BLOCK, _OUTSIDE)
