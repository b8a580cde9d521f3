"""An image ViT in this library's names: what every layout is read into."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from fastvivit.convert.reader import Reader


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageWeights:
    """A pre-LayerNorm image ViT, read.

    Attributes:
        source: name of the layout.
        reader: what it was taken from.
        heads: attention heads.
        eps: of the LayerNorms.
        act: activation, by this library's name.
        kernel: (D, C, h, w).
        bias: (D,), or None.
        pos: (H'·W', D), places only.
        grid: (H', W') of ``pos``.
        cls: (1, D), or None.
        cls_pos: (1, D) position of the CLS, or None.
        cls_name: the CLS' own name in the source.
        layers: pre_norm, blocks and norm, under their names in ``ViViT``.
        outside: patterns of the source's names that lie outside an encoder.
    """

    source: str
    reader: Reader
    heads: int
    eps: float
    act: str
    kernel: Tensor
    bias: Tensor | None
    pos: Tensor
    grid: tuple[int, int]
    cls: Tensor | None = None
    cls_pos: Tensor | None = None
    cls_name: str = ""
    layers: dict[str, Tensor] = field(default_factory=dict)
    outside: tuple[str, ...] = ()


def norm_pair(reader: Reader, ours: str, theirs: str) -> dict[str, Tensor]:
    """A LayerNorm's weight and bias under our name; ``{}`` where the source has none.

    Raises:
        ValueError: a weight without a bias, which is another kind of norm.
    """
    if f"{theirs}.weight" not in reader:
        return {}
    return {f"{ours}.{part}": reader.take(f"{theirs}.{part}") for part in ("weight", "bias")}


def block_sizes(layers: dict[str, Tensor]) -> dict[str, int | bool]:
    """Depth, ff, qkv_bias, pre_norm and final_norm, as ``ViViTConfig`` calls them, of tensors that were read."""
    return {
        "width": layers["blocks.0.norm1.weight"].shape[0],
        "depth": sum(name.endswith(".norm1.weight") for name in layers),
        "ff": layers["blocks.0.mlp.fc1.weight"].shape[0],
        "qkv_bias": "blocks.0.attn.qkv.bias" in layers,
        "pre_norm": "pre_norm.weight" in layers,
        "final_norm": "norm.weight" in layers,
    }
