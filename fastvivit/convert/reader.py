"""A state dict that knows what was taken from it, and the blocks of a ViT whatever they are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor

# A tensor of a block: the names it may have, with {n} for the block and {p} for "weight" or "bias".
Names = tuple[str, ...]


class Reader:
    """A state dict whose tensors are taken one by one.

    Args:
        state: the tensors by name.
        prefix: what every name taken begins with.
    """

    def __init__(self, state: Mapping[str, Tensor], prefix: str = "") -> None:
        self.state, self.prefix = state, prefix
        self.used: dict[str, None] = {}

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.state

    def optional(self, *names: str) -> Tensor | None:
        """The first of ``names`` that there is, at least float32, or None."""
        for name in names:
            if name in self:
                self.used[self.prefix + name] = None
                tensor = self.state[self.prefix + name].detach()
                return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        return None

    def take(self, *names: str) -> Tensor:
        """The first of ``names`` that there is, at least float32. Raises ``ValueError`` for none."""
        tensor = self.optional(*names)
        if tensor is None:
            wanted = " or ".join(repr(self.prefix + name) for name in names)
            raise ValueError(f"model_or_folder: wanted a tensor {wanted}, got none of that name")
        return tensor

    def forgo(self, name: str) -> str:
        """Count a tensor as not taken after all; returns its full name."""
        self.used.pop(self.prefix + name)
        return self.prefix + name

    def rest(self, heads: Sequence[str], waive: Sequence[str]) -> tuple[str, ...]:
        """Names not taken, in order.

        Args:
            heads: patterns of names outside the encoder that the layout is known to have.
            waive: patterns of names that the caller can do without.

        Raises:
            ValueError: a name that neither covers: something of the source would be lost unseen.
        """
        left = [name for name in self.state if name not in self.used]
        lost = [name for name in left if not any(fnmatchcase(name, p) for p in (*heads, *waive))]
        if lost:
            few = ", ".join(lost[:6]) + (", ..." if len(lost) > 6 else "")
            raise ValueError(
                f"model_or_folder: wanted only tensors that have a place in the encoder, got {len(lost)} more: {few}; "
                "waive=(pattern, ...) leaves them out"
            )
        return tuple(left)


def check_waive(waive: Sequence[str]) -> tuple[str, ...]:
    """Patterns as a tuple. Raises ``ValueError`` for a lone string or anything but strings."""
    if isinstance(waive, str) or not all(isinstance(pattern, str) for pattern in waive):
        raise ValueError(f"waive: wanted a tuple of patterns, got {waive!r}")
    return tuple(waive)


def prefix_of(state: Mapping[str, Tensor], anchor: str) -> str | None:
    """What stands before ``anchor`` in the one name that ends with it; None where there is none.

    Raises:
        ValueError: several such names: the state dict holds several models.
    """
    found = [name.removesuffix(anchor) for name in state if name == anchor or name.endswith("." + anchor)]
    if len(found) > 1:
        raise ValueError(f"model_or_folder: wanted one encoder, got {len(found)}: {', '.join(map(repr, found))}")
    return found[0] if found else None


def read_blocks(reader: Reader, names: Mapping[str, Names]) -> dict[str, Tensor]:
    """Every block's tensors under this library's names.

    Separate queries, keys and values become one matrix, rows q, k, v; where some but not all of them have a
    bias, the others' is zero. LayerScale (Touvron et al. 2021, equation 4), a product of a branch's output
    with a vector, goes into the branch's last matrix and bias: ``λ (W x + b) = (λ W) x + λ b``, rounded once.

    Args:
        reader: the source.
        names: {"norm1", "qkv" or "q", "k", "v", "proj", "norm2", "fc1", "fc2": names}, and optionally
            "scale1", "scale2".

    Raises:
        ValueError: no block, or one that lacks a tensor.
    """
    depth = 0
    while any(name.format(n=depth, p="weight") in reader for name in names["norm1"]):
        depth += 1
    if depth == 0:
        reader.take(*(name.format(n=0, p="weight") for name in names["norm1"]))
    out: dict[str, Tensor] = {}
    for n in range(depth):
        at = f"blocks.{n}."

        def pair(which: str, n: int = n) -> tuple[Tensor, Tensor | None]:
            weight, bias = ([name.format(n=n, p=p) for name in names[which]] for p in ("weight", "bias"))
            return reader.take(*weight), reader.optional(*bias)

        for norm in ("norm1", "norm2"):
            out[f"{at}{norm}.weight"] = pair(norm)[0]
            out[f"{at}{norm}.bias"] = reader.take(*(name.format(n=n, p="bias") for name in names[norm]))
        linears = {"attn.qkv": pair("qkv") if "qkv" in names else _fused([pair(part) for part in "qkv"])}
        linears |= {"attn.proj": _scaled(reader, names.get("scale1", ()), n, *pair("proj"))}
        linears |= {"mlp.fc1": pair("fc1"), "mlp.fc2": _scaled(reader, names.get("scale2", ()), n, *pair("fc2"))}
        for name, (weight, bias) in linears.items():
            out[f"{at}{name}.weight"] = weight
            if bias is not None:
                out[f"{at}{name}.bias"] = bias
    return out


def _fused(parts: list[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    weight = torch.cat([weight for weight, _ in parts])
    if all(bias is None for _, bias in parts):
        return weight, None
    return weight, torch.cat([w.new_zeros(w.shape[0]) if bias is None else bias for w, bias in parts])


def _scaled(reader: Reader, names: Names, n: int, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    scale = reader.optional(*(name.format(n=n) for name in names))
    if scale is None:
        return weight, bias
    wide = scale.double()
    weight = (wide.unsqueeze(1) * weight.double()).to(weight.dtype)
    return weight, None if bias is None else (wide * bias.double()).to(bias.dtype)
