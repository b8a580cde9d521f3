"""Clips decoded once, in shards from which a masked step reads only the kept tubelets."""

from fastvivit.data.shards.dataset import PackedDataset
from fastvivit.data.shards.files import is_pack
from fastvivit.data.shards.layout import Layout, grouped_keep, storage_order
from fastvivit.data.shards.packing import PackResult, check, pack

__all__ = ["Layout", "PackResult", "PackedDataset", "check", "grouped_keep", "is_pack", "pack", "storage_order"]
