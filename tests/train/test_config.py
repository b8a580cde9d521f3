"""Configs: what they take, what they refuse, and how they say it."""

import json
import math
from pathlib import Path

import pytest

from fastvivit.models import ViViTConfig
from fastvivit.train import AuxiliaryConfig, DataConfig, OptimiserConfig, ScheduleConfig, TrainConfig
from fastvivit.train.reading import PRESETS
from fastvivit.tubes import Tube

BASE = {"steps": 2000, "data": {"train": "clips.jsonl"}}


def merged(**changes):
    fields = json.loads(json.dumps(BASE))
    for name, value in changes.items():
        if isinstance(value, dict):
            fields.setdefault(name, {}).update(value)
        else:
            fields[name] = value
    return fields


def toml(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text)
    return path


def test_the_defaults_are_the_papers():
    config = TrainConfig.from_dict(BASE)
    assert (config.optimiser.lr, config.optimiser.weight_decay, config.optimiser.clip) == (5e-5, 1e-2, 2.0)
    assert (config.schedule.warmup, config.batch_size, config.data.fps) == (1000, 512, 1.0)
    assert config.model == ViViTConfig.base()
    assert config.auxiliary == AuxiliaryConfig(kind="none", weight=1.0, mlm_ratio=0.15)


@pytest.mark.parametrize(
    ("stage", "batch_size", "lr", "decay", "clip", "warmup", "steps", "mask"),
    [
        ("contrastive", 512, 5e-5, 1e-2, 2.0, 1000, 2000, 0.75),
        ("video_to_text", 128, 4e-5, 1e-4, 1.0, 2000, 80_000, 0.3),
        ("finetune", 128, 5e-6, 1e-4, 1.0, 1000, 10_000, 0.3),
    ],
)
def test_presets_are_table_4(stage, batch_size, lr, decay, clip, warmup, steps, mask):
    given = {"steps": 2000} if stage == "contrastive" else {"start": "model"}
    config = TrainConfig.for_stage(stage, data={"train": "clips.jsonl"}, **given)
    assert (config.stage, config.batch_size, config.steps) == (stage, batch_size, steps)
    assert (config.optimiser.lr, config.optimiser.weight_decay, config.optimiser.clip) == (lr, decay, clip)
    assert (config.schedule.warmup, config.mask.ratio) == (warmup, mask)


def test_what_is_given_comes_before_the_preset(tmp_path):
    text = """
        stage = "finetune"
        start = "run"
        [data]
        train = "clips.jsonl"
        [optimiser]
        eps = 1e-6
        [language]
        """
    config = TrainConfig.from_toml(toml(tmp_path, text), ["optimiser.lr=1e-6", "steps=2000", "vision.folder=here"])
    assert config.optimiser == OptimiserConfig(lr=1e-6, weight_decay=1e-4, clip=1.0, eps=1e-6)
    assert config.steps == 2000 and config.start == str(tmp_path / "run")
    assert config.vision.folder == str(Path.cwd() / "here")
    own = TrainConfig.for_stage("finetune", start="run", data=config.data, optimiser=OptimiserConfig(), steps=2000)
    assert own.optimiser == OptimiserConfig() and own.mask.ratio == 0.3
    model = ViViTConfig.tiny(attention="tubes", frames=8, tubes=(Tube(kernel=(4, 8, 8), stride=(4, 16, 16)),))
    assert TrainConfig.for_stage("contrastive", steps=2000, data=config.data, model=model).model == model


def test_dict_round_trip(config, captioning):
    for one in (config, captioning):
        fields = json.loads(json.dumps(one.to_dict()))
        assert TrainConfig.from_dict(fields) == one
    assert captioning.model is None and config.model is not None


def test_infinity_survives_json():
    config = TrainConfig.from_dict(merged(optimiser={"clip": math.inf}))
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict(), allow_nan=False))) == config


def test_toml(tmp_path):
    path = toml(
        tmp_path,
        """
        steps = 30
        [model]
        preset = "tiny"
        frames = 8
        mean = [0.1, 0.2, 0.3]
        [data]
        train = "a/train.jsonl"
        heldout = "/b/heldout.jsonl"
        fps = 2
        [schedule]
        warmup = 3
        [optimiser]
        betas = [0.9, 0.98]
        """,
    )
    config = TrainConfig.from_toml(path)
    assert config.model == ViViTConfig.tiny(frames=8, mean=(0.1, 0.2, 0.3))
    assert config.data == DataConfig(train=str(tmp_path / "a/train.jsonl"), heldout="/b/heldout.jsonl", fps=2.0)
    assert config.schedule == ScheduleConfig(warmup=3)
    assert config.optimiser == OptimiserConfig(betas=(0.9, 0.98))


def test_tubes_are_tables(tmp_path):
    text = """
        steps = 2000
        [model]
        attention = "tubes"
        frames = 8
        cls = true
        tubes = [{kernel = [4, 8, 8], stride = [4, 16, 16]}, {kernel = [1, 16, 16], stride = [8, 16, 16]}]
        [data]
        train = "train.jsonl"
        heldout = "heldout.jsonl"
        """
    model = TrainConfig.from_toml(toml(tmp_path, text)).model
    assert [tube.kernel for tube in model.tubes] == [(4, 8, 8), (1, 16, 16)] and model.class_token
    with pytest.raises(ValueError, match="mask.strategy: wanted 'random' with tubes, got 'tube'"):
        TrainConfig.from_toml(toml(tmp_path, text + '[mask]\nstrategy = "tube"\n'))
    with pytest.raises(ValueError, match="kernels: no such field of Tube"):
        TrainConfig.from_toml(toml(tmp_path, text.replace("kernel", "kernels")))
    with pytest.raises(ValueError, match=r"model.tubes: wanted a list of tables \(kernel, stride, offset\)"):
        TrainConfig.from_toml(toml(tmp_path, text.replace("tubes = [{", "tubes = [3, {")))


@pytest.mark.parametrize("preset", PRESETS)
def test_presets(preset):
    assert TrainConfig.from_dict(merged(model={"preset": preset})).model == getattr(ViViTConfig, preset)()


def test_overrides(tmp_path):
    path = toml(tmp_path, 'steps = 9\n[data]\ntrain = "t.jsonl"\n[schedule]\nwarmup = 2\n')
    config = TrainConfig.from_toml(
        path, ["optimiser.lr=1e-2", "mask.strategy=tube", "steps=7", "data.cache=true", "model.size=[32, 64]"]
    )
    assert config.optimiser.lr == 1e-2 and config.mask.strategy == "tube"
    assert config.steps == 7 and config.data.cache and config.model.size == (32, 64)
    assert config.data.train == str(tmp_path / "t.jsonl")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("steps", "override: wanted a field and its value"),
        ("=3", "override: wanted a field and its value"),
        ("steps.more=3", "override: wanted steps to be a table"),
        ("optimizer.lr=1", "optimizer: no such field of TrainConfig (did you mean 'optimiser'?)"),
        ("optimiser.lrr=1", "optimiser.lrr: no such field of OptimiserConfig (did you mean 'lr'?)"),
    ],
)
def test_bad_overrides(tmp_path, override, words):
    path = toml(tmp_path, 'steps = 2000\n[data]\ntrain = "t.jsonl"\n')
    with pytest.raises(ValueError) as caught:
        TrainConfig.from_toml(path, [override])
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"data": {"train": "x"}}, "steps: wanted this field, it is missing"),
        ({"steps": 2000, "data": {}}, "data.train: wanted either train or sources, got neither"),
        (merged(stepz=1), "stepz: no such field of TrainConfig (did you mean 'steps'?)"),
        (merged(data={"fsp": 1}), "data.fsp: no such field of DataConfig (did you mean 'fps'?)"),
        (merged(model={"widht": 1}), "model.widht: no such field of ViViTConfig (did you mean 'width'?)"),
        (merged(model={"preset": "huge"}), "model.preset: wanted one of 'tiny', 'small'"),
        (merged(model={"frames": 15}), "model.frames: wanted a multiple of the tubelet's t = 2, got 15"),
        (merged(model={"drop_path": "big"}), "model.drop_path: wanted a number, got 'big'"),
        (merged(model=dict(tubelet=[2, 16])), "model.tubelet: wanted 3 of whole numbers, got [2, 16]"),
        (
            merged(stage="image2video"),
            "stage: wanted one of 'contrastive', 'images', 'image_to_video', 'short_to_long', 'video_to_text', "
            "'finetune', got",
        ),
        (merged(steps=2000.0), "steps: wanted a whole number, got 2000.0"),
        (merged(steps=True), "steps: wanted a whole number, got True"),
        (merged(steps=0), "steps: wanted at least 1, got 0"),
        (merged(steps=1000), "schedule.warmup: wanted fewer than the 1000 steps of the run, got 1000"),
        (merged(batch_size=1), "batch_size: wanted at least 2, got 1"),
        (merged(seed=-1), "seed: wanted at least 0, got -1"),
        (merged(dim=0), "dim: wanted at least 1, got 0"),
        ({"steps": 2000, "data": "clips.jsonl"}, "data: wanted a table of fields, got 'clips.jsonl'"),
        (merged(data={"fps": 0}), "data.fps: wanted above 0, got 0.0"),
        (
            {"steps": 2000, "data": {"sources": [{"path": "a", "batch": 512, "weight": math.inf}]}},
            "data.sources.weight: wanted above 0, and finite, got inf",
        ),
        (merged(data={"workers": -1}), "data.workers: wanted at least 0, got -1"),
        (merged(data={"train": 3}), "data.train: wanted a string or nothing, got 3"),
        (merged(data={"cache": 1}), "data.cache: wanted true or false, got 1"),
        (merged(text={"heads": 3}), "text.heads: wanted a divisor of width 128, got 3"),
        (merged(text={"depth": 0}), "text.depth: wanted at least 1, got 0"),
        (merged(text={"folder": 3}), "text.folder: wanted a string or nothing, got 3"),
        (merged(init={"time_std": -0.1}), "init.time_std: wanted at least 0, got -0.1"),
        (merged(optimiser={"lr": "fast"}), "optimiser.lr: wanted a number, got 'fast'"),
        (merged(optimiser={"lr": 0}), "optimiser.lr: wanted above 0, got 0.0"),
        (merged(optimiser={"lr": math.nan}), "optimiser.lr: wanted above 0, got nan"),
        (merged(optimiser={"clip": 0}), "optimiser.clip: wanted above 0, got 0.0"),
        (merged(optimiser={"weight_decay": -1}), "optimiser.weight_decay: wanted at least 0, got -1.0"),
        (merged(optimiser={"betas": [0.9, 1.0]}), "optimiser.betas: wanted two numbers, 0 <= beta < 1"),
        (merged(optimiser={"betas": [0.9]}), "optimiser.betas: wanted 2 of numbers, got [0.9]"),
        (merged(schedule={"final": 2}), "schedule.final: wanted a share of the learning rate"),
        (merged(mask={"ratio": 1}), "mask.ratio: wanted 0 <= ratio < 1, got 1.0"),
        (merged(mask={"strategy": "rnd"}), "mask.strategy: wanted one of 'random', 'tube', 'frame'"),
        (merged(auxiliary={"kind": "itm"}), "auxiliary.kind: wanted one of 'none', 'mlm', 'captioning', got 'itm'"),
        (merged(auxiliary={"weight": -1}), "auxiliary.weight: wanted above 0, and finite, got -1.0"),
        (merged(run={"save_every": 0}), "run.save_every: wanted at least 1, got 0"),
        (merged(run={"device": "tpu"}), "run.device: wanted one of 'auto', 'cpu', 'cuda', got 'tpu'"),
        (merged(run={"precision": "fp8"}), "run.precision: wanted one of 'auto', 'float32', 'bfloat16', got 'fp8'"),
    ],
)
def test_refusals(fields, words):
    with pytest.raises(ValueError) as caught:
        TrainConfig.from_dict(fields)
    assert str(caught.value).startswith(words)


def captions_of(**changes):
    return merged(**{"stage": "video_to_text", "start": "model", "steps": 3000} | changes)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (merged(stage="video_to_text"), "schedule.warmup: wanted fewer than the 2000 steps of the run, got 2000"),
        (merged(stage="finetune"), "start: wanted the folder of a model for stage 'finetune', got None"),
        (merged(stage="short_to_long"), "start: wanted the folder of a model for stage 'short_to_long', got None"),
        (
            captions_of(frames=32),
            "frames: wanted in stage 'contrastive', 'images', 'image_to_video' or 'short_to_long' only",
        ),
        (merged(vision={"cache": True}), "vision: wanted in stage 'video_to_text' or 'finetune' only"),
        (captions_of(model={"preset": "tiny"}), "model: wanted in stage 'contrastive', 'images'"),
        (captions_of(text={"width": 64}), "text: wanted in stage 'contrastive', 'images'"),
        (captions_of(stage="finetune", language={"width": 64}), "language: wanted in stage 'video_to_text' only"),
        (captions_of(batch_size=0), "batch_size: wanted at least 1, got 0"),
        (captions_of(language={"widht": 1}), "language.widht: no such field of LanguageConfig (did you mean 'width'?)"),
        (captions_of(language={"heads": 3}), "language.heads: wanted heads of an even width"),
        (captions_of(language={"pretrain_lr": 0}), "language.pretrain_lr: wanted above 0, got 0.0"),
        (captions_of(language={"resampler": {"dmi": 1}}), "language.resampler.dmi: no such field of ResamplerConfig"),
        (captions_of(language={"resampler": {"heads": 3}}), "language.resampler.heads: wanted a divisor of dim 1024"),
        (captions_of(language={"resampler": {"latents": 0}}), "language.resampler.latents: wanted at least 1, got 0"),
        (captions_of(language={"cross": {"every": 0}}), "language.cross.every: wanted at least 1, got 0"),
        (captions_of(language={"cross": 3}), "language.cross: wanted a table of fields, got 3"),
        (captions_of(vision={"masks": 0}), "vision.masks: wanted at least 1, got 0"),
        (captions_of(vision={"dtype": "int8"}), "vision.dtype: wanted one of 'float32', 'bfloat16', 'float16'"),
        (captions_of(captions={"describe": -1}), "captions.describe: wanted at least 0, got -1"),
        (captions_of(captions={"max_new_tokens": 0}), "captions.max_new_tokens: wanted at least 1, got 0"),
        (
            captions_of(captions={"prompts": ""}),
            "captions.prompts: no such field of CaptionConfig (did you mean 'prompt'?)",
        ),
        (merged(stage=["finetune"]), "stage: wanted a string, got ['finetune']"),
    ],
)
def test_refusals_of_captioning_runs(fields, words):
    with pytest.raises(ValueError) as caught:
        TrainConfig.from_dict(fields)
    assert str(caught.value).startswith(words)


def test_an_encoder_that_does_not_pool_is_refused():
    with pytest.raises(ValueError, match=r"model.pool: wanted an encoder that pools"):
        TrainConfig.from_dict(merged(model={"pool": None}))


def test_unreadable_files(tmp_path):
    with pytest.raises(ValueError, match="config: wanted a TOML file, no such file"):
        TrainConfig.from_toml(tmp_path / "absent.toml")
    with pytest.raises(ValueError, match="can't be read as TOML"):
        TrainConfig.from_toml(toml(tmp_path, "steps = "))


@pytest.mark.parametrize("stage", ["video_to_text", "finetune"])
def test_parts_of_a_captioner_are_refused(stage):
    fields = {"stage": stage, "steps": 20000, "start": "run", "data": {"train": "clips.jsonl"}}
    assert TrainConfig.from_dict(fields).run.parallel == "ddp"
    with pytest.raises(ValueError, match=f"run.parallel: wanted 'ddp' in stage '{stage}', whose frozen models"):
        TrainConfig.from_dict(fields | {"run": {"parallel": "fsdp"}})
