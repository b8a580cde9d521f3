"""The FLOPs of a step against a dense count by hand."""

import pytest
import torch

import fastvivit as fv
import fastvivit.functional as F
from fastvivit.train import MemoryConfig, TuningConfig
from fastvivit.train.flops import ModelFlops, step_flops
from fastvivit.train.stages import make_stage

CPU = torch.device("cpu")
WIDTH, FF, DEPTH, DIM = 32, 64, 3, 16


@pytest.fixture
def deep(config, change):
    model = config.model.replace(depth=DEPTH, images=False)
    return change(config, model=model, text={"depth": 2})


def counted(config, run, size=6):
    stage = make_stage(config)
    model = stage.build(run)
    batches = [
        dataset.collate([dataset[i] for i in range(size)]) | {"source": number, "seconds": 0.0}
        for number, dataset in enumerate(stage.sources)
    ]
    found = step_flops(stage, model, batches, CPU)
    assert all(parameter.grad is None for parameter in model.parameters())
    return found, batches[0]["caption"], model


def longest(captions, model):
    """Tokens of the longest of some captions."""
    return model.text.tokenize([max(captions, key=len)])["input_ids"].shape[1]


def block(n, width, ff):
    """Forward FLOPs of a transformer block on n tokens: four products of the width, two of the MLP, two n x n."""
    return 2 * n * (4 * width**2 + 2 * width * ff) + 4 * n * n * width


def by_hand(tokens, words, *, trained=DEPTH, embed=True, text=True):
    """Three times the forward where something is trained, but for the input's own gradient at the patches."""
    forward = 2 * tokens * (3 * 2 * 16 * 16) * WIDTH * (2 if embed else 1)
    blocks = block(tokens, WIDTH, FF) * (DEPTH + 2 * trained)
    words = 2 * block(words, 32, 4 * 32) * (3 if text else 1)
    heads = 2 * WIDTH * DIM * 3 + 2 * 32 * DIM * (3 if text else 2)
    pooler, similarity = 2 * 32 * 32, 2 * DIM * 3  # BERT's pooler runs, and nothing reads it
    return forward + blocks + words + heads + pooler + similarity


@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_everything_trained(deep, change, tmp_path, ratio):
    found, captions, model = counted(change(deep, mask={"ratio": ratio}), tmp_path)
    assert found == 6 * by_hand(16 * (1 - ratio), longest(captions, model))


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_what_is_computed_again_does_not_count(deep, change, tmp_path, checkpointing):
    found, captions, model = counted(change(deep, memory=MemoryConfig(checkpointing=checkpointing)), tmp_path)
    assert found == 6 * by_hand(8, longest(captions, model))


@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_the_last_layers_have_a_backward_alone(deep, change, tmp_path, checkpointing):
    tuning = TuningConfig(method="last_layers", layers=1, text=False)
    start = fv.save_pretrained(make_stage(deep).build(tmp_path), tmp_path / "start")
    tuned = change(deep, model=None, start=str(start), tuning=tuning, memory={"checkpointing": checkpointing})
    found, captions, model = counted(tuned, tmp_path)
    assert found == 6 * by_hand(8, longest(captions, model), trained=1, embed=False, text=False)


def test_attention_over_sequences_of_any_length_is_counted_exactly():
    """Masked places leave sequences of different lengths: the sum of their squares is not that of equal ones."""
    ends = torch.tensor([0, 1, 5, 16], dtype=torch.int32)
    q = torch.randn(16, 2, 16, requires_grad=True)
    with ModelFlops() as counter:
        out = F.varlen_attention(q, q, q, ends, ends)
        out.sum().backward()
    assert counter.total == 3 * 4 * 2 * 16 * (1 + 16 + 121)


def test_a_frozen_encoder_has_a_forward_alone(captioning, change, tmp_path):
    """Of two captioners that differ in their masks alone the encoder's forward makes the difference."""
    captioning = change(captioning, vision={"cache": False})
    found = [counted(change(captioning, mask={"ratio": ratio}), tmp_path)[0] for ratio in (0.0, 0.5)]
    few, many = block(8, WIDTH, FF) + 2 * 8 * 1536 * WIDTH, block(16, WIDTH, FF) + 2 * 16 * 1536 * WIDTH
    resampled = 6 * (few - many)
    assert found[1] - found[0] == pytest.approx(resampled, rel=0.05), found
