"""The data sets of a run: manifests decoded as they are needed, or packed shards."""

from __future__ import annotations

from pathlib import Path

from fastvivit.data import ClipDataset
from fastvivit.data.shards import PackedDataset, is_pack
from fastvivit.models import ViViTConfig
from fastvivit.train.tables import DataConfig, MaskConfig


def open_source(
    path: str, data: DataConfig, encoder: ViViTConfig, *, seed: int, mask: MaskConfig | None = None
) -> ClipDataset:
    """A data set whose samples an encoder takes.

    Args:
        path: a manifest, tar shards, or packed shards.
        data: of the run.
        encoder: says frames, size and tubelet.
        seed: of captions and masks.
        mask: under which packed shards are read; None reads whole clips.

    Raises:
        ValueError: a bad manifest; packed shards of another geometry or rate; masks of groups without packed shards.
    """
    if not is_pack(Path(path)):
        clip = {"frames": encoder.frames, "fps": data.fps, "size": encoder.size}
        deadline = data.deadline if data.workers and data.deadline else None
        dataset = ClipDataset(path, seed=seed, cache=data.cache, deadline=deadline, **clip)
        if mask is not None and mask.strategy == "grouped" and dataset.kind == "video":
            raise ValueError(f"mask.strategy: wanted packed shards for 'grouped', got {path}")
        return dataset
    if encoder.attention == "tubes":
        raise ValueError(f"data: wanted a manifest for attention='tubes', got packed shards: {path}")
    ratio, strategy = (0.0, "grouped") if mask is None else (mask.ratio, mask.strategy)
    packed = PackedDataset(path, mask_ratio=ratio, strategy=strategy, seed=seed)
    layout, image = packed.layout, packed.kind == "image"
    wanted = {
        "frames, size": encoder.size if image else (encoder.frames, *encoder.size),
        "tubelet": encoder.tubelet[1:] if image else encoder.tubelet,
    }
    for name, value, got in zip(wanted, wanted.values(), (layout.shape, layout.tubelet), strict=True):
        if tuple(value) != got:
            raise ValueError(
                f"data: wanted shards packed with the encoder's {name}, {tuple(value)}, got {got} in {path}"
            )
    if not image and packed.fps != data.fps:
        raise ValueError(f"data.fps: wanted the {packed.fps:g} that {path} was packed at, got {data.fps:g}")
    return packed
