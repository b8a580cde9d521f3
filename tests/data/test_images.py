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


def photo(height=40, width=60):
    """Something smooth, so that lossy formats come close."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 4, columns * 3, 200 - rows * 2 - columns], axis=-1).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("name", "mode", "off"),
    [
        ("a.png", "RGB", 0), ("a.bmp", "RGB", 0), ("a.tiff", "RGB", 0), ("a.jpg", "RGB", 12), ("a.webp", "RGB", 12),
        ("a.png", "L", 0), ("a.jpg", "L", 4), ("a.png", "P", 0), ("a.png", "RGBA", 0), ("a.png", "LA", 0),
        ("a.png", "1", 0),
    ],
)  # fmt: skip
def test_formats_and_modes_come_out_as_rgb(tmp_path, name, mode, off):
    pillow = pytest.importorskip("PIL.Image", reason="Pillow is not installed; it is the reference here")
    image = pillow.fromarray(photo()).convert(mode)
    image.save(tmp_path / name)
    wanted = np.asarray(image.convert("RGB")).astype(int)
    got = read_image(tmp_path / name, (40, 60)).permute(1, 2, 0).numpy()
    assert np.abs(got - wanted).max() <= off
    assert got.shape == (40, 60, 3) and got.std() > 10


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_turns_that_exif_asks_for(tmp_path, suffix, orientation, turns):
    pillow = pytest.importorskip("PIL.Image", reason="Pillow is not installed; it writes EXIF here")
    exif = pillow.Exif()
    exif[0x0112] = orientation
    pillow.fromarray(photo()).save(tmp_path / f"a.{suffix}", exif=exif)
    wanted = np.rot90(photo(), turns).astype(int)
    got = read_image(tmp_path / f"a.{suffix}", wanted.shape[:2]).permute(1, 2, 0).numpy()
    assert np.abs(got - wanted).max() <= 12


@pytest.mark.parametrize("name", ["a%03d.png", "50%.png", "a*.png", "[a].png", "http:a.png"])
def test_names_that_ffmpeg_reads_as_more(tmp_path, picture, name):
    file = write_image(tmp_path / "a.png", picture).rename(tmp_path / name)
    assert torch.equal(read_image(file, (32, 48)).permute(1, 2, 0), torch.from_numpy(picture))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_file_that_was_cut_off_is_an_error(tmp_path, picture, suffix, share):
    """FFmpeg itself would fill up the rest of a JPEG with grey."""
    file = write_image(tmp_path / f"a.{suffix}", picture)
    assert read_image(file, 32).shape == (3, 32, 32)
    with file.open("r+b") as stream:
        stream.truncate(int(file.stat().st_size * share))
    with pytest.raises(VideoError, match=rf"a\.{suffix}"):
        read_image(file, 32)


def test_bytes_behind_a_jpeg_do_no_harm(tmp_path):
    file = write_image(tmp_path / "a.jpg", photo())
    before = read_image(file, 32)
    with file.open("ab") as stream:
        stream.write(b"junk" * 1000)
    assert torch.equal(read_image(file, 32), before)


@pytest.mark.parametrize(
    "wrong", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_refusals(tmp_path, wrong):
    with pytest.raises(ValueError, match=r"picture: wanted uint8 \(H, W, 3\), got"):
        write_image(tmp_path / "a.png", wrong)
    with pytest.raises(ValueError, match="images: wanted at least 1, got 0"):
        write_stills(tmp_path, 0, seed=0)
