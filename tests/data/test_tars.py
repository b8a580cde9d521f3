"""Tar shards: the same items, order and place to go on from as the same data in files; and tars that are not whole."""

from __future__ import annotations

import io
import json
import logging
import os
import random
import shutil
import sys
import tarfile

import pytest
import torch
from torch.utils.data import DataLoader

from fastvivit.data import (
    ClipDataset,
    EpochSampler,
    VideoError,
    collate,
    probe,
    read_clip,
    read_image,
    read_manifest,
    write_image,
)
from fastvivit.data import members as members_module
from fastvivit.data.members import file_stamp, index_tar, open_file

TIMES = [i / 10 for i in range(12)]


@pytest.fixture(scope="module", autouse=True)
def webdataset():
    return pytest.importorskip("webdataset", reason="webdataset is not installed: pip install fastvivit[train]")


def pack(path, files, mode="w", format=tarfile.PAX_FORMAT):
    with tarfile.open(path, mode, format=format) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def clips(encode, tmp_path):
    """Six small videos that differ, by name."""
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(6):
        encode(folder / f"clip{number}.mp4", TIMES[: 6 + number], corner=4 + 4 * number)
    return folder


@pytest.fixture
def both(clips, tmp_path):
    """The same clips as a manifest and as three shards."""
    rows, shards = [], tmp_path / "shards"
    shards.mkdir()
    for shard in range(3):
        files = {}
        for number in (2 * shard, 2 * shard + 1):
            name, about = (
                f"clip{number}.mp4",
                {"caption": [f"one {number}", f"two {number}"], "start": 0.1, "who": "me"},
            )
            rows.append({"video": name} | about)
            files[name] = (clips / name).read_bytes()
            files[f"clip{number}.json"] = json.dumps(about).encode()
        pack(shards / f"train-{shard:04d}.tar", files)
    manifest = clips / "manifest.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)))
    return manifest, shards / "train-{0000..0002}.tar"


def test_items_are_those_of_the_files(both):
    look = dict(frames=4, fps=5.0, size=32, seed=3)
    files, tars = (ClipDataset(source, **look) for source in both)
    assert len(files) == len(tars) == 6
    for index in range(6):
        wanted, got = files[index], tars[index]
        assert torch.equal(wanted.pop("video"), got.pop("video"))
        assert wanted == got
        one, other = files.entries[index], tars.entries[index]
        assert (one.captions, one.start, one.extra) == (other.captions, other.start, other.extra)
        assert one.extra == {"who": "me"}
    assert not torch.equal(tars[0]["video"], tars[1]["video"])  # else nothing was shown


def test_a_folder_means_its_tars_and_a_manifest_may_name_members(both, tmp_path):
    manifest, shards = both
    entries = read_manifest(shards)
    assert read_manifest(shards.parent) == entries
    assert entries[0].video == shards.parent / "train-0000.tar" / "clip0.mp4"
    rows = tmp_path / "shards" / "of members.jsonl"
    rows.write_text(json.dumps({"video": "train-0001.tar/clip3.mp4", "caption": "a", "start": 0.1}))
    (member,) = read_manifest(rows)
    assert member.video == entries[3].video
    assert torch.equal(
        ClipDataset([member], frames=3, size=32)[0]["video"], ClipDataset(manifest, frames=3, size=32)[3]["video"]
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_shuffled_over_all_shards_and_resumed_in_the_middle(both, workers):
    def batches(source, sampler):
        dataset = ClipDataset(source, frames=2, fps=5.0, size=32, seed=1)
        dataset.set_epoch(sampler.epoch)
        return list(DataLoader(dataset, batch_sampler=sampler, num_workers=workers, collate_fn=collate))

    wanted = batches(both[0], EpochSampler(6, 2, seed=5))
    place = EpochSampler(6, 2, seed=5)
    place.advance()
    after = EpochSampler(6, 2, seed=5)
    after.load_state_dict(place.state_dict())
    whole, rest = batches(both[1], EpochSampler(6, 2, seed=5)), batches(both[1], after)
    for found, against in ((whole, wanted), (rest, wanted[1:])):
        assert len(found) == len(against)
        for got, expected in zip(found, against, strict=True):
            assert torch.equal(got["video"], expected["video"]) and got["caption"] == expected["caption"]
            assert torch.equal(got["index"], expected["index"])
            assert torch.equal(got["mask_seed"], expected["mask_seed"])
    order = torch.cat([batch["index"] for batch in whole]).tolist()
    assert sorted(order) == list(range(6)) and order != sorted(order)


@pytest.mark.parametrize(
    "name", ["basketball.mp4", "big_buck_bunny_0_30.webm", "bigbuckbunny.mp4", "box.mp4", "cup.mp4",
             "sintel_trailer_640x360.mp4", "vtest.avi", "world.mp4"],
)  # fmt: skip
def test_real_clips_are_the_same_out_of_a_tar_and_out_of_memory(real, tmp_path, name):
    data = real(name).read_bytes()
    tar = pack(tmp_path / "a, b.tar", {"before.txt": b"x" * 777, name: data, "after.mp4": b"not me" * 999})
    for place in (tar / name, io.BytesIO(data)):
        assert probe(place) == probe(real(name))
        for start in (0.0, 3.3):  # the second is reached by a seek
            assert torch.equal(read_clip(place, 3, 1.0, 64, start), read_clip(real(name), 3, 1.0, 64, start))
    with open_file(tar / name) as member:
        assert member.read() == data


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_images_are_the_same_out_of_a_tar_and_out_of_memory(av, tmp_path, suffix):
    pixels = torch.randint(256, (40, 60, 3), dtype=torch.uint8).numpy()
    file = tmp_path / f"a.{suffix}"
    with av.open(str(file), "w", format="image2", options={"update": "1"}) as container:
        stream = container.add_stream({"png": "png", "jpg": "mjpeg"}[suffix])
        stream.width, stream.height, stream.pix_fmt = 60, 40, {"png": "rgb24", "jpg": "yuvj420p"}[suffix]
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(stream.encode())
    tar = pack(tmp_path / "a.tar", {"x.txt": b"x", file.name: file.read_bytes()})
    wanted = read_image(file, 32)
    assert wanted.float().std() > 10
    assert torch.equal(read_image(tar / file.name, 32), wanted)
    assert torch.equal(read_image(io.BytesIO(file.read_bytes()), 32), wanted)


def test_samples_of_images(clips, tmp_path):
    files, images = {}, [torch.randint(256, (40, 60, 3), dtype=torch.uint8).numpy() for _ in range(3)]
    for key, pixels in enumerate(images):
        file = write_image(tmp_path / f"{key}.png", pixels)
        files |= {file.name: file.read_bytes(), f"{key}.txt": f"image {key}".encode()}
    dataset = ClipDataset(pack(tmp_path / "a.tar", files), frames=4, size=32)
    for key in range(3):
        item = dataset[key]
        assert torch.equal(item["video"], read_image(tmp_path / f"{key}.png", 32)) and item["caption"] == f"image {key}"
    # A picture beside a video is its thumbnail.
    video = (clips / "clip0.mp4").read_bytes()
    (entry,) = read_manifest(pack(tmp_path / "b.tar", {"a.png": files["0.png"], "a.mp4": video, "a.txt": b"a"}))
    assert (entry.kind, entry.video.name) == ("video", "a.mp4")


@pytest.mark.parametrize("codec,suffix", [("libx264", "mkv"), ("mpeg4", "avi"), ("libvpx", "webm")])
def test_patient_reading_begins_again_in_a_tar(encode, tmp_path, codec, suffix):
    # Half of a file is damaged at its end: it is read twice, the second time from its beginning.
    file = encode(tmp_path / f"a.{suffix}", [i / 10 for i in range(30)], codec)
    data = file.read_bytes()[: int(file.stat().st_size * 0.6)]
    file.write_bytes(data)
    tar = pack(tmp_path / "a.tar", {f"a.{suffix}": data, "b.txt": b"b"})

    def outcome(place):
        try:
            return read_clip(place, 20, 10.0, 32).flatten().tolist()
        except VideoError as error:
            return str(error).replace(str(place), "it").replace("a BytesIO", "it")

    assert outcome(tar / f"a.{suffix}") == outcome(file) == outcome(io.BytesIO(data))


def test_bytes_read_in_place_are_those_of_the_member(tmp_path):
    chance = random.Random(0)
    files = {f"deep/er/file {i}.bin": chance.randbytes(chance.choice([0, 1, 511, 512, 513, 5000])) for i in range(20)}
    files["./here.bin"] = b"here"
    files["long" * 40 + ".bin"] = b"by a second header"
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        tar = pack(tmp_path / f"{form}.tar", files, format=form)
        for name, data in files.items():
            assert file_stamp(tar / name)[0] == len(data)
            with open_file(tar / name) as member:
                assert member.read() == data
                for _ in range(5):
                    at, count = chance.randrange(len(data) + 9), chance.randrange(600)
                    assert member.seek(at) == at
                    part = data[at : at + count]
                    assert member.read(count) == part and member.tell() == at + len(part)
                assert member.seek(0, os.SEEK_END) == len(data)
    with pytest.raises(FileNotFoundError, match="no such member"):
        open_file(tar / "other.bin")


def test_the_index_is_made_once_and_again_when_the_tar_changes(tmp_path, monkeypatch):
    tar = pack(tmp_path / "a.tar", {"a.txt": b"one"})
    walks = []
    walk = members_module._walk
    monkeypatch.setattr(members_module, "_walk", lambda *about: walks.append(about) or walk(*about))
    first = index_tar(tar)
    assert (tmp_path / "a.tar.index.json").is_file() and index_tar(tar).texts == first.texts == {"a.txt": "one"}
    assert len(walks) == 1
    pack(tar, {"b.txt": b"other", "a.txt": b"two"})
    assert index_tar(tar).texts == {"a.txt": "two", "b.txt": "other"} and len(walks) == 2
    with open_file(tar / "a.txt") as member:
        assert member.read() == b"two"
    (tmp_path / "a.tar.index.json").write_text("{half of")
    assert index_tar(tar).texts["a.txt"] == "two" and len(walks) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "a.tar.index.json"]


def test_captions_of_a_sample(clips, tmp_path, caplog):
    data = (clips / "clip0.mp4").read_bytes()
    tar = pack(
        tmp_path / "a.tar",
        {
            "a.mp4": data, "a.txt": b" of a text\n",
            "b.json": b'{"caption": "of json", "video": "https://there"}', "b.MP4": data, "b.txt": b"not me",
            "c.mp4": data, "c.json": b'{"captions": ["one", "two"], "end": 0.5}',
            "d.mp4": data, "d.json": b'{"caption": null}', "d.txt": b"of a text",
            "e.mp4": data, "e.txt": b" ",
            "f.json": b'{"caption": "its video is gone"}',
            "__meta__": b"{}",
        },
    )  # fmt: skip
    with caplog.at_level(logging.WARNING):
        entries = read_manifest(tar)
    assert [entry.captions for entry in entries] == [("of a text",), ("of json",), ("one", "two"), ("of a text",)]
    assert [entry.video.name for entry in entries] == ["a.mp4", "b.MP4", "c.mp4", "d.mp4"]
    assert entries[2].end == 0.5 and "passed over samples: 1 without a video or image and 1 without" in caplog.text


def test_damaged_members_are_failures_like_damaged_files(clips, tmp_path):
    good = (clips / "clip0.mp4").read_bytes()
    texts = {f"{key}.txt": key.encode() for key in "abc"}
    tar = pack(tmp_path / "a.tar", dict(sorted(({"a.mp4": b"no video", "b.mp4": good, "c.mp4": b""} | texts).items())))
    dataset = ClipDataset(tar, frames=2, size=32)
    assert [dataset[index]["caption"] for index in range(3)] == ["b"] * 3
    assert {name.rsplit("/")[-1] for name in dataset.failures} == {"a.mp4", "c.mp4"}
    with pytest.raises(VideoError, match=r"a\.tar/d\.mp4: the tar has no such member"):
        read_clip(tar / "d.mp4", 1)


def test_bad_tars_are_named(clips, tmp_path):
    good = {"a.mp4": (clips / "clip0.mp4").read_bytes(), "a.txt": b"a"} | {f"{i}.txt": b"x" * 600 for i in range(9)}
    tar = tmp_path / "bad.tar"

    def refused(message, **files):
        with pytest.raises(ValueError, match=rf"bad.*{message}"):
            read_manifest(tar)

    tar.write_bytes(b"this is no tar" * 500)
    refused("wanted an uncompressed tar")
    tar.write_bytes(b"")
    refused("wanted")
    whole = pack(tar, good).read_bytes()
    assert read_manifest(tar)
    tar.write_bytes(whole[: len(whole) // 2])
    refused("wanted an uncompressed tar that is whole")
    spoiled = bytearray(whole)
    spoiled[index_tar(pack(tar, good)).members["4.txt"][0] - 512 + 5] ^= 255
    tar.write_bytes(spoiled)
    refused("header at byte .* is damaged")
    with pytest.raises(VideoError, match="header at byte"):
        read_clip(tar / "a.mp4", 1)
    pack(tar, good, "w:gz")
    refused("compressed")
    shutil.copyfile(tar, tmp_path / "bad.tar.gz")
    with pytest.raises(ValueError, match=r"bad\.tar\.gz.*compressed"):
        read_manifest(tmp_path / "bad.tar.gz")
    for files, message in (
        ({"a.mp4": b"1", "./a.mp4": b"2"}, "'a.mp4' twice"),
        ({"a.mp4": b"1", "a.MP4": b"2"}, "duplicate file name"),
        ({"a.mp4": b"1", "a.webm": b"2", "a.txt": b"a"}, "'a': wanted one video"),
        ({"a.mp4": b"1", "a.json": b"[1]"}, r"a\.json: wanted a JSON object, got list"),
        ({"a.mp4": b"1", "a.json": b"{"}, r"a\.json: wanted JSON"),
        ({"a.mp4": b"1", "a.txt": b"\xff"}, r"a\.txt: wanted UTF-8"),
        ({"a.mp4": b"1", "a.json": b'{"caption": "a", "start": -1}'}, "sample 'a': start"),
        ({"a.txt": b"a"}, "wanted at least one sample"),
    ):
        pack(tar, files)
        refused(message)


def test_sources_that_are_no_tars_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    for source, message in (
        (tmp_path / "empty", "the folder has none"),
        (tmp_path / "a-{00..03}.tar", r"no such file: .*a-00\.tar"),
        (tmp_path / "a-{0.tar", "wanted balanced braces"),
    ):
        with pytest.raises(ValueError, match=message):
            read_manifest(source)


def test_a_file_object_must_seek():
    class Pipe(io.RawIOBase):
        def seekable(self):
            return False

    with pytest.raises(VideoError, match="file object that can seek, got a Pipe"):
        read_clip(Pipe(), 1)
    with pytest.raises(VideoError, match="wanted a path or a binary file object that can seek, got a bytes"):
        read_clip(b"no path", 1)
    with pytest.raises(VideoError, match="a BytesIO is empty"):
        probe(io.BytesIO())


def test_without_the_library_the_message_says_how_to_get_it(tmp_path, monkeypatch):
    tar = pack(tmp_path / "a.tar", {"a.mp4": b"1", "a.txt": b"a"})
    for name in ("webdataset", "webdataset.tariterators"):
        monkeypatch.setitem(sys.modules, name, None)
    for source in (tar, tmp_path):
        with pytest.raises(ImportError, match=r"tar shards needs webdataset .*pip install fastvivit\[train\]"):
            read_manifest(source)
    with open_file(tar / "a.txt") as member:  # a manifest that names members needs no library
        assert member.read() == b"a"


def test_a_member_whose_name_is_not_utf8(clips, tmp_path):
    video = (clips / "clip0.mp4").read_bytes()
    name = os.fsdecode(b"caf\xe9")
    tar = pack(tmp_path / "odd.tar", {f"{name}.mp4": video, f"{name}.txt": b"a cup"}, format=tarfile.GNU_FORMAT)
    for _ in range(2):  # by its headers, then by the index beside it
        (entry,) = read_manifest(tar)
        assert entry.video.name == f"{name}.mp4" and entry.captions == ("a cup",)
    assert tar.with_name("odd.tar.index.json").is_file()
    assert torch.equal(read_clip(entry.video, 2, 1.0, 32), read_clip(clips / "clip0.mp4", 2, 1.0, 32))
