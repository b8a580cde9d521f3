"""A mixed batch is planned for as it is trained: images beside clips, each part under its own mask."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import fastvivit as fv
from fastvivit import tune
from fastvivit.contrastive import ContrastivePart, chunked_backward, contrastive_losses
from fastvivit.modules.clips import draw_keep
from fastvivit.planning.devices import BY_NAME
from fastvivit.planning.fakes import widen_norms
from fastvivit.planning.ledger import Ledger
from fastvivit.planning.memory import memory_of
from fastvivit.planning.parts import Part, shared
from fastvivit.planning.plan import plan_step
from fastvivit.planning.seconds import model_flops, op_seconds, seconds_of
from fastvivit.planning.simulate import DIM, simulate
from fastvivit.planning.step import Step
from fastvivit.planning.switches import needed, switches, turned_by
from fastvivit.planning.texts import PlannedText, TextSize
from fastvivit.planning.trace import ATTENTION, KIND
from fastvivit.train.stages.contrastive import Contrastive

CFG = fv.ViViTConfig(frames=8, size=64, tubelet=(2, 8, 8), width=64, depth=7, heads=4, ff=256)
TEXT = TextSize(width=64, depth=5, heads=4, ff=256, vocabulary=30, positions=12, tokens=12, dropout=0.0)
H100 = BY_NAME["h100"]
CLIPS, IMAGES = Part(batch=6, mask_ratio=0.5), Part(batch=10, mask_ratio=0.25, images=True)


def mixed(**settings):
    settings = {"precision": "float32", "text": TEXT, "parts": (CLIPS, IMAGES)} | settings
    return Step(config=CFG, **({"batch": sum(part.batch for part in settings["parts"])} | settings))


def model_of(step):
    torch.manual_seed(0)
    encoder = fv.ViViT(step.config)
    if step.method == "last":
        tune.last_layers(encoder, step.number, images=True)
    elif step.method == "adapters":
        tune.add_adapters(encoder, step.number, images=True)
    model = fv.VideoTextModel(encoder, PlannedText(step.text), DIM).train()
    if step.checkpointing != "none":
        model.set_grad_checkpointing(True, step.checkpointing)
    if step.precision == "bfloat16":
        widen_norms(model)
    return model


def parts_of(step, model):
    found = []
    for one in step.each:
        size = step.config.size if one.images else (step.config.frames, *step.config.size)
        video = torch.randint(256, (one.batch, 3, *size), dtype=torch.uint8)
        views = model.video.image.views((1, *step.config.size)) if one.images else step.config.views
        keep = draw_keep(one.batch, views, one.mask_ratio) if one.mask_ratio else None
        found.append(ContrastivePart(video, ["a caption"] * one.batch, keep=keep))
    return found


def real_peak(step):
    """Bytes of a real step on real tensors: parameters, pixels, and the most that is alive at once."""
    model = model_of(step)
    parts = parts_of(step, model)
    known = [*model.parameters(), *(part.video for part in parts)]
    known += [part.keep.ids for part in parts if part.keep is not None]
    half = torch.autocast("cpu", torch.bfloat16, enabled=step.precision == "bfloat16")
    with Ledger(known, {}) as ledger:
        with half:
            if step.chunked:
                chunked_backward(model, parts, chunk=[one.chunk for one in step.each], prefix=step.prefix)
            else:
                loss = contrastive_losses(model, parts)["loss"]
        if not step.chunked:
            loss.backward()
    return ledger.peak + sum(t.numel() * t.element_size() for t in known)


SETTINGS = {
    "whole": {},
    "whole, 16 bits": {"precision": "bfloat16"},
    "whole, images first": {"parts": (IMAGES, CLIPS)},
    "whole, unmasked, full": {"parts": (Part(batch=3), Part(batch=20, images=True)), "checkpointing": "full"},
    "whole, last 2, 16 bits": {"tuning": "last_2", "precision": "bfloat16"},
    "whole, adapters": {"tuning": "adapters_16"},
    "whole, three": {"parts": (CLIPS, IMAGES, Part(batch=4, mask_ratio=0.75))},
    "chunks": {"chunk": 2},
    "chunks, images first": {"chunk": 2, "parts": (IMAGES, CLIPS)},
    "chunks, more images": {"chunk": 1, "parts": (CLIPS, Part(batch=40, images=True))},
    "chunks, last 2": {"chunk": 2, "tuning": "last_2"},
    "chunks, last 2, off": {"chunk": 2, "tuning": "last_2", "prefix": "off"},
    "chunks, 16 bits": {"chunk": 4, "precision": "bfloat16"},
    "chunks, last 1, many clips": {
        "chunk": 2,
        "tuning": "last_1",
        "parts": (replace(CLIPS, batch=160), IMAGES),
    },
    "chunks, last 1, images first": {"chunk": 2, "tuning": "last_1", "parts": (IMAGES, replace(CLIPS, batch=60))},
    "one chunk each": {"chunk": 6},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_peak_is_that_of_a_real_step(name):
    step = mixed(**SETTINGS[name])
    memory = memory_of(step, None)
    assert memory.total - memory.optimiser == pytest.approx(real_peak(step), rel=0.05)
    assert memory.gradients <= memory.optimiser // 2 and memory.casts >= 0


def test_both_paths_are_trained_and_counted():
    step = mixed()
    wanted = sum(p.numel() for p in model_of(step).parameters())
    memory = memory_of(step, None)
    assert (memory.weights, memory.optimiser) == (4 * wanted, 8 * wanted)
    ids = 8 * (6 * 128 + 10 * 48)
    assert memory.batch == 3 * 64 * 64 * (6 * 8 + 10) + ids
    packed = memory_of(mixed(parts=tuple(replace(p, pixels="tubelets") for p in (CLIPS, IMAGES))), None)
    assert packed.batch == 3 * 64 * 64 * (6 * 4 + 10 * 3 // 4) + 3 * 64 * 32 + ids


def test_a_pass_has_as_many_images_as_the_trainer_takes():
    """``Contrastive._chunks`` itself, on the same parts."""
    packed = (Part(batch=7, mask_ratio=0.75), Part(batch=9, mask_ratio=0.5), replace(IMAGES, mask_ratio=0.9))
    for parts in ((CLIPS, IMAGES), packed, (IMAGES, replace(IMAGES, mask_ratio=0.0))):
        for chunk in (1, 3):
            step = mixed(parts=parts, chunk=chunk)
            model = model_of(step)
            stage = SimpleNamespace(config=SimpleNamespace(memory=SimpleNamespace(chunk=chunk)))
            assert [one.chunk for one in step.each] == Contrastive._chunks(stage, model, parts_of(step, model))


def test_the_time_is_the_sum_of_the_parts():
    step = mixed(precision="bfloat16")
    found, alone = seconds_of(step, H100), [seconds_of(one, H100) for one in step.each]
    for name in ("products", "attention", "embedding", "transfers"):
        assert getattr(found, name) == pytest.approx(sum(getattr(one, name) for one in alone), rel=0.02)
    assert model_flops(step) == sum(map(model_flops, step.each))
    clips = mixed(precision="bfloat16", parts=(CLIPS, replace(CLIPS, batch=10)))
    assert found.device < 0.8 * seconds_of(clips, H100).device


@pytest.mark.parametrize("tuning", ["all", "last_2"])
def test_in_chunks_all_but_the_very_last_go_forward_twice(tuning):
    step = mixed(chunk=2, tuning=tuning, precision="bfloat16")
    found = seconds_of(step, H100).attention
    alone = sum(seconds_of(one, H100).attention for one in step.each)
    ops = simulate(step, 0).trace.at(2).part(backward=False).ops()
    forward = float(op_seconds(ops, step, H100)[ops[:, KIND] == ATTENTION].sum())
    # Alone, the last chunk of the clips has its graph at once; of a stored prefix two of seven blocks run again.
    assert found - alone == pytest.approx(forward * (2 / 7 if tuning == "last_2" else 1), rel=0.01)


def test_shares_add_up_and_stay():
    parts = (Part(batch=128), Part(batch=96), Part(batch=32))
    assert shared(256, parts) == [128, 96, 32] and shared(16, parts) == [8, 6, 2]
    for batch in range(3, 300):
        found = shared(batch, parts)
        assert sum(found) == batch and min(found) >= 1
        assert all(abs(f - batch * p.batch / 256) <= 2 for f, p in zip(found, parts, strict=True))
    uneven = (Part(batch=1), Part(batch=1), Part(batch=1000))
    assert [sum(shared(n, uneven)) for n in (3, 4, 10)] == [3, 4, 10] and min(shared(3, uneven)) == 1
    with pytest.raises(ValueError, match="batch: wanted at least one sample for each of 2 parts, got 1"):
        mixed(batch=1)
    with pytest.raises(ValueError, match="mask_ratio: wanted 0 <= ratio < 1, got 2"):
        mixed(parts=(CLIPS, replace(IMAGES, mask_ratio=2)))
    with pytest.raises(ValueError, match="images: wanted a config with images=True"):
        Step(config=CFG.replace(images=False), batch=16, parts=(CLIPS, IMAGES))


def test_the_largest_batch_keeps_the_shares_and_one_more_does_not_fit():
    found = plan_step(mixed(precision="bfloat16"), H100, 10**9)
    assert found.fits and found.largest_batch > 100 and found.largest_chunk == 16
    assert needed(replace(found.step, batch=found.largest_batch), H100) <= 1e9
    assert needed(replace(found.step, batch=found.largest_batch + 1), H100) > 1e9
    clips, images = shared(found.largest_batch, found.step.parts)
    assert clips / images == pytest.approx(6 / 10, rel=0.02)
    assert f"largest batch in 1.00 GB: {found.largest_batch}, {clips} + {images}" in str(found)


def test_the_largest_chunk_fits_and_one_more_does_not():
    found = plan_step(mixed(precision="bfloat16", batch=4000), H100, 10**9)
    most = found.largest_chunk
    assert not found.fits and 0 < most < 4000
    assert needed(replace(found.step, chunk=most), H100) <= 1e9 < needed(replace(found.step, chunk=most + 1), H100)
    assert found.remedy and needed(turned_by(found.step, found.remedy), H100) <= 1e9
    none = plan_step(mixed(precision="bfloat16", batch=4000), H100, 10**7)
    assert none.largest_batch == none.largest_chunk == 0 and "one of each part does not fit" in str(none)


def test_every_switch_does_what_it_says():
    step = mixed(batch=160, chunk=8, tuning="last_2", precision="bfloat16")
    before, found = memory_of(step, H100).total, switches(step, H100, 10**9)
    fields = {switch.field for switch in found}
    assert {"memory.chunk", "memory.checkpointing", "optimiser.states", "mask_ratio of clips"} <= fields
    for switch in found:
        changed = turned_by(step, [switch])
        assert memory_of(changed, H100).total == switch.total < before
    (masked,) = (turned_by(step, [s]) for s in found if s.field == "mask_ratio of clips")
    assert [one.mask_ratio for one in masked.each] == [0.75, 0.25]
    whole = {switch.field: switch for switch in switches(replace(step, chunk=0), H100, 10**9)}
    assert whole["memory.chunk"].changes["chunk"] < 100
    assert {one.pixels for one in turned_by(step, [whole["packed shards (fastvivit data pack)"]]).each} == {"tubelets"}


def test_a_stored_prefix_is_that_of_clips_alone():
    """The embedding of images is trained, so that nothing of theirs is the same in both passes."""
    few = replace(IMAGES, batch=2)
    many = mixed(chunk=2, tuning="last_1", parts=(replace(CLIPS, batch=600), few), precision="bfloat16")
    found = memory_of(many, None)
    assert found.prefix == pytest.approx(600 * 128 * (64 * 2 + 16), rel=0.01)
    assert "memory.prefix" in {switch.field for switch in switches(many, H100, 10**9)}
    images = mixed(chunk=2, tuning="last_1", parts=(few, replace(IMAGES, batch=600)))
    assert not images.stored and memory_of(images, None).prefix == 0


def test_what_is_printed_names_the_parts():
    parts = (Part(batch=128, mask_ratio=0.75), Part(batch=128, mask_ratio=0.5, images=True))
    text = str(plan_step(mixed(parts=parts, precision="bfloat16", chunk=16), H100, 80 * 10**9))
    line = "128 clips of 8 x 64 x 64, 75% masked: 64 tokens; 128 images of 64 x 64, 50% masked: 32 tokens"
    assert line in text.splitlines() and "batch 256, chunks of 16 and 32, tuning all" in text and "samples/s" in text
    assert max(map(len, text.splitlines())) <= 100
