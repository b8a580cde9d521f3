"""The stages of a dual encoder: what each begins with, what it trains, what it leaves for the next."""

import dataclasses
import json

import pytest
import torch

import fastvivit as fv
import fastvivit.functional as F
from fastvivit.data import DigitsConfig, write_stills
from fastvivit.data.shards import pack
from fastvivit.models import ViViTConfig
from fastvivit.train import SourceConfig, TrainConfig, fit, read_metrics
from fastvivit.train.checkpoint import latest_checkpoint
from fastvivit.train.presets import TABLE_4
from fastvivit.train.stages import make_stage
from fastvivit.train.start import begin_from_images, tune_encoder
from fastvivit.train.tables import TuningConfig
from tests.train.test_resume import same, stop_after


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("stages")


@pytest.fixture
def short(config, shared):
    """A run on clips of 8 frames, taken once."""
    out = shared / "short"
    if not (out / "report.html").is_file():
        fit(config, out, quiet=True)
    return out


@pytest.fixture
def long(config, short):
    """Goes on with it on 16 frames, its last block tuned."""
    return TrainConfig.for_stage(
        "short_to_long",
        start=str(short),
        frames=16,
        steps=4,
        batch_size=6,
        dim=512,
        data=config.data,
        schedule={"warmup": 1},
        tuning={"layers": 1},
        optimiser={"lr": 1e-3},
        run=config.run,
    )


@pytest.fixture(scope="module")
def stills(digits, tmp_path_factory):
    return write_stills(tmp_path_factory.mktemp("stills"), 12, seed=0, config=DigitsConfig(size=32, digit=16, step=8))


def test_presets_are_the_papers():
    long = TrainConfig.for_stage("short_to_long", start="x", data={"train": "a.jsonl"})
    assert (long.steps, long.batch_size, long.mask.ratio) == (50_000, 512, 0.75)
    assert (long.tuning.method, long.tuning.layers, long.optimiser.lr) == ("last_layers", 4, 5e-5)
    video = TrainConfig.for_stage("image_to_video", data={"train": "a.jsonl"})
    assert (video.steps, video.batch_size, video.schedule.warmup) == (800_000, 512, 1000)
    assert TABLE_4["images"]["batch_size"] == 8192  # appendix C.1: "8k vs 512"


def test_short_to_long_extends_and_tunes_the_last_layers(long, short, tmp_path):
    before = fv.load_pretrained(short / "model")
    after = fv.load_pretrained(fit(long, tmp_path / "long", quiet=True) / "model")
    assert after.video.config.frames == 16 and after.video.tuning["method"] == "last_layers"
    grid = before.video.config.grid
    extended = F.resize_positions(before.video.embed.pos, grid, (8, *grid[1:]))
    assert torch.equal(after.video.embed.pos, extended)  # no gradient reaches them
    assert torch.equal(after.video.embed.weight, before.video.embed.weight)
    old = dict(before.named_parameters())
    moved = {name for name, p in after.named_parameters() if not torch.equal(p, old[name])}
    assert {"video.blocks.0.mlp.fc1.weight", "video.norm.weight", "video_proj.weight", "logit_scale"} <= moved
    assert any(name.startswith("text.") for name in moved)
    assert read_metrics(tmp_path / "long")[-1]["eval_clips"] == 8


def test_a_frozen_text_tower_stays(long, short, tmp_path, change):
    long = change(long, tuning={"text": False})
    after = fv.load_pretrained(fit(long, tmp_path / "long", quiet=True) / "model")
    before = fv.load_pretrained(short / "model")
    assert all(torch.equal(p, before.get_parameter(f"text.{name}")) for name, p in after.text.named_parameters())


def test_short_to_long_resumes_to_the_bit(long, tmp_path, monkeypatch, change):
    long = change(long, run={"save_every": 2})
    whole = fit(long, tmp_path / "whole", quiet=True)
    with monkeypatch.context() as patched:
        stop_after(patched, 3)
        with pytest.raises(RuntimeError, match="power"):
            fit(long, tmp_path / "cut", quiet=True)
    same(whole, fit(long, tmp_path / "cut", resume=True, quiet=True))


@pytest.mark.parametrize("method", ["adapters", "lora"])
def test_adapters_go_on_and_lora_is_folded_in(long, tmp_path, change, method):
    long = change(long, tuning={"method": method, "rank": 4})
    first = fit(long, tmp_path / "first", quiet=True)
    trained = fv.load_pretrained(first / "model")
    assert trained.video.tuning["method"] == f"add_{method}"
    again = dataclasses.replace(long, start=str(first))
    begun = make_stage(again).build(tmp_path)
    video = torch.randint(0, 256, (2, 3, 16, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(begun.eval().encode_video(video), trained.encode_video(video), atol=1e-5, rtol=1e-5)
    if method == "adapters":
        with pytest.raises(ValueError, match="tuning.method: wanted 'adapters' for an encoder that has them"):
            make_stage(change(again, tuning={"method": "all"})).build(tmp_path)


def test_all_frees_what_was_frozen():
    encoder = fv.ViViT(ViViTConfig(frames=4, size=32, width=32, depth=2, heads=2, ff=64, drop_path=0.2))
    fv.tune.last_layers(encoder, 1)
    assert encoder.blocks[0].drop_path.rate == 0.0
    tune_encoder(encoder, TuningConfig(), images=False)
    assert all(p.requires_grad for p in encoder.parameters()) and encoder.tuning is None
    assert [block.drop_path.rate for block in encoder.blocks] == list(encoder.config.drop_rates)


@pytest.mark.parametrize(
    ("attention", "positions"),
    [("joint", "full"), ("joint", "factorised"), ("frame", "full"), ("factorised", "full")],
)
def test_a_still_clip_is_its_image(attention, positions):
    """Inflated kernels and repeated positions: every slot of a still clip has the image's embedded tokens."""
    torch.manual_seed(0)
    config = ViViTConfig(frames=8, size=32, width=32, depth=2, heads=2, ff=64, attention=attention, positions=positions)
    encoder = fv.ViViT(config).eval()
    begin_from_images(encoder, "average", 0.0)
    image = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    clip = image.unsqueeze(2).expand(-1, -1, 8, -1, -1)
    views = encoder.config.views
    embedded = encoder.embed(clip, None, views).unflatten(1, views[0][:1] + (-1,))
    still = encoder.image(image, None, encoder.image.views((1, 32, 32)))
    torch.testing.assert_close(embedded, still.unsqueeze(1).expand_as(embedded), atol=1e-5, rtol=1e-5)
    if attention == "frame":  # and so has the whole encoder
        torch.testing.assert_close(encoder(clip).pooled, encoder(image).pooled, atol=1e-5, rtol=1e-5)


def test_image_to_video_from_another_librarys_encoder(config, tmp_path, change, capsys):
    transformers = pytest.importorskip("transformers")
    vit = transformers.ViTModel(
        transformers.ViTConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32
        )
    )
    vit.save_pretrained(tmp_path / "vit")
    processor = {"do_normalize": True, "image_mean": [0.25] * 3, "image_std": [0.5] * 3}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(processor))
    config = change(config, stage="image_to_video", start=str(tmp_path / "vit"), steps=3)
    out = fit(config, tmp_path / "run")
    assert "start: the source's bytes become pixels by mean [0.25, 0.25, 0.25]" in capsys.readouterr().err
    model = fv.load_pretrained(out / "model")
    assert (model.video.config.depth, model.video.config.frames) == (2, 8)  # the source's, ours
    begun = make_stage(config).build(tmp_path).video
    inflated = F.inflate(vit.embeddings.patch_embeddings.projection.weight, 2)
    assert torch.equal(begun.embed.weight, inflated)
    slots = begun.embed.pos.unflatten(0, (4, -1))
    assert (slots[1] - slots[0]).std(0).max() < 1e-6 < (slots[1] - slots[0]).abs().max()  # an offset a slot: time_std


def test_images_then_image_to_video_then_longer(config, digits, stills, tmp_path, change):
    """The paper's chain: images alone, images beside clips, longer clips; each starts from the folder before."""
    train, heldout = digits
    images = change(
        config,
        stage="images",
        batch_size=8,
        steps=6,
        data={"train": str(stills), "heldout": str(stills), "pair_twins": False},
        mask={"ratio": 0.0},
    )
    first = fit(images, tmp_path / "images", quiet=True)
    alone = fv.load_pretrained(first / "model")
    assert {"eval_t2v_r1", "eval_clips"} <= read_metrics(first)[-1].keys()
    torch.manual_seed(images.seed)
    begun = make_stage(images).build(tmp_path)
    trained = latest_checkpoint(first)
    assert torch.equal(fv.load_pretrained(trained).video.embed.weight, begun.video.embed.weight)  # no clip was seen
    assert torch.equal(alone.video.embed.weight, F.inflate(alone.video.image.weight, 2))  # and yet it encodes clips
    assert not torch.equal(alone.video.image.weight, begun.video.image.weight)
    sources = (
        SourceConfig(path=str(train), batch=6),
        SourceConfig(path=str(stills), batch=4, weight=0.2, mask_ratio=0.0),
    )
    both = change(
        config,
        stage="image_to_video",
        model=None,
        start=str(first),
        batch_size=10,
        steps=4,
        data={"train": None, "sources": sources},
        mask={"strategy": "tube"},
    )
    begun = make_stage(both).build(tmp_path).video
    assert torch.equal(begun.embed.weight, F.inflate(alone.video.image.weight, 2))
    second = fit(both, tmp_path / "both", quiet=True)
    after, rows = fv.load_pretrained(second / "model").video, read_metrics(second)
    assert not torch.equal(after.embed.weight, begun.embed.weight)
    assert not torch.equal(after.image.weight, begun.image.weight)
    for row in rows:
        assert row["loss"] == pytest.approx((row["loss_0"] + 0.2 * row["loss_1"]) / 1.2, rel=1e-5)
    longer = change(
        both,
        stage="short_to_long",
        start=str(second),
        frames=16,
        batch_size=6,
        data={"train": str(train), "sources": ()},
        tuning=TuningConfig(method="last_layers", layers=1),
    )
    third = fv.load_pretrained(fit(longer, tmp_path / "longer", quiet=True) / "model").video
    assert third.config.frames == 16 and torch.equal(third.image.weight, after.image.weight)


def test_packed_shards_are_the_same_run(config, digits, tmp_path, change):
    """From shards, under the same masks: the same losses to the bit."""
    shards = {}
    for name, manifest in zip(("train", "heldout"), digits, strict=True):
        shards[name] = str(tmp_path / name)
        pack(manifest, shards[name], frames=8, fps=8.0, size=32)
    decoded = fit(change(config, data={"pair_twins": False}), tmp_path / "decoded", quiet=True)
    packed = fit(change(config, data=shards | {"pair_twins": False}), tmp_path / "packed", quiet=True)
    same(decoded, packed)
    grouped = change(config, data=shards | {"pair_twins": False}, mask={"strategy": "grouped"}, memory={"chunk": 4})
    assert read_metrics(fit(grouped, tmp_path / "grouped", quiet=True))[-1]["eval_clips"] == 8
    for changes, words in (
        ({"mask": {"strategy": "grouped"}}, "mask.strategy: wanted packed shards for 'grouped', got"),
        ({"data": shards | {"fps": 4.0}}, "data.fps: wanted the 8 that .* was packed at, got 4"),
        (
            {"data": shards, "model": config.model.replace(frames=4)},
            r"data: wanted shards packed with the encoder's frames, size, \(4, 32, 32\), got \(8, 32, 32\)",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            make_stage(change(config, **changes))


def test_two_sources_are_told_apart_each_alone(config, digits, change):
    """The loss of two sources is the weighted mean of their own losses."""
    train, heldout = digits
    sources = (
        SourceConfig(path=str(train), batch=4, weight=1.0),
        SourceConfig(path=str(heldout), batch=2, weight=0.25),
    )
    config = change(config, data={"train": None, "sources": sources, "pair_twins": False})
    stage = make_stage(config)
    model = stage.build(None).eval()
    batches = [
        dataset.collate([dataset[i, 0] for i in range(source.batch)]) | {"source": number}
        for number, (dataset, source) in enumerate(zip(stage.sources, sources, strict=True))
    ]
    device = torch.device("cpu")
    found = stage.losses(model, batches, device)
    both = found["loss"]
    own = [stage.losses(model, [batch], device)["loss"] for batch in batches]
    torch.testing.assert_close(both, (own[0] + 0.25 * own[1]) / 1.25)
    torch.testing.assert_close([found["loss_0"], found["loss_1"]], own)
    assert set(batches[0]["mask_seed"].tolist()).isdisjoint(batches[1]["mask_seed"].tolist())


def test_two_sources_resume_to_the_bit(config, digits, tmp_path, monkeypatch, change):
    train, heldout = digits
    sources = (SourceConfig(path=str(train), batch=4), SourceConfig(path=str(heldout), batch=2, weight=0.1))
    config = change(config, data={"train": None, "sources": sources, "workers": 1, "cache": False})
    whole = fit(config, tmp_path / "whole", quiet=True)
    with monkeypatch.context() as patched:
        stop_after(patched, 8)
        with pytest.raises(RuntimeError, match="power"):
            fit(config, tmp_path / "cut", quiet=True)
    same(whole, fit(config, tmp_path / "cut", resume=True, quiet=True))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"frames": 4}, "frames: wanted at least the 8 of the encoder in .*, got 4"),
        ({"model": ViViTConfig.tiny()}, "model: wanted None with a start that has its own encoder"),
        ({"start": "/absent"}, "start: wanted the folder of a run or a model, no such folder: /absent"),
        ({"tuning": {"layers": 5}}, r"tuning.layers: wanted at most the encoder.s 1, got 5"),
    ],
)
def test_refusals(long, tmp_path, change, changes, words):
    with pytest.raises(ValueError, match=words):
        fit(change(long, **changes), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_captioner_is_no_start(captioning, long, tmp_path, change):
    captioner = fit(change(captioning, steps=3), tmp_path / "captioner", quiet=True)
    with pytest.raises(ValueError, match="start: wanted a ViViT, a VideoTextModel or an image ViT for stage 'short_to"):
        make_stage(change(long, start=str(captioner)))


@pytest.mark.parametrize("prefix", ["device", "host", "off"])
def test_chunked_steps_are_those_of_the_whole_batch(config, long, tmp_path, change, prefix):
    for number, run in enumerate((change(config, model=config.model.replace(drop_path=0.0)), long)):
        whole = fit(run, tmp_path / f"whole{number}", quiet=True)
        chunked = fit(change(run, memory={"chunk": 4, "prefix": prefix}), tmp_path / f"chunked{number}", quiet=True)
        for name in ("loss", "grad_norm", "scale"):
            one, other = ([row[name] for row in read_metrics(out)] for out in (whole, chunked))
            torch.testing.assert_close(torch.tensor(one), torch.tensor(other), atol=1e-4, rtol=1e-4)


def test_siglip_has_a_bias_and_goes_on_with_it(config, tmp_path, change):
    first = fit(change(config, loss="siglip", steps=3), tmp_path / "first", quiet=True)
    model = fv.load_pretrained(first / "model")
    assert model.loss == "siglip" and model.logit_bias is not None
    start = change(config, model=None, start=str(first), steps=3)
    assert fv.load_pretrained(fit(start, tmp_path / "second", quiet=True) / "model").loss == "siglip"
    with pytest.raises(ValueError, match="loss: wanted 'infonce'|loss: wanted"):
        fit(change(config, loss="hinge"), tmp_path / "third", quiet=True)
