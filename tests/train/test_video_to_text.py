"""The stages that train a captioner: what is trained, what stays, what a cut run comes to."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fastvivit as fv
from fastvivit.caption import VideoCaptioner, files
from fastvivit.caption.files import fingerprint
from fastvivit.data import ClipDataset, VideoError, dataset, sample_seed
from fastvivit.train import (
    MaskConfig,
    TrainConfig,
    VisionCache,
    evaluate_captions,
    fit,
    latest_checkpoint,
    loop,
    read_metrics,
)
from fastvivit.train.captioner import load_found, with_prompt
from fastvivit.train.checkpoint import checkpoints
from fastvivit.train.folders import find_model
from fastvivit.train.language import learn_captions, local_language, scratch_language
from fastvivit.train.stages import make_stage, video_to_text
from fastvivit.train.step import draw_masks, train_step
from tests.train.test_loop import parsed
from tests.train.test_resume import losses, stop_after


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("captioning")


@pytest.fixture
def run(captioning, shared, change):
    """A run without the cache, taken once."""
    out = shared / "run"
    if not (out / "report.html").is_file():
        fit(change(captioning, run={"eval_every": 4}), out, quiet=True)
    return out


@pytest.fixture
def cached(captioning, change):
    return change(captioning, vision={"cache": True})


def layers(run):
    return load_file(run / "model" / "captioner.safetensors")


def same(a, b):
    assert losses(a) == losses(b)
    first, second = layers(a), layers(b)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_frozen_parts_are_what_they_were(run, encoder):
    model = fv.load_pretrained(run / "model")
    assert isinstance(model, VideoCaptioner)
    assert fingerprint(model.video) == fingerprint(fv.load_pretrained(encoder))
    assert fingerprint(model.lm) == fingerprint(local_language(run / "language")[0])
    # At the start they are 0, and only training opens them.
    assert all(layer.gate.abs() > 1e-4 for layer in model.layers)


def test_scores(run, captioning, change):
    rows = read_metrics(run)
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert [row["step"] for row in rows if "eval_loss" in row] == [4, 8]
    assert "eval_cider_d" not in rows[3] and rows[7]["eval_described"] == 4
    assert {"eval_rouge_l_coco", "eval_rouge_l_f1", "eval_bleu_4", "eval_clips"} <= rows[7].keys()
    stage = make_stage(captioning)
    found = stage.evaluate(fv.load_pretrained(run / "model"), last=True)
    assert {f"eval_{name}": value for name, value in found.scores.items()}.items() <= rows[7].items()
    assert found.entries == [0, 2, 4, 6] and found.references[1] == list(stage.heldout.entries[2].captions)


def test_the_loss_is_by_token_over_all_clips(run, captioning):
    model, stage = fv.load_pretrained(run / "model"), make_stage(captioning)
    video = torch.stack([stage.heldout[i]["video"] for i in range(8)])
    captions = [entry.captions[0] for entry in stage.heldout.entries]
    with torch.no_grad():
        wanted = float(model(video, captions, 0.0, prompts="a clip:"))
    for batch_size in (8, 3):
        found = evaluate_captions(model, stage.heldout, batch_size=batch_size, prompt="a clip:")
        assert found.scores["loss"] == pytest.approx(wanted, abs=1e-5) and found.texts == []


def test_a_line_a_caption_is_one_clip_with_several_references(run, captioning):
    model, stage = fv.load_pretrained(run / "model"), make_stage(captioning)
    entries = [dataclasses.replace(e, captions=(*e.captions, "another one")) for e in stage.heldout.entries[:3]]
    lines = [dataclasses.replace(entry, captions=(caption,)) for entry in entries for caption in entry.captions]
    look = {"frames": 8, "fps": 8.0, "size": 32}
    options = {"batch_size": 2, "prompt": "a clip:", "describe": 2, "max_new_tokens": 4}
    wanted = evaluate_captions(model, ClipDataset(entries, **look), **options)
    found = evaluate_captions(model, ClipDataset(lines, **look), **options)
    assert found.scores == wanted.scores and found.scores["clips"] == 3 and found.texts == wanted.texts
    assert found.references == wanted.references and [len(texts) for texts in found.references] == [2, 2]
    assert (wanted.entries, found.entries) == ([0, 2], [0, 4])


def test_frozen_weights_are_hashed_once_a_run(captioning, change, tmp_path, monkeypatch):
    hashed = []

    def counted(model):
        hashed.append(type(model).__name__)
        return fingerprint(model)

    monkeypatch.setattr(files, "fingerprint", counted)
    out = fit(change(captioning, steps=6, run={"save_every": 1, "keep_last": 9}), tmp_path / "run", quiet=True)
    saved = [json.loads((folder / "captioner.json").read_text())["frozen"] for folder in checkpoints(out)]
    model = fv.load_pretrained(out / "model")
    assert len(saved) == 6 and all(
        one == {"video": fingerprint(model.video), "lm": fingerprint(model.lm)} for one in saved
    )
    # Of the checkpoints once; of the model at the end, and of what was loaded now, once more each.
    assert len(hashed) <= 2 * 3


def test_report(run):
    page = parsed(run / "report.html")
    text = " ".join(page.words)
    assert len(page.images) == 2 + 4 and "Written: " in text and "True: " in text and "CIDEr-D" in text
    assert "below 20 clips it means nothing" in text


def test_checkpoints_hold_the_trained_part_alone(run):
    checkpoint = latest_checkpoint(run)
    assert {path.name for path in checkpoint.iterdir()} == {
        "captioner.json", "captioner.safetensors", "training.json", "training.safetensors",
    }  # fmt: skip
    assert not [name for name in layers(run) if name.startswith(("video.", "lm."))]
    state = load_file(checkpoint / "training.safetensors")
    assert not [name for name in state if name.startswith(("video.", "lm."))]
    model = load_found(find_model(checkpoint))
    for name, tensor in fv.load_pretrained(run / "model").state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


@pytest.mark.parametrize("cache", [False, True])
def test_resumed_is_bit_equal(captioning, cached, tmp_path, monkeypatch, cache):
    config = cached if cache else captioning
    whole, out = fit(config, tmp_path / "whole", quiet=True), tmp_path / "cut"
    with monkeypatch.context() as patched:
        stop_after(patched, 6)
        with pytest.raises(RuntimeError, match="power"):
            fit(config, out, quiet=True)
    assert latest_checkpoint(out).name == "step-00000004"
    with monkeypatch.context() as patched:  # what was made before the first step is not made again
        for name in ("learn_captions", "save_language"):
            patched.delattr(video_to_text, name)
        patched.delattr(VisionCache, "_encode")
        fit(config, out, resume=True, quiet=True)
    same(out, whole)


@pytest.mark.parametrize("crash", ["save_language", "encode", "first step"])
def test_killed_before_the_first_checkpoint(cached, tmp_path, monkeypatch, crash):
    whole, out = fit(cached, tmp_path / "whole", quiet=True), tmp_path / "cut"

    def dying(*args):
        raise RuntimeError("the power went out")

    with monkeypatch.context() as patched:
        owner = {"save_language": video_to_text, "encode": VisionCache, "first step": loop}[crash]
        patched.setattr(owner, {"encode": "_encode", "first step": "train_step"}.get(crash, crash), dying)
        with pytest.raises(RuntimeError, match="power"):
            fit(cached, out, quiet=True)
    assert (out / "language").is_dir() == (crash != "save_language")
    fit(cached, out, resume=True, quiet=True)
    same(out, whole)


def test_cached_losses_are_those_of_the_same_masks(captioning, cached, tmp_path, monkeypatch):
    found = read_metrics(fit(cached, tmp_path / "cached", quiet=True))
    stage = make_stage(captioning)
    cache = VisionCache(tmp_path / "cached" / "vision", fv.load_pretrained(captioning.start), fps=8.0)
    drawn = []

    def seeds(seed, epoch, index, purpose):
        if purpose != "mask":
            return sample_seed(seed, epoch, index, purpose)
        number = sample_seed(seed, epoch, index, "which mask") % captioning.vision.masks
        drawn.append(number)
        return cache.mask_seed(cache.clip(stage.sources[0].entries[index]), number)

    other = read_metrics(fit(captioning, tmp_path / "other", quiet=True))
    monkeypatch.setattr(dataset, "sample_seed", seeds)
    plain = read_metrics(fit(captioning, tmp_path / "plain", quiet=True))
    for field in ("loss", "grad_norm"):
        assert [row[field] for row in found] == pytest.approx([row[field] for row in plain], rel=1e-4)
    assert [row["loss"] for row in found[2:]] != pytest.approx([row["loss"] for row in other[2:]], rel=1e-4)
    assert set(drawn) == {0, 1}


def test_a_shared_cache_needs_no_video(cached, tmp_path, monkeypatch, change):
    config = change(cached, vision={"folder": str(tmp_path / "vision")})
    first = fit(config, tmp_path / "first", quiet=True)

    def unread(path, *args, **kwargs):
        asked.append(path)
        raise VideoError(f"{path}: gone")

    asked = []
    monkeypatch.setattr(dataset, "read_clip", unread)
    second = fit(config, tmp_path / "second", quiet=True)
    # Pictures for the report are all that is asked for, and words do without them.
    assert len(asked) == len(set(asked)) <= 8 and {path.parent.name for path in asked} == {"heldout"}
    assert "Written:" in " ".join(parsed(second / "report.html").words)
    same(first, second)
    assert not (tmp_path / "first" / "vision").exists()
    assert len(list((tmp_path / "vision").glob("*/settings.json"))) == 1


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.filterwarnings("ignore:broken")
def test_broken_files_end_nothing(captioning, cached, tmp_path, change, cache):
    changes = {}
    for name in ("train", "heldout"):
        source = type(tmp_path)(getattr(captioning.data, name)).parent
        shutil.copytree(source, tmp_path / name)
        sorted((tmp_path / name).glob("*.mp4"))[0].write_bytes(b"this is no video")
        changes[name] = str(tmp_path / name / "manifest.jsonl")
    out = fit(change(cached if cache else captioning, data=changes), tmp_path / "run", quiet=True)
    rows = read_metrics(out)
    assert rows[-1]["broken"] == 1 and rows[-1]["eval_broken"] == 1 and rows[-1]["eval_clips"] == 7
    assert rows[0]["broken"] == 1 or not cache
    text = " ".join(parsed(out / "report.html").words)
    assert "train/00000a.mp4" in text and "heldout/00000a.mp4" in text


@pytest.mark.parametrize("cache", [False, True])
def test_finetune_goes_on_with_a_captioner(run, captioning, tmp_path, cache):
    config = TrainConfig.for_stage(
        "finetune",
        start=str(run),
        steps=3,
        batch_size=4,
        data=captioning.data,
        vision={"cache": cache, "masks": 1},
        captions={"describe": 0},
        schedule={"warmup": 1},
        optimiser={"lr": 1e-3},
        run=captioning.run,
    )
    out = fit(config, tmp_path / "run", quiet=True)
    before, after = fv.load_pretrained(run / "model"), fv.load_pretrained(out / "model")
    assert fingerprint(before.video) == fingerprint(after.video) and fingerprint(before.lm) == fingerprint(after.lm)
    assert before.settings == after.settings
    moved = [not torch.equal(tensor, after.trained_state()[name]) for name, tensor in before.trained_state().items()]
    assert all(moved)
    rows = read_metrics(out)
    # It begins where the other run ended, not where that one began.
    assert rows[0]["loss"] < read_metrics(run)[0]["loss"] and "eval_described" not in rows[-1]
    assert isinstance(load_found(find_model(latest_checkpoint(out))), VideoCaptioner)


def test_finetune_keeps_the_prompt_that_it_is_not_told(run, captioning, tmp_path):
    before = tmp_path / "before"
    shutil.copytree(run, before)
    settings = json.loads((before / "config.json").read_text())
    settings["captions"]["prompt"] = "it shows:"
    (before / "config.json").write_text(json.dumps(settings))
    for said, wanted in (({}, "it shows:"), ({"prompt": ""}, ""), ({"prompt": "there:"}, "there:")):
        config = TrainConfig.for_stage("finetune", start=str(before), data=captioning.data, captions=said)
        assert with_prompt(config).captions.prompt == wanted
    assert json.loads((run / "config.json").read_text())["captions"]["prompt"] == ""


def test_a_local_language_model_and_the_encoder_of_a_dual_model(captioning, config, tmp_path, change):
    import transformers

    dual = fit(change(config, steps=3, schedule={"warmup": 1}), tmp_path / "dual", quiet=True)
    scratch = tmp_path / "gpt2"
    _, tokenizer = scratch_language(captioning.language, ["a digit moves up"], 0)
    gpt2 = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_positions=32, n_embd=32, n_layer=2, n_head=2,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id,
    )  # fmt: skip
    transformers.GPT2LMHeadModel(gpt2).save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    plain = change(captioning, start=str(dual), language={"folder": str(scratch)}, steps=3)
    out = fit(plain, tmp_path / "run", quiet=True)
    model = fv.load_pretrained(out / "model")
    assert fingerprint(model.lm) == fingerprint(local_language(scratch)[0]) and not (out / "language").exists()
    assert fingerprint(model.video) == fingerprint(fv.load_pretrained(dual / "model").video)


def test_the_language_model_learns_captions_before_it_is_frozen(captioning):
    captions = ["a digit moves up, then another one moves down"] * 6
    lm, tokenizer = scratch_language(captioning.language, captions, seed=3)
    torch.rand(3)  # what was drawn before makes no difference
    again, other = (scratch_language(captioning.language, captions, seed=seed)[0] for seed in (3, 4))
    assert fingerprint(lm) == fingerprint(again) != fingerprint(other)
    texts = video_to_text.build_captioner(
        captioning, fv.load_pretrained(captioning.start), Path("absent"), captions
    ).texts
    learn_captions(lm, texts, captions, steps=60, lr=1e-2, batch_size=3, seed=0, quiet=True)
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in lm.parameters())
    start = torch.tensor([[tokenizer.bos_token_id]])
    written = tokenizer.decode(lm.generate(start, max_new_tokens=12, do_sample=False)[0], skip_special_tokens=True)
    assert written == captions[0]


def test_settings_reach_the_model(captioning, change):
    language = dataclasses.replace(
        captioning.language,
        resampler=dataclasses.replace(captioning.language.resampler, latents=3),
        cross=dataclasses.replace(captioning.language.cross, every=2, ff=2, over_time=False),
    )
    model = make_stage(change(captioning, language=language)).build(Path("absent"))
    assert model.resampler.settings["latents"] == 3 and len(model.layers) == 1 and model.layers[0].mlp is not None
    assert not model.settings["over_time"] and model.training
    bare = dataclasses.replace(captioning.language, resampler=dataclasses.replace(language.resampler, use=False))
    assert make_stage(change(captioning, language=bare)).build(Path("absent")).resampler is None
    assert make_stage(captioning).build(Path("absent")).resampler.settings["latents"] == 4  # the places of a clip


def test_prompts_are_not_learned(captioning, change):
    config = change(captioning, captions={"prompt": "then right"})
    stage = make_stage(config)
    model = stage.build(Path("absent"))
    batch = stage.sources[0].collate([stage.sources[0][0], stage.sources[0][1]])
    loss = stage.losses(model, [batch], torch.device("cpu"))["loss"]
    keep = draw_masks(batch["mask_seed"], model.video.config.views, config.mask)
    vision = model.encode_video(batch["video"], keep=keep)
    assert torch.equal(loss, model(vision, batch["caption"], prompts="then right"))
    assert not torch.equal(loss, model(vision, batch["caption"]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"start": "/absent"}, "start: wanted the folder of a run or a model, no such folder: /absent"),
        ({"language": {"folder": "/absent"}}, "language.folder: wanted a folder with a language model"),
        ({"data": {"train": "/absent.jsonl"}}, "manifest: wanted a JSONL or CSV file, no such file"),
        ({"batch_size": 100}, "batch_size: wanted at most the 24 clips of .*, got 100"),
    ],
)
def test_refusals(captioning, tmp_path, change, changes, words):
    with pytest.raises(ValueError, match=words):
        fit(change(captioning, **changes), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_the_wrong_kind_of_start(run, captioning, change, tmp_path):
    with pytest.raises(ValueError, match="start: wanted a ViViT or VideoTextModel for stage 'video_to_text', got a"):
        fit(change(captioning, start=str(run)), tmp_path / "run", quiet=True)
    config = TrainConfig.for_stage("finetune", start=captioning.start, data=captioning.data)
    with pytest.raises(ValueError, match="start: wanted a VideoCaptioner for stage 'finetune', got a ViViT"):
        fit(config, tmp_path / "run", quiet=True)


def test_a_checkpoint_of_other_frozen_parts_is_refused(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    shutil.copytree(settings["start"], tmp_path / "encoder")
    other = fv.load_pretrained(tmp_path / "encoder")
    with torch.no_grad():
        other.norm.bias += 1
    fv.save_pretrained(other, tmp_path / "encoder")
    settings["start"] = str(tmp_path / "encoder")
    (tmp_path / "run" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="video: wanted the very weights that the layers in .* were trained with"):
        load_found(find_model(latest_checkpoint(tmp_path / "run")))


def test_gradients_stay_out_of_the_frozen_parts(captioning):
    stage = make_stage(captioning)
    model = stage.build(Path("absent"))
    optimiser = loop.make_optimiser(model, captioning.optimiser)
    batch = stage.sources[0].collate([stage.sources[0][i] for i in range(4)])
    train_step(model, optimiser, [batch], 0, stage, torch.device("cpu"))
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if not name.startswith(("video.", "lm."))}


def test_masks_are_fixed_on_heldout_clips(run, captioning, tmp_path):
    model, stage = fv.load_pretrained(run / "model"), make_stage(captioning)
    first, second = (stage.evaluate(model, last=False).scores["loss"] for _ in range(2))
    assert first == second
    other = evaluate_captions(model, stage.heldout, batch_size=8, mask=MaskConfig(ratio=0.75)).scores["loss"]
    assert other != pytest.approx(first, abs=1e-6)


@pytest.mark.parametrize("text", ["[1]", "{oops", '{"data": 1}'])
def test_a_strange_config_beside_a_model_is_not_its_run(encoder, tmp_path, text):
    shutil.copytree(encoder, tmp_path / "model")
    (tmp_path / "config.json").write_text(text)
    found = find_model(tmp_path / "model")
    assert found.place == tmp_path / "model" and found.run is None and found.settings == {}


def test_fewer_texts_than_none_are_refused(run, captioning):
    model, stage = fv.load_pretrained(run / "model"), make_stage(captioning)
    with pytest.raises(ValueError, match="describe: wanted at least 0, got -1"):
        evaluate_captions(model, stage.heldout, batch_size=8, describe=-1)
