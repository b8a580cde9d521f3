"""fv.hf's classes: transformers' own, accelerated from the start."""

import json

import pytest
import torch

import fastvivit as fv
from tests.hf.tiny import SIZES, clips, filled, near, transformers

NAMES = ["VivitModel", "VivitForVideoClassification"]
NORM = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}


def made(kind):
    return filled(kind(transformers.VivitConfig(**{**SIZES, "tubelet_size": [2, 8, 8]})))


def first(out):
    return out.logits if "logits" in out else out.last_hidden_state


@pytest.mark.parametrize("name", NAMES)
def test_files_go_both_ways(name, tmp_path):
    ours, theirs, video = getattr(fv.hf, name), getattr(transformers, name), clips()
    assert issubclass(ours, theirs)
    model = made(ours)
    model.save_pretrained(tmp_path / "ours")
    made(theirs).save_pretrained(tmp_path / "theirs")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "theirs" / file).read_bytes()
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["architectures"] == [name]
    back, info = ours.from_pretrained(tmp_path / "theirs", output_loading_info=True, **NORM)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    want = first(theirs.from_pretrained(tmp_path / "ours").eval()(video))
    near(first(model(video)), want)
    near(first(back.eval()(video)), want)
    pixels = torch.randint(256, (2, 4, 3, 32, 32), dtype=torch.uint8)
    mean, std = (torch.tensor(NORM[key]).view(3, 1, 1) for key in ("mean", "std"))
    near(first(back(pixels)), first(back((pixels / 255 - mean) / std)))
    assert first(back(video, mask_ratio=0.75)).shape[0] == 2


def test_a_bare_model_from_a_classifiers_file(tmp_path):
    made(transformers.VivitForVideoClassification).save_pretrained(tmp_path)
    loads = [
        kind.from_pretrained(tmp_path, add_pooling_layer=False).eval()
        for kind in (transformers.VivitModel, fv.hf.VivitModel)
    ]
    want, got = (model(clips_of_one()).last_hidden_state for model in loads)
    near(got, want)


def clips_of_one():
    return torch.linspace(-1, 1, 4 * 3 * 32 * 32).view(1, 4, 3, 32, 32)


def test_pictures_of_bytes_need_mean_and_std():
    model = made(fv.hf.VivitModel)
    with pytest.raises(ValueError, match="pixel_values: wanted floats, or mean= and std="):
        model(clips().to(torch.uint8))


def test_they_can_be_restored():
    model = made(fv.hf.VivitModel)
    fv.restore(model)
    assert "forward" not in model.__dict__


def test_nothing_else_is_there():
    with pytest.raises(AttributeError, match="no attribute 'BertModel'"):
        fv.hf.BertModel  # noqa: B018
