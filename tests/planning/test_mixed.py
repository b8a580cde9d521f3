"""A mixed batch is planned for as it is trained: images beside clips, each part under its own mask."""

import pytest
import torch

import fastvivit as fv
from fastvivit import tune
from fastvivit.contrastive import ContrastivePart, chunked_backward, contrastive_losses
from fastvivit.modules.clips import draw_keep
from fastvivit.planning.fakes import widen_norms
from fastvivit.planning.ledger import Ledger
from fastvivit.planning.memory import memory_of
from fastvivit.planning.parts import Part, shared
from fastvivit.planning.simulate import DIM
from fastvivit.planning.step import Step
from fastvivit.planning.texts import PlannedText, TextSize

CFG = fv.ViViTConfig(frames=8, size=64, tubelet=(2, 8, 8), width=64, depth=7, heads=4, ff=256)
TEXT = TextSize(width=64, depth=5, heads=4, ff=256, vocabulary=30, positions=12, tokens=12, dropout=0.0)
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
    "chunks, 16 bits, full": {"chunk": 2, "precision": "bfloat16", "checkpointing": "full"},
    "one chunk each": {"chunk": 6},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_peak_is_that_of_a_real_step(name):
    step = mixed(**SETTINGS[name])
    memory = memory_of(step, None)
    print(name, (memory.total - memory.optimiser) / real_peak(step), memory)
    assert memory.total - memory.optimiser == pytest.approx(real_peak(step), rel=0.05)
