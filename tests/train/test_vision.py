"""Cached vision: what it holds, when it is made again, what it survives."""

import dataclasses
import os
import pickle
import shutil
import signal
from pathlib import Path

import pytest
import torch

import fastvivit as fv
from fastvivit.caption import Vision
from fastvivit.caption.store import VisionStore
from fastvivit.data import EpochSampler, read_clip, read_manifest
from fastvivit.modules.clips import draw_keep
from fastvivit.modules.pooling import temporal_mean
from fastvivit.train import MaskConfig, VisionCache, VisionDataset
from fastvivit.train import vision as module


@pytest.fixture
def model(encoder):
    return fv.load_pretrained(encoder)


@pytest.fixture
def clips(digits, tmp_path):
    """Four clips of their own files."""
    shutil.copytree(digits[1].parent, tmp_path / "clips")
    return read_manifest(tmp_path / "clips" / "manifest.jsonl")[:4]


@pytest.fixture
def make(model, tmp_path):
    def made(**changes):
        options = {"fps": 8.0, "mask": MaskConfig(ratio=0.5)} | changes
        return VisionCache(tmp_path / "vision", options.pop("encoder", model), **options)

    return made


@pytest.fixture
def decoded(monkeypatch):
    """Files that are decoded, as they are."""
    from fastvivit.data import dataset

    seen = []
    monkeypatch.setattr(dataset, "read_clip", lambda file, *a, **k: seen.append(file) or read_clip(file, *a, **k))
    return seen


def test_what_is_kept_is_what_the_encoder_makes_under_that_mask(make, model, clips):
    cache = make(seed=3, mask=MaskConfig(ratio=0.75))
    assert cache.build(clips, masks=2) == []
    masked = []
    for entry in clips:
        video = read_clip(entry.video, 8, 8.0, 32).unsqueeze(0)
        found = []
        for mask in range(2):
            seed = cache.mask_seed(cache.clip(entry), mask)
            keep = draw_keep(1, model.config.views, 0.75, generator=torch.Generator().manual_seed(seed))
            with torch.no_grad():
                tokens, real = temporal_mean(model(video, keep=keep))
            found.append(cache.get(entry, mask))
            torch.testing.assert_close(found[-1].tokens, tokens)
            assert torch.equal(found[-1].mask, real)
            masked.append(not real.all())
        assert not torch.equal(found[0].tokens, found[1].tokens)
    assert any(masked)


def test_nothing_is_done_twice(make, clips, decoded):
    make().build(clips[:2])
    assert len(decoded) == 2
    make().build(clips)  # another process: two more
    assert len(decoded) == 4
    again = [dataclasses.replace(entry, captions=("another",)) for entry in (*clips, *clips)]
    assert make().build(again) == [] and len(decoded) == 4
    before = make().get(clips[0])
    make().build(clips, masks=2)  # the second masks alone
    assert len(decoded) == 8 and len(make().store) == 8
    assert torch.equal(make().get(clips[0]).tokens, before.tokens)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"fps": 4.0},
        {"frames": 4},
        {"size": 16},
        {"over_time": False},
        {"mask": MaskConfig(ratio=0.25)},
        {"mask": MaskConfig(ratio=0.5, strategy="tube")},
        {"dtype": "bfloat16"},
        {"weights": True},
        {"settings": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_anything_that_changes_the_numbers_makes_them_again(make, model, clips, decoded, change):
    make().build(clips[:1])
    if "weights" in change:
        with torch.no_grad():
            model.norm.bias[0] += 1e-3
        change = {}
    elif "settings" in change:
        other = fv.ViViT(model.config.replace(mean=(0.1, 0.2, 0.3)))
        other.load_state_dict(model.state_dict())
        change = {"encoder": other}
    cache = make(**change)
    assert len(cache.store) == 0
    with pytest.raises(ValueError, match=r"entry: wanted a clip that build\(\) has made under mask 0"):
        cache.get(clips[0])
    cache.build(clips[:1])
    assert len(decoded) == 2 and cache.get(clips[0]).tokens.dtype == cache.dtype


def test_a_clip_is_its_content_and_its_times(make, clips, decoded, tmp_path):
    entry, cache = clips[0], make()
    cache.build([entry])
    first = cache.get(entry)
    for changed in ({"start": 0.25}, {"end": 0.5}, {"stream": 0}):
        cache.build([dataclasses.replace(entry, **changed)])
    assert len(decoded) == 4 and len(cache.store) == 4
    moved = Path(shutil.copy(entry.video, tmp_path / "moved.mp4"))
    assert make().build([dataclasses.replace(entry, video=moved)]) == [] and len(decoded) == 4
    shutil.copy(clips[1].video, entry.video)  # the same name, size or not: another film
    cache = make()
    cache.build([entry])
    assert len(decoded) == 5 and not torch.equal(cache.get(entry).tokens, first.tokens)


def test_contents_are_read_once(make, clips, monkeypatch):
    make().build(clips)
    memo = make().hashes.memo
    with memo.open("a") as file:
        file.write('\n{"path": "cut o')
    opened = []
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *a, **k: opened.append(path) or real(path, *a, **k))
    make().build(clips)
    assert not [path for path in opened if path.suffix == ".mp4"]
    os.utime(clips[0].video, (1, 1))
    assert make().build(clips) == []
    assert [path for path in opened if path.suffix == ".mp4"] == [clips[0].video]


def test_a_killed_build_goes_on(make, clips, decoded, monkeypatch):
    cache = make(shard_bytes=1)  # every clip a shard
    real, calls = VisionCache._encode, []

    def dying(self, *arguments):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("the power went out")
        return real(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(VisionCache, "_encode", dying)
        with pytest.raises(RuntimeError, match="power"):
            cache.build(clips, batch_size=1)
    assert len(make().store) == 2
    (cache.store.folder / ".vision-0-1.safetensors-half").write_bytes(b"half a shard")
    del decoded[:]
    assert make().build(clips) == [] and len(decoded) == 2 and len(make().store) == 4


def test_a_killed_build_goes_on_with_the_same_batches(make, clips, monkeypatch, tmp_path):
    clips[0].video.write_bytes(b"no video")
    real, batches = VisionCache._encode, []

    def noted(self, videos, mask):
        made = real(self, videos, mask)
        if made:
            batches.append(tuple(made))
        return made

    monkeypatch.setattr(VisionCache, "_encode", noted)
    make().build(clips, masks=2, batch_size=2)
    whole = batches.copy()
    assert [len(batch) for batch in whole] == [2, 2, 1, 1]  # of three that can be read, two masks
    shutil.rmtree(tmp_path / "vision")
    del batches[:]

    flush = VisionStore.flush

    def killed(self):
        if list(self.folder.glob("*.safetensors")):
            raise KeyboardInterrupt
        flush(self)

    with monkeypatch.context() as patched:
        patched.setattr(VisionStore, "flush", killed)
        with pytest.raises(KeyboardInterrupt):
            make(shard_bytes=1).build(clips, masks=2, batch_size=2)
    del batches[:]
    failures = make().build(clips, masks=2, batch_size=2)
    assert len(failures) == 1 and len(make().store) == 6
    assert batches == whole[2:]


def test_a_memo_that_can_not_be_written_breaks_no_clip(make, clips, tmp_path, caplog):
    (tmp_path / "vision").mkdir()
    (tmp_path / "vision" / "files.jsonl").mkdir()  # opening it is an OSError, for root too
    assert make().build(clips) == [] and len(make().store) == 4
    assert caplog.text.count("hashes of files are not kept") == 1


def test_shards_that_can_not_be_written_are_an_error(make, clips, tmp_path):
    cache = make()
    (tmp_path / "vision").write_text("in the way")
    with pytest.raises(OSError, match="vision"):
        cache.build(clips)


def test_what_killed_writers_left_goes_when_it_is_old(make, clips):
    cache = make()
    cache.store.folder.mkdir(parents=True)
    old, new = (cache.store.folder / f".vision-{name}.safetensors-0" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half a shard")
    os.utime(old, (0, 0))
    cache.build(clips[:1])
    assert new.exists() and not old.exists()


def test_broken_files_are_failures_and_replaced(make, clips, caplog):
    clips[1].video.write_bytes(b"no video")
    clips[2].video.unlink()
    cache = make()
    failures = cache.build(clips, masks=2, workers=1)
    assert [failure.index for failure in failures] == [1, 2]
    assert "00000b" in failures[0].reason and "No such file" in failures[1].reason
    data = VisionDataset(cache, clips, masks=2, failures=failures)
    items = [data[i] for i in range(4)]
    assert [item["index"] in (0, 3) for item in items] == [True] * 4
    assert items[0]["index"] == 0 and items[3]["index"] == 3 and len(data.failures) == 2
    with pytest.raises(ValueError, match="entries: wanted clips that build"):
        VisionDataset(make(seed=9), clips, failures=failures)
    with pytest.raises(ValueError, match="masks: wanted at least 1, got 0"):
        VisionDataset(cache, clips, masks=0, failures=failures)


def test_epochs_draw_masks_and_batches_are_one_vision(make, clips):
    cache = make()
    cache.build(clips, masks=3)
    data = VisionDataset(cache, clips, masks=3, seed=1)
    seen = {i: set() for i in range(4)}
    for epoch in range(12):
        data.set_epoch(epoch)
        for i in range(4):
            item = data[i]
            assert torch.equal(item["video"].tokens, cache.get(clips[i], data.mask_of(i, data.epoch)).tokens)
            seen[i].add(data.mask_of(i, data.epoch))
    assert all(masks == {0, 1, 2} for masks in seen.values())
    for workers in (0, 1):
        loader = torch.utils.data.DataLoader(
            data, batch_sampler=EpochSampler(4, 4), collate_fn=data.collate, num_workers=workers
        )
        (batch,) = loader
        assert isinstance(batch["video"], Vision) and len(batch["video"]) == 4
        for row, index in enumerate(batch["index"].tolist()):
            assert torch.equal(batch["video"][row].tokens, data[index]["video"].tokens)


def vision(places, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Vision(torch.randn(1, places, 4, generator=generator).to(dtype), torch.ones(1, places, dtype=torch.bool))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_store_gives_back_the_bits(tmp_path, dtype):
    store = VisionStore(tmp_path / "store", shard_bytes=300)
    kept = {f"{n}": vision(5 + n, dtype, n) for n in range(9)}
    for name, one in kept.items():
        store.add(name, one)
    store.flush()
    assert len(list((tmp_path / "store").iterdir())) > 1
    for source in (store, VisionStore(tmp_path / "store"), pickle.loads(pickle.dumps(store))):
        assert len(source) == 9 and set(source) == set(kept) and "9" not in source
        for name, one in kept.items():
            assert torch.equal(source.get(name).tokens, one.tokens) and source.get(name).tokens.dtype == dtype
            assert torch.equal(source.get(name).mask, one.mask)


def test_what_is_added_together_reaches_the_disk_together(tmp_path):
    store = VisionStore(tmp_path, shard_bytes=1)
    store.add("a", vision(3))
    store.update({name: vision(3) for name in "abc"})
    assert [set(VisionStore(tmp_path)), len(list(tmp_path.iterdir()))] == [set("abc"), 2]
    with pytest.raises(ValueError, match="got 2 clips for 'e'"):
        store.update({"d": vision(3), "e": Vision.stack([vision(3), vision(3)])})
    assert "d" not in store


def test_of_two_copies_the_older_counts_for_everybody(tmp_path):
    first, second = VisionStore(tmp_path), VisionStore(tmp_path)  # neither knows of the other
    for seed, store in ((1, first), (2, second)):
        store.add("a", vision(3, seed=seed))
    first.flush()
    second.flush()
    second.refresh()
    for store in (first, second, VisionStore(tmp_path)):
        assert torch.equal(store.get("a").tokens, vision(3, seed=1).tokens)


def test_two_builds_at_once_agree_with_every_later_one(make, clips, monkeypatch):
    one, real = make(), VisionCache._encode

    def late(self, videos, mask):
        if self is one and not late.done:
            late.done = True
            make().build(clips)  # another process, which is ready first
        return {
            name: Vision(found.tokens + (self is one), found.mask) for name, found in real(self, videos, mask).items()
        }

    late.done = False
    monkeypatch.setattr(VisionCache, "_encode", late)
    one.build(clips)
    later = make()
    assert all(torch.equal(one.get(entry).tokens, later.get(entry).tokens) for entry in clips)


def test_a_loader_pins_vision(monkeypatch):
    from torch.utils.data._utils.pin_memory import pin_memory

    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, *a: pinned.append(self) or self.clone())
    batch = {"video": vision(3)}
    found = pin_memory(batch)["video"]
    assert len(pinned) == 2 and found is not batch["video"] and torch.equal(found.tokens, batch["video"].tokens)


def test_a_store_waits_in_memory_until_a_shard_is_full(tmp_path):
    store = VisionStore(tmp_path, shard_bytes=1000)
    batch = Vision.stack([vision(10), vision(10, seed=1)])
    store.add("a", batch[0])
    batch.tokens.zero_()
    assert torch.equal(store.get("a").tokens, vision(10).tokens) and not list(tmp_path.iterdir())
    for n in range(6):
        store.add(f"{n}", vision(10))
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    store.add("a", vision(10, seed=5))  # there already
    assert torch.equal(store.get("a").tokens, vision(10).tokens)
    with pytest.raises(ValueError, match="vision: wanted one clip and a name for it, got 2 clips"):
        store.add("b", batch)
    with pytest.raises(KeyError):
        store.get("b")


def test_a_damaged_shard_is_named(tmp_path):
    store = VisionStore(tmp_path)
    store.add("a", vision(3))
    store.flush()
    (shard,) = tmp_path.iterdir()
    shard.write_bytes(b"no")
    with pytest.raises(ValueError, match=f"vision: .*{shard.name} can't be read.*remove it"):
        VisionStore(tmp_path)


def test_a_full_disk_leaves_no_half_shard(tmp_path):
    resource = pytest.importorskip("resource")
    store = VisionStore(tmp_path)
    store.add("a", vision(1000))
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        with pytest.raises(OSError, match="vision: .*safetensors can't be written: .*File too large"):
            store.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert list(tmp_path.iterdir()) == [] and "a" in store
    store.flush()
    assert torch.equal(VisionStore(tmp_path).get("a").tokens, vision(1000).tokens)


def test_few_shards_are_mapped(tmp_path, monkeypatch):
    from fastvivit.caption import store as file

    monkeypatch.setattr(file, "_OPEN", 2)
    store = VisionStore(tmp_path, shard_bytes=1)
    for n in range(5):
        store.add(f"{n}", vision(3, seed=n))
    found = [store.get(f"{n}") for n in range(5)]  # maps that are gone leave their tokens
    assert len(store._mapped) == 2
    assert all(torch.equal(one.tokens, vision(3, seed=n).tokens) for n, one in enumerate(found))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "int8"}, "dtype: wanted one of 'float32', 'bfloat16', 'float16', got 'int8'"),
        ({"encoder": torch.nn.Linear(1, 1)}, "encoder: wanted a ViViT, got Linear"),
        ({"shard_bytes": 0}, "shard_bytes: wanted at least 1, got 0"),
    ],
)
def test_refusals(make, options, words):
    with pytest.raises(ValueError, match=words):
        make(**options)


@pytest.mark.parametrize(("name", "value", "least"), [("masks", 0, 1), ("batch_size", 0, 1), ("workers", -1, 0)])
def test_numbers_out_of_range_are_refused(make, clips, name, value, least):
    with pytest.raises(ValueError, match=f"{name}: wanted at least {least}, got {value}"):
        make().build(clips, **{name: value})


def test_the_encoder_is_left_in_its_mode(make, model, clips, monkeypatch):
    model.train()
    modes = []
    real = module.draw_masks
    monkeypatch.setattr(module, "draw_masks", lambda *a: modes.append(model.training) or real(*a))
    make().build(clips[:1])
    assert modes == [False] and model.training
