"""Images in manifests, data sets and batches."""

import numpy as np
import pytest
import torch

from fastvivit.data import (
    ClipDataset,
    Entry,
    VideoError,
    read_image,
    read_manifest,
    write_image,
    write_manifest,
    write_stills,
)

pytest.importorskip("av", reason="PyAV is not installed: pip install fastvivit[video]")


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)


def test_an_image_comes_back(tmp_path, picture):
    file = write_image(tmp_path / "a.png", picture)
    read = read_image(file, (32, 48))
    assert read.shape == (3, 32, 48) and torch.equal(read.permute(1, 2, 0), torch.from_numpy(picture))
    centre = read_image(file, 32)
    assert torch.equal(centre, read[..., 8:40])


def test_a_manifest_of_images(tmp_path, picture):
    file = write_image(tmp_path / "a.png", picture)
    entries = [Entry(video=file, kind="image", captions=("one", "two"), extra={"from": "here"})]
    written = write_manifest(tmp_path / "m.jsonl", entries)
    assert written.read_text() == '{"image": "a.png", "caption": ["one", "two"], "from": "here"}\n'
    assert read_manifest(written) == entries
    (tmp_path / "m.csv").write_text("image,caption\na.png,one\n")
    assert [entry.kind for entry in read_manifest(tmp_path / "m.csv")] == ["image"]


def test_a_data_set_of_images(tmp_path):
    data = ClipDataset(write_stills(tmp_path, 5, seed=3), frames=16, size=64)
    assert data.kind == "image"
    items = [data[i] for i in range(5)]
    batch = data.collate(items)
    assert batch["video"].shape == (5, 3, 64, 64) and batch["video"].dtype == torch.uint8
    assert all(torch.equal(batch["video"][i], items[i]["video"]) for i in range(5))
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    assert [item["caption"] for item in items] == [f"the digit {words[e.extra['first']]}" for e in data.entries]
    # A digit is on each, and another one where another is said.
    assert all(item["video"].max() > 100 for item in items)


def test_a_broken_image_is_replaced(tmp_path):
    manifest = write_stills(tmp_path, 3, seed=3)
    (tmp_path / "00001.png").write_bytes(b"no image")
    data = ClipDataset(manifest, frames=1, size=64)
    item = data[1]
    assert item["index"] != 1 and item["failures"][0].index == 1
    with pytest.raises(VideoError):
        read_image(tmp_path / "00001.png", 64)


def test_clips_and_images_are_two_sources(tmp_path):
    entries = [
        Entry(video=tmp_path / name, kind=kind, captions=("x",)) for name, kind in (("a", "video"), ("b", "image"))
    ]
    with pytest.raises(ValueError, match="source: wanted clips or images, got both; give them as two sources"):
        ClipDataset(entries, frames=1)


@pytest.mark.parametrize(
    "wrong", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_refusals(tmp_path, wrong):
    with pytest.raises(ValueError, match=r"picture: wanted uint8 \(H, W, 3\), got"):
        write_image(tmp_path / "a.png", wrong)
    with pytest.raises(ValueError, match="images: wanted at least 1, got 0"):
        write_stills(tmp_path, 0, seed=0)
