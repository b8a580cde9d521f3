"""What a run takes over from ``start``, what it refuses, and what it scores."""

import dataclasses
import re

import pytest
import torch

import fastvivit as fv
from fastvivit.data import DigitsConfig, write_stills
from fastvivit.data.shards import pack
from fastvivit.modules.tubelets import Tubelets
from fastvivit.train import SourceConfig, fit, read_metrics
from fastvivit.train.stages import make_stage
from fastvivit.train.start import tune_encoder
from fastvivit.train.tables import TuningConfig


@pytest.fixture(scope="module")
def stills(digits, tmp_path_factory):
    return write_stills(tmp_path_factory.mktemp("stills"), 12, seed=0, config=DigitsConfig(size=32, digit=16, step=8))


@pytest.fixture
def made(config, tmp_path, change):
    """The folder of a dual encoder, with an auxiliary head or without, and a run that starts from it."""

    def make(**changes):
        model = make_stage(change(config, **changes)).build(tmp_path)
        folder = fv.save_pretrained(model, tmp_path / "start")
        return model, change(config, model=None, start=str(folder), steps=3)

    return make


@pytest.mark.parametrize(
    ("tuning", "words"),
    [
        ({"method": "lora"}, "tuning.method: wanted 'all' for an encoder from scratch, got 'lora'"),
        ({"text": False}, "tuning.text: wanted true for a text tower from scratch, got false"),
    ],
)
def test_nothing_from_scratch_is_frozen(config, tmp_path, change, tuning, words):
    with pytest.raises(ValueError, match=words):
        fit(change(config, tuning=tuning), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("loss", "changes", "words"),
    [
        ("infonce", {"loss": "siglip"}, "loss: wanted None or 'infonce', which .* was trained with, got 'siglip'"),
        ("siglip", {"loss": "infonce"}, "loss: wanted None or 'siglip', which .* was trained with, got 'infonce'"),
        ("infonce", {"text": {"folder": "bert"}}, "text.folder: wanted None with a start that has its own text tower"),
        ("infonce", {"dim": 24}, "dim: wanted the 16 of .*, or none said, got 24"),
    ],
)
def test_a_start_of_another_space_is_refused_at_once(made, tmp_path, change, loss, changes, words):
    _, again = made(loss=loss)
    with pytest.raises(ValueError, match=words):
        fit(change(again, **changes), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_an_auxiliary_loss_begins_goes_on_and_ends_as_the_run_says(made, tmp_path, change):
    before, again = made(auxiliary={"kind": "mlm", "depth": 1})
    weight = before.auxiliary.out.weight
    lighter = make_stage(change(again, auxiliary={"kind": "mlm", "depth": 1, "weight": 0.5})).build(tmp_path)
    assert torch.equal(lighter.auxiliary.out.weight, weight) and lighter.auxiliary.config.weight == 0.5
    deeper = make_stage(change(again, auxiliary={"kind": "mlm", "depth": 2})).build(tmp_path)
    assert len(deeper.auxiliary.layers) == 2
    assert make_stage(again).build(tmp_path).auxiliary is None
    rows = read_metrics(fit(again, tmp_path / "without", quiet=True))
    assert not any({"mlm", "contrastive"} & row.keys() for row in rows)
    captions = change(again, start=str(tmp_path / "without"), auxiliary={"kind": "captioning", "depth": 1})
    assert all("captioning" in row for row in read_metrics(fit(captions, tmp_path / "captions", quiet=True)))


def test_adapters_go_on_as_wide_as_they_are_and_with_the_images_there_are():
    encoder = fv.ViViT(fv.ViViTConfig(frames=4, size=32, width=32, depth=2, heads=2, ff=64))
    tune_encoder(encoder, TuningConfig(method="adapters", width=8), images=False)
    assert not encoder.image.weight.requires_grad
    tune_encoder(encoder, TuningConfig(method="adapters"), images=True)
    assert encoder.image.weight.requires_grad and encoder.tuning["images"]
    assert [name for name, p in encoder.named_parameters() if p.requires_grad and ".adapter." in name]
    with pytest.raises(ValueError, match="tuning.width: wanted None or the 8 of the adapters of start, got 16"):
        tune_encoder(encoder, TuningConfig(method="adapters", width=16), images=True)


def test_what_cannot_be_scored_is_refused_before_the_first_step(config, digits, stills, change):
    images = change(config, data={"heldout": str(stills)})
    with pytest.raises(ValueError, match="data.heldout: wanted clips, as what is trained on, got images"):
        make_stage(images)
    clips = change(config, stage="images", data={"train": str(stills), "pair_twins": False}, mask={"ratio": 0.0})
    with pytest.raises(ValueError, match="data.heldout: wanted images, as what is trained on, got clips"):
        make_stage(clips)


def test_no_captioner_of_an_encoder_that_has_seen_images_alone(config, captioning, stills, tmp_path, change):
    data = {"train": str(stills), "heldout": None, "pair_twins": False}
    run = fit(change(config, stage="images", data=data, mask={"ratio": 0.0}, steps=3), tmp_path / "images", quiet=True)
    with pytest.raises(ValueError, match=f"start: wanted an encoder of clips, .*{re.escape(str(run))}"):
        make_stage(change(captioning, start=str(run)))


def test_scores_are_taken_in_the_precision_of_the_run(config, tmp_path, change):
    class Spy(torch.nn.Module):
        def forward(self, x):
            seen.append(torch.is_autocast_enabled("cpu"))
            return x

    for precision, wanted in (("bfloat16", True), ("float32", False)):
        stage, seen = make_stage(change(config, run={"precision": precision})), []
        model = stage.build(tmp_path)
        model.video.norm = torch.nn.Sequential(model.video.norm, Spy())
        found = stage.evaluate(model, last=True)
        assert seen and set(seen) == {wanted}
        assert found.similarity.dtype == torch.float32


def test_a_chunk_of_images_has_the_tokens_of_a_chunk_of_clips(config, digits, stills, tmp_path, change):
    """8 frames, 32 pixels: 16 tokens of a clip, of which masks leave some; 4 of an image."""
    sources = (SourceConfig(path=str(digits[0]), batch=4), SourceConfig(path=str(stills), batch=4, mask_ratio=0.0))
    both = change(
        config,
        batch_size=8,
        data={"train": None, "sources": sources, "pair_twins": False},
        memory={"chunk": 3},
        model=config.model.replace(images=True),
    )
    for ratio, images in ((0.0, 12), (0.5, 6), (0.75, 3), (0.9, 3)):
        stage = make_stage(change(both, mask={"ratio": ratio}))
        model = stage.build(tmp_path)
        batches = [
            dataset.collate([dataset[i, 0] for i in range(4)]) | {"source": number}
            for number, dataset in enumerate(stage.sources)
        ]
        parts = stage._parts(model, batches)
        assert stage._chunks(model, parts) == [3, images]
        whole = Tubelets.from_clips(parts[0].video, parts[0].keep, config.model.tubelet)
        packed = [dataclasses.replace(parts[0], video=whole, keep=None), parts[1]]
        assert stage._chunks(model, packed) == [3, images]
        assert stage._chunks(model, parts[1:]) == [3]  # images alone are what is counted


def test_packed_images_are_masked_as_decoded_ones(config, stills, tmp_path, change):
    """Of one slot frames are all there is, so that both ways drop random patches."""
    pack(stills, tmp_path / "packed", frames=1, fps=1.0, size=32)
    data = {"heldout": None, "pair_twins": False}
    runs = {}
    for name, path in (("decoded", stills), ("packed", tmp_path / "packed")):
        images = change(config, stage="images", data=data | {"train": str(path)}, mask={"strategy": "frame"}, steps=3)
        runs[name] = [row["loss"] for row in read_metrics(fit(images, tmp_path / f"run {name}", quiet=True))]
    assert runs["packed"] == runs["decoded"]
