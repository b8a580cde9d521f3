"""Contrastive losses: their formulas, block by block, and what they keep."""

import math

import pytest
import torch
from torch.nn import functional as nnf

import fastvivit.functional as F
from benchmarks.accounting import Ledger

BLOCKS = [1, 4, 5, 16, None]


def pairs(rows=16, width=5):
    video, text = (torch.randn(rows, width, dtype=torch.float64, requires_grad=True) for _ in range(2))
    scale, bias = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (7.0, -3.0))
    return video, text, scale, bias


def cross_entropies(video, text, scale, bias):
    logits, target = scale * nnf.normalize(video) @ nnf.normalize(text).T, torch.arange(len(video))
    return (nnf.cross_entropy(logits, target) + nnf.cross_entropy(logits.T, target)) / 2


def equation_1(video, text, scale, bias):
    """SigLIP's, pair by pair."""
    video, text, total = nnf.normalize(video), nnf.normalize(text), 0
    for i in range(len(video)):
        for j in range(len(text)):
            z = 1 if i == j else -1
            total = total - torch.log(torch.sigmoid(z * (scale * video[i] @ text[j] + bias)))
    return total / len(video)


def infonce(video, text, scale, bias, **options):
    return F.nce_loss(video, text, scale, **options)


@pytest.mark.parametrize("chunk", BLOCKS)
@pytest.mark.parametrize(("loss", "formula"), [(infonce, cross_entropies), (F.sigmoid_loss, equation_1)])
def test_blocks_are_the_formula_with_its_gradients(loss, formula, chunk):
    inputs = pairs()
    found, want = loss(*inputs, chunk=chunk), formula(*inputs)
    torch.testing.assert_close(found, want)
    grads, wanted = (torch.autograd.grad(value, inputs, allow_unused=True) for value in (found, want))
    for mine, other in zip(grads, wanted, strict=True):
        assert (mine is None) == (other is None)
        if other is not None:
            torch.testing.assert_close(mine, other)


def test_sigmoid_loss_has_its_gradients_and_its_dtypes():
    video, text, scale, bias = pairs(4)
    torch.autograd.gradcheck(F.sigmoid_loss, (video, text, scale, bias))
    half = F.sigmoid_loss(video.half(), text.half(), 10.0, -10.0)
    assert half.dtype == torch.float32
    narrow = video.float(), text.float(), 10.0, -10.0
    with torch.autocast("cpu", torch.bfloat16):
        inside = F.sigmoid_loss(*narrow)
    assert torch.equal(inside, F.sigmoid_loss(*narrow))
    # As in the paper's appendix: at the start the loss is that of the matches, which are far from 0.
    assert F.sigmoid_loss(video[:1], video[:1], 10.0, -10.0).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("loss", [infonce, F.sigmoid_loss])
def test_memory_is_a_block_of_rows(loss):
    peaks = {}
    for chunk in (16, 512):
        inputs = [t.detach().float().requires_grad_() for t in pairs(512, 8)]
        with Ledger(inputs, {}) as ledger:
            loss(*inputs, chunk=chunk).backward()
        peaks[chunk] = ledger.peak
    assert peaks[512] > 2 * 512 * 512 * 4
    assert peaks[16] < 512 * 512 * 4 / 2


@pytest.mark.parametrize("loss", [infonce, F.sigmoid_loss])
def test_bad_input_is_an_error_that_names_it(loss):
    for video, text, options, message in (
        (torch.ones(2, 3), torch.ones(3, 3), {}, r"text: wanted shape \(2, 3\) like video"),
        (torch.ones(0, 3), torch.ones(0, 3), {}, r"text: wanted shape \(0, 3\) like video, and a row"),
        (torch.ones(3), torch.ones(3), {}, "video: wanted 2 dimensions"),
        (torch.ones(2, 3), torch.ones(2, 3), {"chunk": 0}, "chunk: wanted at least 1 row, or None, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            loss(video, text, 1.0, 0.0, **options)
