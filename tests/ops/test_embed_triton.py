"""The embedding's kernels in Triton, called as their op calls them on a GPU, against float64 convolution."""

import pytest
import torch
from torch.nn import functional as nnf

from fastvivit.ops.tubelet_embed.geometry import geometry
from tests.numerics import assert_close

pytest.importorskip("triton")

from fastvivit.ops.tubelet_embed import backend_triton as embed
from fastvivit.ops.tubelet_embed import triton_forward

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
U8, F32, F16 = torch.uint8, torch.float32, torch.float16

# kernel, stride, offset, size, channels. Small frames; the sizes of the tubelets are the real ones.
TUBES = {
    "vivit": ((2, 16, 16), (2, 16, 16), (0, 0, 0), (4, 33, 48), 3),
    "patches": ((1, 16, 16), (1, 16, 16), (0, 0, 0), (2, 32, 32), 3),
    "coarse": ((4, 32, 32), (4, 32, 32), (0, 0, 0), (4, 32, 64), 3),
    "tube 8x8x8": ((8, 8, 8), (16, 32, 32), (0, 0, 0), (24, 40, 8), 3),
    "tube 16x4x4": ((16, 4, 4), (6, 32, 32), (4, 8, 8), (26, 12, 12), 3),
    "tube 4x12x12": ((4, 12, 12), (16, 32, 32), (0, 16, 16), (20, 28, 60), 3),
    "tube 1x16x16": ((1, 16, 16), (32, 16, 16), (0, 0, 0), (33, 16, 32), 3),
    "overlapping": ((2, 3, 4), (1, 2, 3), (1, 0, 2), (4, 7, 11), 2),
    "one channel": ((2, 3, 5), (2, 3, 5), (0, 1, 0), (5, 8, 12), 1),
}


def formula(inputs, ids, where, dtype):
    """normalise → conv3d → + pos → index, in ``dtype``."""
    video, weight, bias, pos = (None if t is None else t.to(dtype) for t in inputs)
    if where.scale is not None:
        scale, shift = video.new_tensor([where.scale, where.shift]).view(2, -1, 1, 1, 1)
        video = video * scale + shift
    t, h, w = where.offset
    rows = nnf.conv3d(video[:, :, t:, h:, w:], weight, bias, where.stride).flatten(2).transpose(1, 2)
    rows = (rows if pos is None else rows + pos).flatten(0, 1)
    return rows if ids is None else rows[ids]


def problem(tube, pixels, dtype, device, *, clips=2, width=24, keep=None, norm=True, last=False):
    """Inputs (video, weight, bias, pos), ids, geometry. ``last``: a permuted channels-last buffer."""
    kernel, stride, offset, size, channels = TUBES[tube]
    shape = (clips, *size, channels)
    video = torch.randint(256, shape, device=device, dtype=U8)
    video = video if pixels == U8 else (video / 255).to(pixels)
    video = video.permute(0, 4, 1, 2, 3)
    video = video if last else video.contiguous()
    weight = torch.randn(width, channels, *kernel, device=device) / (channels * torch.Size(kernel).numel()) ** 0.5
    mean, std = (MEAN[:channels], STD[:channels]) if norm else (None, None)
    weight = weight.to(dtype)
    where = geometry(video, weight, mean, std, stride, offset)
    bias, pos = (torch.randn(s, device=device).to(dtype) for s in ((width,), (where.tokens, width)))
    total = clips * where.tokens
    ids = None if keep is None else torch.randperm(total, device=device)[: max(round(total * keep), 1)]
    return [video, weight, bias, pos], ids, where


def agree(inputs, ids, where, dtype, precision="ieee"):
    """Output and every gradient within twice PyTorch's own error; a repeat gives the same bits."""
    needs = tuple(t is not None and t.is_floating_point() for t in inputs)
    got = embed.forward(*inputs, ids, where, precision)
    grad = torch.randn(got.shape, device=got.device).to(dtype)
    grads = embed.backward(grad, inputs[0], inputs[1], ids, where, precision, needs)

    def own(other):
        leaves = [t.to(other).requires_grad_() if need else t for t, need in zip(inputs, needs, strict=True)]
        out = formula(leaves, ids, where, other)
        wanted = [t for t, need in zip(leaves, needs, strict=True) if need]
        return [out.detach(), *torch.autograd.grad(out, wanted, grad.to(other))]

    found = [got, *(g for g in grads if g is not None)]
    names = ["out", *(n for n, need in zip(("video", "weight", "bias", "pos"), needs, strict=True) if need)]
    for name, mine, golden, plain in zip(names, found, own(torch.float64), own(dtype), strict=True):
        assert_close(name, mine, golden, plain, mine.dtype)
    again = embed.forward(*inputs, ids, where, precision)
    assert torch.equal(got, again)
    for one, two in zip(grads, embed.backward(grad, inputs[0], inputs[1], ids, where, precision, needs), strict=True):
        assert one is two is None or torch.equal(one, two)


@pytest.mark.parametrize("tube", TUBES)
def test_every_tube_from_bytes(tube, device, poisoned):
    agree(*problem(tube, U8, F32, device, keep=0.6, last=True), F32)


@pytest.mark.parametrize("tube", TUBES)
def test_every_tube_from_floats(tube, device, poisoned):
    agree(*problem(tube, F32, F32, device, clips=1, keep=0.6, norm=False), F32)


@pytest.mark.parametrize("dtype", [F32, F16], ids=str)
@pytest.mark.parametrize("pixels", [U8, F32, F16], ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["planar", "interleaved"])
def test_every_pair_of_dtypes(pixels, dtype, last, device, poisoned):
    # A width of more than a block, which no block divides.
    agree(*problem("vivit", pixels, dtype, device, clips=1, width=72, keep=0.7, last=last), dtype)


@pytest.mark.parametrize("keep", [None, 0.01, 1.0], ids=["all", "one", "shuffled"])
@pytest.mark.parametrize("pixels", [U8, F32], ids=str)
def test_kept_subsets(keep, pixels, device, poisoned):
    agree(*problem("overlapping", pixels, F32, device, keep=keep), F32)


def test_bytes_of_one_scale_and_without_bias_or_position(device, poisoned):
    (video, weight, _, _), ids, where = problem("one channel", U8, F16, device, keep=0.5, norm=False)
    agree([video, weight, None, None], ids, where, F16)


def test_more_rows_than_one_split(device, poisoned):
    TUBES["many"] = ((1, 2, 2), (1, 2, 2), (0, 0, 0), (3, 16, 16), 1)
    inputs, ids, where = problem("many", F32, F32, device, keep=0.9)
    assert len(ids) > 16 * triton_forward.INTERPRETED.m
    agree(inputs, ids, where, F32)


def test_views_of_a_larger_video(device, poisoned):
    for pixels in (U8, F32):
        (video, *rest), ids, where = problem("one channel", pixels, F32, device, keep=0.5)
        big = torch.zeros(3, 2, 7, 10, 15, device=device, dtype=video.dtype)
        view = big[1:, 1:, 1:6, 2:, 1:13].copy_(video)
        agree([view, *rest], ids, where, F32)
        agree([video[:, :, :, :, :1].expand_as(video), *rest], ids, where, F32)


def test_a_mean_far_from_zero_does_not_cancel(device):
    # Pixels a thousandth of the mean away from it: folded into the bias, three digits would be gone.
    (video, *rest), ids, _ = problem("one channel", F32, F32, device, keep=0.5)
    where = geometry(video, rest[0], [0.5], [5e-4], *TUBES["one channel"][1:3])
    agree([0.5 + (video - 0.5) * 1e-3, *rest], ids, where, F32)


def test_tf32_weights_are_rounded_not_cut(device):
    x = torch.tensor([1.0, 1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-10, -1 - 2**-12, 0.0, 1 + 2**-11 + 2**-20])
    want = torch.tensor([1.0, 1.0, 1 + 2**-9, 1 + 2**-10, -1.0, 0.0, 1 + 2**-10])
    assert torch.equal(triton_forward.round_to_tf32(x), want)
    inputs, ids, where = problem("vivit", U8, F32, device, clips=1, keep=0.5)
    got = embed.forward(*inputs, ids, where, "tf32")
    golden = formula(inputs, ids, where, torch.float64)
    assert (got - golden).abs().max() < 2**-10 * golden.abs().max()


@pytest.mark.parametrize("tube", ["vivit", "overlapping"])
@pytest.mark.parametrize("pixels", [U8, F32], ids=str)
def test_a_bad_id_is_a_row_of_nan_that_passes_no_gradient_on(tube, pixels, device, poisoned):
    inputs, ids, where = problem(tube, pixels, F32, device, keep=0.6)
    total = where.clips * where.tokens
    wrong = torch.tensor([-1, total, 2**40, -(2**40)], device=device)
    mixed = torch.cat([wrong[:1], ids[:2], wrong[1:], ids[2:]])
    good = torch.isin(mixed, ids)
    out = embed.forward(*inputs, mixed, where, "ieee")
    assert out[~good].isnan().all()
    torch.testing.assert_close(out[good], embed.forward(*inputs, ids, where, "ieee"))
    grad = torch.randn_like(out).masked_fill(~good.unsqueeze(1), float("nan"))
    needs = (pixels != U8, True, True, True)
    want = embed.backward(grad[good], *inputs[:2], ids, where, "ieee", needs)
    for mine, other in zip(embed.backward(grad, *inputs[:2], mixed, where, "ieee", needs), want, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("tube", ["vivit", "overlapping"])
def test_a_repeated_id_makes_the_gradient_of_the_video_nan(tube, device):
    inputs, ids, where = problem(tube, F32, F32, device, keep=0.6)
    ids[1] = ids[0]
    grad = torch.randn(len(ids), 24, device=device)
    grad_video, *_ = embed.backward(grad, *inputs[:2], ids, where, "ieee", (True, False, False, False))
    assert grad_video.isnan().any()


def test_nothing_at_all(device):
    inputs, _, where = problem("vivit", F32, F32, device)
    none = torch.empty(0, dtype=torch.int64, device=device)
    assert embed.forward(*inputs, none, where, "ieee").shape == (0, 24)
    grad = torch.empty(0, 24, device=device)
    for found, like in zip(embed.backward(grad, *inputs[:2], none, where, "ieee", (True,) * 4), inputs, strict=True):
        assert torch.equal(found, torch.zeros_like(like))
    assert embed.backward(grad, *inputs[:2], none, where, "ieee", (False,) * 4) == (None,) * 4
    empty = geometry(inputs[0][:0], inputs[1], None, None, (2, 16, 16), (0, 0, 0))
    rows = embed.forward(inputs[0][:0], *inputs[1:], torch.zeros(2, dtype=torch.int64), empty, "ieee")
    assert rows.shape == (2, 24)
    assert rows.isnan().all()


def test_one_clip_is_aligned_whatever_its_batch_stride(device):
    """Of ``clip.unsqueeze(0)`` the batch stride is 3: kernels that believe it load byte by byte."""
    (video, weight, bias, pos), _, where = problem("vivit", U8, F32, device, clips=1, last=True)
    single = video[0].unsqueeze(0)
    assert single.stride(0) == 3 and triton_forward.grid_arguments(single, where)["stride_b"] == 0
    corners, unit = triton_forward.corners_of(single, None, where, where.tokens)
    again, _ = triton_forward.corners_of(video, None, where, where.tokens)
    assert unit == 16 and torch.equal(corners, again)
    agree([single, weight, bias, pos], None, where, F32)


def test_tubelets_on_top_of_each_other_are_the_clips(device):
    """How ``PatchEmbed.tubelets`` calls the kernels: single tubelets as one clip, with a position each."""
    (video, weight, bias, pos), ids, where = problem("vivit", U8, F32, device, keep=0.5, last=True)
    want = embed.forward(video, weight, bias, pos, ids, where, "ieee")
    tiles = video.movedim(1, -1)[:, :, :32].unflatten(1, (-1, 2)).unflatten(3, (-1, 16)).unflatten(5, (-1, 16))
    tiles = tiles.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(0, 3)[ids].movedim(-1, 1)
    strip = tiles.transpose(0, 1).flatten(1, 2).unsqueeze(0)
    alone = geometry(strip, weight, MEAN, STD, (2, 16, 16), (0, 0, 0))
    rows = pos[ids % where.tokens]
    assert torch.equal(embed.forward(strip, weight, bias, rows, None, alone, "ieee"), want)
    agree([strip, weight, bias, rows], None, alone, F32)
