"""The plain functions: masks, the contrastive loss, positions, inflation, packing."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as nnf

import fastvivit.functional as F


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.floats(0, 0.99))
def test_random_keep_counts_and_order(batch, t, h, w, ratio):
    total, places = t * h * w, h * w
    wanted = {
        "random": total - math.floor(total * ratio + 1e-9),
        "tube": t * (places - math.floor(places * ratio + 1e-9)),
        "frame": places * (t - math.floor(t * ratio + 1e-9)),
    }
    for strategy, count in wanted.items():
        keep = F.random_keep(batch, total, ratio, strategy=strategy, grid=(t, h, w))
        assert keep.shape == (batch, count) and keep.dtype == torch.int64
        assert keep.min() >= 0 and keep.max() < total and (keep.diff(dim=1) > 0).all()
        if strategy == "tube":
            for row in keep:
                spots = (row % places).view(t, -1)
                assert (spots == spots[0]).all()
        if strategy == "frame":
            for row in keep:
                assert (row.view(-1, places) % places == torch.arange(places)).all()


def test_random_keep_keeps_the_smallest_draws():
    keep = F.random_keep(3, 500, 0.75, generator=torch.Generator().manual_seed(0))
    draws = torch.rand(3, 500, generator=torch.Generator().manual_seed(0))
    assert torch.equal(keep, draws.argsort(1)[:, :125].sort(1).values)


def test_random_keep_follows_its_generator_and_is_uniform():
    draws = [F.random_keep(4, 64, 0.75, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    hits = torch.bincount(F.random_keep(4000, 20, 0.75).flatten(), minlength=20) / 4000
    assert (hits - 0.25).abs().max() < 0.05  # 7 standard deviations
    assert F.random_keep(1, 10, 0.3).shape[1] == 7  # 10 · 0.3 is a hair below 3


def test_random_keep_refuses():
    for call, message in (
        (lambda: F.random_keep(1, 8, 1.0), "mask_ratio: wanted 0 <= ratio < 1, got 1.0"),
        (lambda: F.random_keep(1, 8, -0.1), "mask_ratio"),
        (lambda: F.random_keep(1, 0, 0.5), "num_tokens"),
        (
            lambda: F.random_keep(1, 8, 0.5, strategy="cell"),
            "strategy: wanted one of 'random', 'tube', 'frame'",
        ),
        (lambda: F.random_keep(1, 8, 0.5, strategy="tube"), "grid: wanted (T', H', W') for strategy 'tube'"),
        (lambda: F.random_keep(1, 8, 0.5, grid=(2, 2, 3)), "grid: wanted (T', H', W') with 8 tokens"),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        assert message in str(caught.value)


def test_nce_loss_is_its_formula_with_its_gradients():
    video, text = (torch.randn(6, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    scale = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
    loss = F.nce_loss(video, text, scale)
    logits = scale * nnf.normalize(video) @ nnf.normalize(text).T
    diagonal = logits.diagonal()
    want = ((logits.logsumexp(1) - diagonal).mean() + (logits.logsumexp(0) - diagonal).mean()) / 2
    torch.testing.assert_close(loss, want)
    torch.autograd.gradcheck(F.nce_loss, (video, text, scale))
    half = F.nce_loss(video.half(), text.half(), 7.0)
    assert half.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(F.nce_loss(video.float(), text.float(), 7.0), F.nce_loss(video.float(), text.float(), 7.0))
        inside = F.nce_loss(video.float(), text.float(), 7.0)
    torch.testing.assert_close(inside, want.float(), rtol=1e-5, atol=1e-6)


def test_nce_loss_refuses():
    with pytest.raises(ValueError, match=r"text: wanted shape \(2, 3\) like video"):
        F.nce_loss(torch.ones(2, 3), torch.ones(3, 3), 1.0)
    with pytest.raises(ValueError, match="video: wanted 2 dimensions"):
        F.nce_loss(torch.ones(3), torch.ones(3), 1.0)


def test_positions_along_time():
    pos = torch.randn(2 * 3 * 4, 5)
    table = pos.view(2, 12, 5)

    def resized(slots, how):
        return F.resize_positions(pos, (2, 3, 4), (slots, 3, 4), how=how).view(slots, 12, 5)

    torch.testing.assert_close(resized(3, "interpolate"), torch.stack([table[0], table.mean(0), table[1]]))
    assert torch.equal(resized(4, "repeat"), table[[0, 0, 1, 1]])
    assert torch.equal(resized(5, "tile"), table[[0, 1, 0, 1, 0]])
    assert F.resize_positions(pos, (2, 3, 4), (2, 3, 4)) is pos


def test_positions_over_space_are_those_of_an_image_resize():
    pos = torch.randn(2 * 4 * 4, 3)
    got = F.resize_positions(pos, (2, 4, 4), (2, 6, 8)).view(2, 6, 8, 3)
    image = pos.view(2, 4, 4, 3).permute(0, 3, 1, 2)
    want = nnf.interpolate(image, size=(6, 8), mode="bicubic").permute(0, 2, 3, 1)
    torch.testing.assert_close(got, want)
    flat = torch.ones(16, 3, dtype=torch.bfloat16)
    assert torch.equal(F.resize_positions(flat, (1, 4, 4), (1, 9, 5)), torch.ones(45, 3, dtype=torch.bfloat16))


def test_positions_refuse():
    pos = torch.randn(8, 3)
    for call, message in (
        (
            lambda: F.resize_positions(pos, (2, 2, 3), (2, 2, 2)),
            "grid_from: wanted (T, H, W) with 8 positions",
        ),
        (lambda: F.resize_positions(pos, (2, 2, 2), (0, 2, 2)), "grid_to: wanted (T, H, W) of at least 1"),
        (
            lambda: F.resize_positions(pos, (2, 2, 2), (4, 2, 2), how="cubic"),
            "how: wanted 'interpolate', 'repeat' or 'tile'",
        ),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        assert message in str(caught.value)


def test_inflate():
    weight = torch.randn(4, 3, 6, 6)
    torch.testing.assert_close(F.inflate(weight, 3).sum(2), weight)
    central = F.inflate(weight, 4, how="central")
    assert torch.equal(central[:, :, 2], weight) and central.sum() == central[:, :, 2].sum()
    assert F.inflate(weight, 2, size=(12, 9)).shape == (4, 3, 2, 12, 9)
    # A flat patch keeps its value whatever the kernel's size.
    even = torch.ones(1, 3, 4, 4)
    torch.testing.assert_close(F.inflate(even, 2, size=(8, 2)).sum(), even.sum())
    for call, message in (
        (lambda: F.inflate(weight[0], 2), "weight_2d: wanted 4 dimensions"),
        (lambda: F.inflate(weight, 0), "t: wanted at least 1 frame, got 0"),
        (lambda: F.inflate(weight, 2, how="mean"), "how: wanted 'average' or 'central'"),
        (lambda: F.inflate(weight, 2, size=(0, 4)), "size: wanted (h, w) of at least 1"),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        assert message in str(caught.value)


def test_pack_and_unpack():
    x = torch.randn(3, 5, 2, 4, requires_grad=True)
    mask = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]).bool()
    packed, index, cu_seqlens, longest = F.pack(x, mask)
    assert torch.equal(packed, x[mask]) and cu_seqlens.tolist() == [0, 2, 2, 7] and longest == 5
    back = F.unpack(packed, index, (3, 5))
    assert torch.equal(back, x * mask[..., None, None])
    back.sum().backward()
    assert torch.equal(x.grad, mask[..., None, None].expand_as(x).float())
    with pytest.raises(ValueError, match=r"mask: wanted shape \(3, 5\) like x"):
        F.pack(x, mask[:, :4])
    with pytest.raises(ValueError, match="mask: wanted bool"):
        F.pack(x, mask.long())
