"""What a training config says of a step: its sources as parts, whether their data exist yet or not."""

import io
import json
import tarfile
from dataclasses import replace

import pytest

import fastvivit as fv
from fastvivit.data.shards.files import INDEX
from fastvivit.planning.from_training import settings_of
from fastvivit.planning.kinds import kind_of
from fastvivit.planning.parts import Part

CFG = fv.ViViTConfig(frames=8, size=64, tubelet=(2, 8, 8), width=64, depth=3, heads=4, ff=128)
TEXT = {"width": 64, "depth": 2, "heads": 4, "max_length": 12}


def tar(path, names):
    with tarfile.open(path, "w") as target:
        for name in names:
            target.addfile(tarfile.TarInfo(name), io.BytesIO())


def folder_of_sources(folder):
    for name, shape in (("packed-clips", [8, 64, 64]), ("packed-images", [64, 64])):
        (folder / name).mkdir()
        (folder / name / INDEX).write_text(json.dumps({"shape": shape}))
    (folder / "clips.jsonl").write_text('\n{"video": "a.mp4", "caption": "a"}\n')
    (folder / "images.jsonl").write_text('{"image": "a.png", "caption": "a"}\nnot read\n')
    (folder / "images.csv").write_text("image,caption\na.png,a\n")
    tar(folder / "both-00.tar", ["./a.json", "a.jpg", "a.mp4", "b.jpg"])
    tar(folder / "images-00.tar", ["x/a.txt", "x/a.PNG", "x/b.mp4"])
    (folder / "bad.jsonl").write_text("{")
    (folder / "empty").mkdir()
    return folder


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("packed-clips", "video"),
        ("packed-images", "image"),
        ("clips.jsonl", "video"),
        ("images.jsonl", "image"),
        ("images.csv", "image"),
        ("both-{00..03}.tar", "video"),
        ("images-{00,01}.tar", "image"),
        ("images-00.tar", "image"),
        ("bad.jsonl", None),
        ("empty", None),
        ("missing.jsonl", None),
        ("missing-{0..3}.tar", None),
    ],
)
def test_the_kind_of_a_source_is_that_of_its_first_sample(tmp_path, name, kind):
    assert kind_of(str(folder_of_sources(tmp_path) / name)) == kind


def test_sources_are_parts_and_one_that_is_not_there_is_clips(tmp_path):
    folder = folder_of_sources(tmp_path)
    sources = [
        {"path": str(folder / "packed-clips"), "batch": 8},
        {"path": str(folder / "images.jsonl"), "batch": 16, "mask_ratio": 0.5},
        {"path": str(folder / "later.jsonl"), "batch": 4, "weight": 2.0},
    ]
    config = fv.train.TrainConfig.for_stage(
        "image_to_video", data={"sources": sources}, batch_size=28, model=CFG, text=TEXT, auxiliary={"kind": "mlm"}
    )
    found = fv.plan(config)
    assert found.step.parts == (
        Part(batch=8, mask_ratio=0.75, pixels="tubelets"),
        Part(batch=16, mask_ratio=0.5, images=True),
        Part(batch=4, mask_ratio=0.75),
    )
    assert found.tokens == (64, 32, 64)
    missing = f"nothing to read in {folder / 'later.jsonl'} yet: planned for as clips"
    assert found.notes == (missing, "the auxiliary head (mlm) is not in these figures")
    lines = str(found).splitlines()
    assert f"note: {missing}" in lines
    assert lines[1:4] == [
        "8 clips of 8 x 64 x 64, 75% masked: 64 tokens",
        "16 images of 64 x 64, 50% masked: 32 tokens",
        "4 clips of 8 x 64 x 64, 75% masked: 64 tokens",
    ]
    told = json.loads(json.dumps(found.to_dict()))
    assert told["step"]["parts"][1] == {"batch": 16, "mask_ratio": 0.5, "images": True, "pixels": "clips"}


def test_what_is_given_goes_for_every_part(tmp_path):
    folder = folder_of_sources(tmp_path)
    sources = [{"path": str(folder / name), "batch": 4} for name in ("clips.jsonl", "images.jsonl")]
    config = fv.train.TrainConfig.for_stage(
        "image_to_video", data={"sources": sources}, batch_size=8, model=CFG, text=TEXT, memory={"chunk": 1}
    )
    step = fv.plan(config, batch=12, mask_ratio=0.5, pixels="tubelets", chunk=2, text="none").step
    assert step.each == tuple(
        replace(step, parts=(), batch=6, mask_ratio=0.5, images=images, pixels="tubelets", chunk=chunk)
        for images, chunk in ((False, 2), (True, 8))
    )


def test_one_source_is_no_mixed_batch_and_may_be_images(tmp_path):
    folder = folder_of_sources(tmp_path)
    config = fv.train.TrainConfig.for_stage(
        "image_to_video", data={"train": str(folder / "images.jsonl")}, batch_size=8, model=CFG, text=TEXT
    )
    found = fv.plan(config)
    assert found.step.images and not found.step.parts and found.tokens == 16 and not found.notes
    images = {"stage": "images", "steps": 9, "schedule": {"warmup": 1}, "data": {"train": "later.jsonl"}}
    later = fv.train.TrainConfig.for_stage(**images, model=CFG, text=TEXT)
    settings, notes = settings_of(later)
    assert settings["images"] and not notes


def test_images_for_an_encoder_without_a_path_are_refused(tmp_path):
    folder = folder_of_sources(tmp_path)
    sources = [{"path": str(folder / name), "batch": 4} for name in ("clips.jsonl", "images.jsonl")]
    config = fv.train.TrainConfig.for_stage(
        "image_to_video", data={"sources": sources}, batch_size=8, model=CFG.replace(images=False), text=TEXT
    )
    with pytest.raises(ValueError, match="images: wanted a config with images=True"):
        fv.plan(config)
