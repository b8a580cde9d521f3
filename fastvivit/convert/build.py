"""Imported tensors into an encoder, and the account of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastvivit.convert.reader import Reader
from fastvivit.convert.report import ImportReport, Shape
from fastvivit.modules.vivit import ViViT


@torch.no_grad()
def load(encoder: ViViT, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Copy ``tensors`` into the encoder; returns names of ours that are not among them.

    They keep their initialisation. A bias begins at zero, so one the source does without is what it computes.

    Raises:
        ValueError: a tensor of another shape than ours.
    """
    own = encoder.state_dict()
    assert tensors.keys() <= own.keys(), sorted(tensors.keys() - own.keys())
    for name, tensor in tensors.items():
        if own[name].shape != tensor.shape:
            raise ValueError(
                f"model_or_folder: wanted {name} of shape {tuple(own[name].shape)} by its config and tensors, "
                f"got {tuple(tensor.shape)}"
            )
        own[name].copy_(tensor)
    return tuple(name for name in own if name not in tensors)


def account(
    encoder: ViViT,
    source: str,
    reader: Reader,
    *,
    outside: Sequence[str],
    waive: Sequence[str],
    missing: Sequence[str],
    reshaped: Mapping[str, tuple[Shape, Shape]],
    **more: Any,
) -> ViViT:
    """The encoder in eval mode with its ``imported`` report; ``more`` are fields of it.

    Raises:
        ValueError: tensors that nobody took, waived or knows.
    """
    encoder.imported = ImportReport(
        source=source,
        left_out=reader.rest(outside, waive),
        used=tuple(reader.used),
        missing=tuple(missing),
        reshaped=dict(reshaped),
        prefix=reader.prefix,
        **more,
    )
    return encoder.eval()
