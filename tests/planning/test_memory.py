"""What a plan says of memory is what a real step on real tensors allocates."""

from dataclasses import replace

import pytest
import torch

import fastvivit as fv
from fastvivit import tune
from fastvivit.contrastive import ContrastivePart, chunked_backward
from fastvivit.modules.clips import draw_keep
from fastvivit.planning.fakes import widen_norms
from fastvivit.planning.ledger import Ledger
from fastvivit.planning.memory import memory_of
from fastvivit.planning.simulate import DIM, simulate
from fastvivit.planning.step import Step
from fastvivit.planning.texts import TextSize
from fastvivit.train.build import scratch_tower
from fastvivit.train.tables import TextConfig

CFG = fv.ViViTConfig(frames=8, size=64, tubelet=(2, 8, 8), width=64, depth=7, heads=4, ff=256, images=False)
TEXT = TextSize(width=64, depth=5, heads=4, ff=256, vocabulary=30, positions=12, tokens=12, dropout=0.0)
WORDS = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"]
TUNINGS = {
    "last_2": lambda enc: tune.last_layers(enc, 2),
    "adapters_16": lambda enc: tune.add_adapters(enc, 16),
    "lora_4": lambda enc: tune.add_lora(enc, 4),
    "temporal": tune.temporal_only,
}


def encoder_of(step):
    torch.manual_seed(0)
    encoder = fv.ViViT(step.config).train()
    if step.tuning in TUNINGS:
        TUNINGS[step.tuning](encoder)
    if step.checkpointing != "none":
        encoder.set_grad_checkpointing(True, step.checkpointing)
    if step.precision == "bfloat16":
        widen_norms(encoder)
    return encoder


def clips_of(step):
    video = torch.randint(256, (step.batch, 3, step.config.frames, *step.config.size), dtype=torch.uint8)
    keep = draw_keep(step.batch, step.config.views, step.mask_ratio) if step.mask_ratio else None
    return video, keep


def loss_of(model, video, keep, step):
    with torch.autocast("cpu", torch.bfloat16, enabled=step.precision == "bfloat16"):
        if isinstance(model, fv.VideoTextModel):
            return model.losses(video, [" ".join(WORDS)] * len(video), keep=keep)["loss"]
        return model(video, keep=keep).pooled.float().square().mean()


def real_peak(step, model):
    """Bytes of a step in one pass: parameters, pixels, and the most that is alive at once."""
    video, keep = clips_of(step)
    known = [*model.parameters(), video, *([] if keep is None else [keep.ids])]
    with Ledger(known, {}) as ledger:
        loss_of(model, video, keep, step).backward()
    return ledger.peak + sum(t.numel() * t.element_size() for t in known)


def without_states(memory):
    return memory.total - memory.optimiser


SETTINGS = {
    "all": {},
    "all, 16 bits": {"precision": "bfloat16"},
    "all, masked": {"mask_ratio": 0.75},
    "all, full": {"checkpointing": "full"},
    "all, full, masked, 16 bits": {"checkpointing": "full", "mask_ratio": 0.75, "precision": "bfloat16"},
    "all, selective": {"checkpointing": "selective"},  # in 16 bits a CPU keeps something else than a GPU
    "last 2": {"tuning": "last_2"},
    "last 2, masked, 16 bits": {"tuning": "last_2", "mask_ratio": 0.75, "precision": "bfloat16"},
    "adapters": {"tuning": "adapters_16"},
    "adapters, full": {"tuning": "adapters_16", "checkpointing": "full"},
    "LoRA, masked, 16 bits": {"tuning": "lora_4", "mask_ratio": 0.75, "precision": "bfloat16"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_peak_is_that_of_a_real_step(name):
    step = Step(config=CFG, batch=5, **{"precision": "float32"} | SETTINGS[name])
    assert without_states(memory_of(step, None)) == pytest.approx(real_peak(step, encoder_of(step)), rel=0.01)


@pytest.mark.parametrize(
    "change", [{"attention": "factorised"}, {"attention": "frame"}, {"pool": "cls"}, {"pool": "attention"}], ids=str
)
def test_the_peak_of_other_encoders(change):
    tuning = "temporal" if change.get("attention") == "factorised" else "all"
    step = Step(config=CFG.replace(**change), mask_ratio=0.5, tuning=tuning, batch=3, precision="float32")
    assert without_states(memory_of(step, None)) == pytest.approx(real_peak(step, encoder_of(step)), rel=0.02)


def test_selective_keeps_ten_numbers_a_token_under_autocast():
    """6 D + F of 2 bytes where everything would be 10 D + 2 F: what ``ViViT.set_grad_checkpointing`` promises."""
    kept = {}
    for policy in ("none", "selective"):
        deeper, deep = (
            memory_of(Step(config=CFG.replace(depth=d), batch=64, checkpointing=policy), None).activations
            for d in (9, 8)
        )
        kept[policy] = (deeper - deep) / (64 * CFG.tokens * CFG.width * 2)
    heads = 4 * CFG.heads / (2 * CFG.width) + 16 / (2 * CFG.width)
    assert kept["selective"] == pytest.approx(10 + heads, rel=0.01)
    assert kept["none"] == pytest.approx(18 + heads, rel=0.01)


@pytest.mark.parametrize("tokens", [12, 7])
def test_the_peak_with_a_bert_of_transformers(tokens):
    """BERT's own code against ours; its pooler, its mask and its tables of positions are the difference."""
    step = Step(config=CFG, mask_ratio=0.75, batch=16, precision="float32", text=replace(TEXT, tokens=tokens))
    tower = scratch_tower(TextConfig(width=64, depth=5, heads=4, max_length=tokens), WORDS)
    model = fv.VideoTextModel(encoder_of(step), tower, DIM).train()
    assert without_states(memory_of(step, None)) == pytest.approx(real_peak(step, model), rel=0.05)
    ours, theirs = simulate(step).parameters, sum(p.numel() for p in model.parameters())
    assert ours == pytest.approx(theirs, rel=0.05)


@pytest.mark.parametrize("prefix", ["device", "off"])
@pytest.mark.parametrize("tuning", ["all", "last_2"])
def test_the_peak_in_chunks(tuning, prefix):
    step = Step(
        config=CFG, mask_ratio=0.5, batch=12, chunk=3, tuning=tuning, prefix=prefix, precision="float32", text=TEXT
    )
    tower = scratch_tower(TextConfig(width=64, depth=5, heads=4, max_length=12), WORDS)
    model = fv.VideoTextModel(encoder_of(step), tower, DIM).train()
    video, keep = clips_of(step)
    part = ContrastivePart(video, [" ".join(WORDS)] * step.batch, keep=keep)
    known = [*model.parameters(), video, keep.ids]
    with Ledger(known, {}) as ledger:
        chunked_backward(model, [part], chunk=step.chunk, prefix=step.prefix)
    real = ledger.peak + sum(t.numel() * t.element_size() for t in known)
    assert without_states(memory_of(step, None)) == pytest.approx(real, rel=0.05)


def test_every_size_is_affine_in_the_clips_and_in_the_blocks():
    """From two clips and three blocks to any: the peaks above, at sizes that were never run."""
    for batch, depth in ((1, 3), (2, 4), (9, 12)):
        step = Step(config=CFG.replace(depth=depth), batch=batch, precision="float32")
        assert without_states(memory_of(step, None)) == pytest.approx(real_peak(step, encoder_of(step)), rel=0.01)


def test_states_weights_and_pixels_are_counted_in_bytes():
    step = Step(config=CFG, batch=4, mask_ratio=0.75)
    encoder = fv.ViViT(CFG)
    count = sum(p.numel() for p in encoder.parameters())
    memory = memory_of(step, None)
    ids = 4 * 64 * 8
    assert (memory.weights, memory.optimiser, memory.batch) == (4 * count, 8 * count, 4 * 3 * 8 * 64 * 64 + ids)
    small = memory_of(replace(step, states="8bit", pixels="tubelets"), None)
    assert small.optimiser == int(2 * count * (1 + 4 / 256))
    assert small.batch == 4 * 3 * 8 * 64 * 64 // 4 + ids


def test_offloading_leaves_two_inputs_of_blocks_on_the_device():
    config = CFG.replace(depth=12, size=256, width=128)
    step = Step(config=config, batch=16, checkpointing="full")
    kept, away = (memory_of(replace(step, offload=o), None).activations for o in (False, True))
    one = 16 * config.tokens * config.width * 2
    assert kept - away == pytest.approx(10 * one, rel=0.15)
