"""Packed clips beside the same clips decoded: items, masks, tokens, batches; and the bytes that are read."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from noise import LOOK, pixels
from torch.utils.data import DataLoader

import fastvivit as fv
from fastvivit.data import ClipDataset, Draw, Mix, PackedDataset, pack, read_clip, read_image, write_clip, write_image
from fastvivit.data.shards import reader, storage_order
from fastvivit.train.step import draw_masks
from fastvivit.train.tables import MaskConfig

CLIP = {name: LOOK[name] for name in ("frames", "fps", "size")}


@pytest.fixture
def packed(undecoded, entries, tmp_path):
    pack(entries(7), tmp_path / "pack", **LOOK, shard_size=300_000)
    return tmp_path / "pack"


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    config = fv.ViViTConfig(frames=8, size=64, width=48, depth=2, heads=3, ff=96)
    return fv.ViViT(config).eval()


@pytest.mark.parametrize("strategy", ["grouped", "random", "tube", "frame"])
def test_items_are_those_of_the_decoded_clips(packed, entries, encoder, strategy):
    data = PackedDataset(packed, mask_ratio=0.75, strategy=strategy, seed=3)
    plain = ClipDataset(entries(7), **CLIP, seed=3)
    for data_set in (data, plain):
        data_set.set_epoch(2)
    for index in (0, 4, (6, 5)):
        item, want = data[index], plain[index]
        assert {n: item[n] for n in item if n != "video"} == {n: want[n] for n in want if n != "video"}
        keep = item["video"].keep
        if strategy == "grouped":
            assert keep.shape == (1, 16)
        else:
            config = MaskConfig(ratio=0.75, strategy=strategy)
            drawn = draw_masks(torch.tensor([want["mask_seed"]]), encoder.config.views, config)
            assert torch.equal(keep, drawn.ids)
        cut = fv.Tubelets.from_clips(want["video"].unsqueeze(0), keep, (2, 16, 16))
        assert torch.equal(item["video"].pixels, cut.pixels) and item["video"].size == (8, 64, 64)
        tokens = encoder(want["video"].unsqueeze(0), keep=keep).tokens
        assert torch.equal(encoder(item["video"]).tokens, tokens)


def test_masks_differ_by_epoch_and_clip_and_are_the_same_again(packed):
    data, again = (PackedDataset(packed, mask_ratio=0.75, seed=1) for _ in range(2))
    keep = lambda index, epoch: tuple(data[index, epoch]["video"].ids.tolist())
    masks = {keep(index, epoch) for index in range(7) for epoch in range(6)}
    assert len(masks) > 30
    assert torch.equal(data[3, 4]["video"].ids, again.mask(3, 4))
    assert not torch.equal(data.mask(3, 4), PackedDataset(packed, mask_ratio=0.75, seed=2).mask(3, 4))


def test_everything_without_a_mask(packed, entries, encoder):
    data = PackedDataset(packed)
    video = data[2]["video"]
    assert video.counts == (64,)
    want = pixels(entries(7)[2], 8, 2.0, 64).unsqueeze(0)
    assert torch.equal(encoder(video).tokens, encoder(want).tokens)


def test_any_ids(packed, entries):
    data = PackedDataset(packed)
    for keep in ([0], [63], [5, 6, 7, 40], list(range(64))):
        found = data.tubelets(5, torch.tensor(keep))
        clip = pixels(entries(7)[5], 8, 2.0, 64).unsqueeze(0)
        want = fv.Tubelets.from_clips(clip, torch.tensor([keep]), (2, 16, 16))
        assert torch.equal(found.pixels, want.pixels)
    for keep in ([64], [-1], [2, 1], [1, 1]):
        with pytest.raises(ValueError, match="keep: wanted ids"):
            data.tubelets(5, torch.tensor(keep))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches(packed, workers):
    data = PackedDataset(packed, mask_ratio=0.5)
    options = {"multiprocessing_context": "fork"} if workers else {}
    loader = DataLoader(data, batch_size=3, collate_fn=data.collate, num_workers=workers, **options)
    batches = list(loader)
    assert [len(batch["video"]) for batch in batches] == [3, 3, 1]
    for i, batch in enumerate(batches):
        video = batch["video"]
        assert video.keep.shape == (len(video), 32) and batch["index"].tolist() == list(
            range(3 * i, 3 * i + len(video))
        )
        assert video.pixels.movedim(1, -1).is_contiguous()
        for j, clip in enumerate(video):
            assert torch.equal(clip.pixels, data[3 * i + j]["video"].pixels)


def test_a_source_among_others(packed, entries):
    data = PackedDataset(packed, mask_ratio=0.5)
    mix = Mix([ClipDataset(entries(7), **CLIP), data])
    first, second = mix.collate([mix[Draw(1, 2, 3)], mix[Draw(0, 1, 0)], mix[Draw(1, 5, 3)]])
    assert first["video"].shape == (1, 3, 8, 64, 64) and second["source"] == 1
    assert torch.equal(second["video"][1].ids, data.mask(5, 3)) and data.kind == "video"


def opened():
    """Files that this process has open."""
    gc.collect()
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_files_that_are_open_are_few_and_travel_to_other_processes(packed, monkeypatch):
    monkeypatch.setattr(reader, "_OPEN_FILES", 1)
    none = opened()
    data = PackedDataset(packed, mask_ratio=0.5)
    before = opened()
    want = [data[i]["video"].pixels for i in range(7)]
    assert opened() == before + 1
    again = pickle.loads(pickle.dumps(data))
    assert all(torch.equal(again[i]["video"].pixels, pixels) for i, pixels in enumerate(want))
    del data, again
    assert opened() == none


def test_images(undecoded, entries, tmp_path, encoder):
    given = [replace(entry, kind="image", start=0.0) for entry in entries(5)]
    pack(given, tmp_path / "pack", **LOOK, shard_size=30_000)
    data = PackedDataset(tmp_path / "pack", mask_ratio=0.75, seed=1)
    plain = ClipDataset(given, **CLIP, seed=1)
    assert data.kind == "image" and data.fps == 1.0 and data.layout.shape == (64, 64) and data.entries == given
    batch, want = (found.collate([found[i, 2] for i in range(5)]) for found in (data, plain))
    assert batch["caption"] == want["caption"] and torch.equal(batch["mask_seed"], want["mask_seed"])
    assert batch["video"].keep.shape == (5, 4) and torch.equal(data.clip(3), want["video"][3])
    tokens = encoder(want["video"], keep=batch["video"].keep).tokens
    assert torch.equal(encoder(batch["video"]).tokens, tokens)
    with pytest.raises(ValueError, match="source: wanted clips or images, got both"):
        pack([given[0], entries(1)[0]], tmp_path / "both", **LOOK)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_ratio": 1.0}, "mask_ratio: wanted 0 <= ratio < 1"),
        ({"strategy": "blocks"}, "strategy: wanted one of 'grouped', 'random', 'tube', 'frame'"),
    ],
)
def test_bad_arguments(packed, options, message):
    with pytest.raises(ValueError, match=message):
        PackedDataset(packed, **options)


def test_no_pack(tmp_path):
    with pytest.raises(ValueError, match="wanted a folder that `fastvivit data pack` has written"):
        PackedDataset(tmp_path)


def test_real_files_come_back_as_they_are_decoded(tmp_path):
    pytest.importorskip("av")
    manifest = []
    for i in range(2):
        moving = np.random.default_rng(i).integers(256, size=(20, 40, 56, 3), dtype=np.uint8)
        video = write_clip(tmp_path / f"{i}.mp4", moving, fps=4)
        manifest.append(fv.data.Entry(video=video, captions=("a",), start=i / 2))
    image = fv.data.Entry(video=write_image(tmp_path / "a.png", moving[0]), captions=("a",), kind="image")
    pack([image], tmp_path / "images", size=32)
    assert torch.equal(PackedDataset(tmp_path / "images").clip(0), read_image(image.video, 32))
    pack(manifest, tmp_path / "pack", frames=4, fps=2.0, size=32, tubelet=(2, 8, 8))
    data = PackedDataset(tmp_path / "pack")
    for i, entry in enumerate(manifest):
        assert torch.equal(data.clip(i), read_clip(entry.video, 4, 2.0, 32, entry.start))


class Pages:
    """Which pages of a file are in the kernel's cache."""

    def __init__(self, file):
        self.file, self.length = file, file.stat().st_size

    def drop(self):
        """Bring the file to the disk and out of the cache."""
        descriptor = os.open(self.file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)

    def resident(self):
        """(pages,) bool."""
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
        found = ctypes.create_string_buffer(-(-self.length // mmap.PAGESIZE))
        with self.file.open("rb") as stream:
            address = libc.mmap(None, self.length, mmap.PROT_READ, mmap.MAP_SHARED, stream.fileno(), 0)
            failed = libc.mincore(address, self.length, found)
            libc.munmap(address, self.length)
        assert not failed, os.strerror(ctypes.get_errno())
        return np.frombuffer(found.raw, np.uint8) & 1 > 0


def cold(file):
    """``Pages`` of a file of which nothing is in the cache; a skip where that can't be had."""
    pages = Pages(file)
    pages.drop()
    if pages.resident().any() or os.sysconf("SC_PAGE_SIZE") != 4096:
        pytest.skip("this file system keeps its files in memory, or pages are not of 4,096 bytes")
    return pages


def test_nothing_is_read_ahead(undecoded, entries, tmp_path):
    pack(entries(2), tmp_path / "pack", frames=16, size=128, deadline=None)
    pages = cold(tmp_path / "pack" / "shard-00000.bin")
    data = PackedDataset(tmp_path / "pack")
    first = data.layout.group * 5
    data.tubelets(1, torch.from_numpy(storage_order(1, 512)[first : first + data.layout.group]).sort().values)
    begin = (data.layout.clip_bytes + 5 * data.layout.group_bytes) // 4096
    assert np.flatnonzero(pages.resident()).tolist() == [begin, begin + 1, begin + 2]


@pytest.mark.parametrize("strategy", ["grouped", "random"])
@pytest.mark.parametrize("tubelet", [(2, 16, 16), (2, 8, 16)])
def test_what_is_read_of_a_cold_file(undecoded, entries, tmp_path, strategy, tubelet):
    """Pages, counted by the kernel. Of whole groups exactly the kept share; of single tubelets most."""
    given = {"frames": 16, "fps": 1.0, "size": 128, "tubelet": tubelet, "deadline": None}
    pack(entries(4), tmp_path / "pack", **given)
    pages = cold(tmp_path / "pack" / "shard-00000.bin")
    data = PackedDataset(tmp_path / "pack", mask_ratio=0.75, strategy=strategy)
    items = [data[i] for i in range(4)]
    found = pages.resident()
    if strategy == "grouped":
        assert found.mean() == 0.25
    layout, wanted = data.layout, np.zeros_like(found)
    for i, item in enumerate(items):
        rows = np.argsort(storage_order(i, layout.tokens))[item["video"].ids.numpy()]
        firsts = layout.offsets(rows) + i * layout.clip_bytes
        for first in firsts:
            wanted[first // 4096 : (first + layout.tubelet_bytes - 1) // 4096 + 1] = True
    assert np.array_equal(found, wanted)
