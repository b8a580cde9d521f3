"""transformers' ViViT classes, accelerated from the start."""

from __future__ import annotations

from collections.abc import Sequence

import transformers

from fastvivit.hf.accelerate import accelerate


class _Native:
    """Not custom code to transformers, which would then not rename keys between file and memory."""

    @classmethod
    def is_custom_code(cls) -> bool:
        """False: modules and keys are those of transformers."""
        return False


class VivitModel(_Native, transformers.VivitModel):
    """``transformers.VivitModel`` as ``fv.accelerate`` makes it: the same weights, files and outputs.

    ``from_pretrained(folder, mean=[0.5] * 3, std=[0.5] * 3)`` takes uint8 clips. Neither is written to the
    configuration: a saved folder is one of plain transformers, and mean and std are given again when it is loaded.

    Args:
        config: ``transformers.VivitConfig``.
        add_pooling_layer: as in transformers.
        mean: for uint8 pixels, in units of 0..1, one a channel; None refuses uint8.
        std: see ``mean``.
    """

    def __init__(
        self,
        config: transformers.VivitConfig,
        add_pooling_layer: bool = True,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__(config, add_pooling_layer=add_pooling_layer)
        accelerate(self, mean=mean, std=std)


class VivitForVideoClassification(_Native, transformers.VivitForVideoClassification):
    """``transformers.VivitForVideoClassification`` as ``fv.accelerate`` makes it; see ``VivitModel``.

    Args:
        config: ``transformers.VivitConfig``.
        mean: for uint8 pixels, in units of 0..1, one a channel; None refuses uint8.
        std: see ``mean``.
    """

    def __init__(
        self,
        config: transformers.VivitConfig,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__(config)
        accelerate(self, mean=mean, std=std)
