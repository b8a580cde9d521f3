"""What transformers calls the tensors of its ViTs: in memory since version 5; on disk, and in memory before."""

from __future__ import annotations

LAYOUTS = ("memory", "disk")

# {our name: (in memory, on disk)}, for ViT and ViViT; {n} is the block, {p} "weight" or "bias".
VIT_BLOCK = {
    "norm1": ("layers.{n}.layernorm_before.{p}", "encoder.layer.{n}.layernorm_before.{p}"),
    "q": ("layers.{n}.attention.q_proj.{p}", "encoder.layer.{n}.attention.attention.query.{p}"),
    "k": ("layers.{n}.attention.k_proj.{p}", "encoder.layer.{n}.attention.attention.key.{p}"),
    "v": ("layers.{n}.attention.v_proj.{p}", "encoder.layer.{n}.attention.attention.value.{p}"),
    "proj": ("layers.{n}.attention.o_proj.{p}", "encoder.layer.{n}.attention.output.dense.{p}"),
    "norm2": ("layers.{n}.layernorm_after.{p}", "encoder.layer.{n}.layernorm_after.{p}"),
    "fc1": ("layers.{n}.mlp.fc1.{p}", "encoder.layer.{n}.intermediate.dense.{p}"),
    "fc2": ("layers.{n}.mlp.fc2.{p}", "encoder.layer.{n}.output.dense.{p}"),
}
CLS = "embeddings.cls_token"
POSITIONS = "embeddings.position_embeddings"
PROJECTION = "embeddings.patch_embeddings.projection"
