"""The patch gather, its gradient and the embedding on it, against plain torch."""

import numpy as np
import pytest
import torch

from fastvivit import _native
from tests.native.calls import BUILT, DTYPES, LIB, guarded, ints, segment_sum

pytestmark = BUILT


def make_video(layout, dtype, shape=(2, 3, 6, 48, 53)):
    generator = torch.Generator().manual_seed(6)
    batch, channels, *size = shape
    if layout == "interleaved":
        video = torch.randint(0, 256, (batch, *size, channels), generator=generator).permute(0, 4, 1, 2, 3)
    elif layout == "reversed":
        video = torch.randint(0, 256, (batch, channels, *size[::-1]), generator=generator).permute(0, 1, 4, 3, 2)
    else:
        video = torch.randint(0, 256, shape, generator=generator)
    return video.to(dtype) if dtype == torch.uint8 else (video / 255).to(dtype)


def affine_of(channels):
    return torch.linspace(0.5, 2.0, channels), torch.linspace(-1.0, 0.3, channels)


def patches_of(video, kernel, step, offset):
    """All tubelets (B*N, C*t*h*w) of a float64 video, scaled and shifted, by plain torch."""
    scale, shift = (x.double().view(-1, 1, 1, 1) for x in affine_of(video.shape[1]))
    patches = video[:, :, offset[0] :, offset[1] :, offset[2] :]
    for axis in range(3):
        patches = patches.unfold(2 + axis, kernel[axis], step[axis])
    return (patches.permute(0, 2, 3, 4, 1, 5, 6, 7) * scale + shift).flatten(0, 3).flatten(1)


def describe(video, kernel, step, offset):
    """Return the struct, the tokens of a clip, and all patches in float64."""
    grid = [
        (size - start - k) // s + 1 for size, start, k, s in zip(video.shape[2:], offset, kernel, step, strict=True)
    ]
    scale, shift = affine_of(video.shape[1])
    tubelets = _native.Tubelets(
        video=video.data_ptr(), dtype=DTYPES[video.dtype], channels=len(scale), scale=scale.data_ptr(),
        shift=shift.data_ptr(),
    )  # fmt: skip
    tubelets.stride[:], tubelets.kernel[:], tubelets.step[:] = video.stride(), kernel, step
    tubelets.offset[:], tubelets.grid[:] = offset, grid
    tubelets.alive = (video, scale, shift)
    return tubelets, int(np.prod(grid)), patches_of(video.double(), kernel, step, offset)


GEOMETRIES = [
    ((2, 16, 16), (2, 16, 16), (0, 0, 0)),
    ((2, 16, 16), (1, 9, 7), (1, 2, 3)),
    ((3, 5, 7), (4, 11, 13), (0, 1, 0)),
    ((1, 1, 1), (5, 7, 7), (0, 0, 0)),
]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", ["planar", "interleaved", "reversed"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_patches(geometry, layout, dtype, level, threads):
    video = make_video(layout, dtype)
    tubelets, tokens, wanted = describe(video, *geometry)
    every = 2 * tokens
    out, check = guarded(every, wanted.shape[1])
    LIB.fv_patches(tubelets, None, 0, every, 2, out.data_ptr())
    check()
    torch.testing.assert_close(out.double(), wanted, rtol=3e-7, atol=3e-7 * wanted.abs().max().item())

    ids = torch.randperm(every, generator=torch.Generator().manual_seed(7))[: every // 2 + 1].contiguous()
    if len(ids) > 4:
        ids[1:5] = ints(-1, every, -(2**63), 2**63 - 1)
    first = min(1, len(ids) - 1)
    some, check = guarded(len(ids) - first, wanted.shape[1])
    LIB.fv_patches(tubelets, ids.data_ptr(), first, len(ids) - first, 2, some.data_ptr())
    check()
    ids = ids[first:]
    outside = (ids < 0) | (ids >= every)
    assert some[outside].isnan().all()
    assert torch.equal(some[~outside], out[ids[~outside]]), "a row is the same wherever it is asked for"


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_patches_of_any_number_of_channels(channels, level):
    for layout in ("planar", "interleaved"):
        video = make_video(layout, torch.uint8, (1, channels, 2, 16, 32))
        tubelets, tokens, wanted = describe(video, *GEOMETRIES[0])
        out, check = guarded(tokens, wanted.shape[1])
        LIB.fv_patches(tubelets, None, 0, tokens, 1, out.data_ptr())
        check()
        torch.testing.assert_close(out.double(), wanted, rtol=3e-7, atol=1e-4)


def test_patches_of_nothing():
    tubelets, _, wanted = describe(make_video("planar", torch.uint8), *GEOMETRIES[0])
    out, check = guarded(0, wanted.shape[1])
    LIB.fv_patches(tubelets, None, 0, 0, 2, out.data_ptr())
    LIB.fv_patches_backward(tubelets, None, 0, 2, out.data_ptr())
    check()


def patches_backward(video, geometry, ids, grad):
    buffer, check = guarded(video.shape.numel())
    grad_video = buffer.as_strided(video.shape, video.stride(), buffer.storage_offset()).zero_()
    tubelets, _, _ = describe(video, *geometry)
    tubelets.video, tubelets.dtype = grad_video.data_ptr(), 0
    LIB.fv_patches_backward(
        tubelets, ids.data_ptr() if ids is not None else None, len(grad), len(video), grad.data_ptr()
    )
    check()
    return grad_video


@pytest.mark.parametrize("layout", ["planar", "interleaved", "reversed"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_patches_backward(geometry, layout, level, threads):
    video = make_video(layout, torch.float32)
    leaf = video.double().requires_grad_()
    patches = patches_of(leaf, *geometry)
    every = len(patches)
    generator = torch.Generator().manual_seed(8)
    grad = torch.randn(every, patches.shape[1], generator=generator)
    for ids in (None, torch.arange(every), torch.randperm(every, generator=generator)[: every // 2 + 1]):
        if ids is None:
            rows, kept, given = torch.arange(every), slice(None), None
        else:
            rows, kept, given = ids.clone(), torch.ones(len(ids), dtype=torch.bool), ids.clone()
            if len(ids) > 4:
                given[1], given[3], kept[1], kept[3] = -1, every, False, False
        use = grad[: len(rows)].contiguous()
        (wanted,) = torch.autograd.grad(patches[rows[kept]], leaf, use.double()[kept], retain_graph=True)
        out = patches_backward(video, geometry, given, use)
        torch.testing.assert_close(out.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 37, 64, 130])
@pytest.mark.parametrize(("with_bias", "with_pos"), [(False, False), (True, False), (False, True), (True, True)])
def test_embed(with_bias, with_pos, width, dtype, level, threads):
    geometry = GEOMETRIES[1]
    tubelets, tokens, patches = describe(make_video("planar", torch.uint8), *geometry)
    every, columns = patches.shape
    generator = torch.Generator().manual_seed(9)
    weight = (torch.randn(width, columns, generator=generator) / columns).to(dtype)
    bias = torch.randn(width, generator=generator) if with_bias else None
    pos = torch.randn(tokens, width, generator=generator) if with_pos else None
    wanted = patches @ weight.double().t()
    wanted = wanted + bias.double() if with_bias else wanted
    wanted = wanted + pos.double().repeat(2, 1) if with_pos else wanted
    ids = torch.randperm(every, generator=generator)[: every // 3].contiguous()
    ids[1:5] = ints(-1, every, -(2**63), 2**63 - 1)
    for given in (None, ids):
        rows = every if given is None else len(given)
        out, check = guarded(rows, width, dtype=dtype)
        LIB.fv_embed(
            tubelets, None if given is None else given.data_ptr(), rows, 2, weight.data_ptr(), DTYPES[dtype], width,
            bias.data_ptr() if with_bias else None, pos.data_ptr() if with_pos else None, threads, out.data_ptr(),
        )  # fmt: skip
        check()
        inside = torch.ones(every, dtype=torch.bool) if given is None else (ids >= 0) & (ids < every)
        assert out[~inside].isnan().all()
        rounding = 2e-6 * patches.abs().max() + torch.finfo(dtype).eps * wanted.abs().max()
        found = wanted if given is None else wanted[ids[inside]]
        assert (out[inside].double() - found).abs().max() <= rounding


def test_embed_adds_a_long_sum_by_blocks():
    """768 · 16 terms, each added to the sum of all before it, would be some ten times further off."""
    video = torch.rand(8, 3, 16, 16, 16, generator=torch.Generator().manual_seed(11))
    tubelets, tokens, patches = describe(video, (16, 16, 16), (16, 16, 16), (0, 0, 0))
    weight = torch.ones(64, patches.shape[1])
    out, check = guarded(8, 64)
    LIB.fv_embed(tubelets, None, 8, 8, weight.data_ptr(), 0, 64, None, None, 1, out.data_ptr())
    check()
    assert tokens == 1
    error = (out.double() - patches.sum(1, keepdim=True)).abs() / patches.abs().sum(1, keepdim=True)
    assert error.max() <= 1.5e-7


def test_bitwise_equal_for_any_number_of_threads():
    video = make_video("planar", torch.float32, (2, 3, 8, 64, 64))
    overlap = ((2, 16, 16), (1, 5, 5), (0, 0, 0))
    patches = patches_of(video.double(), *overlap)
    generator = torch.Generator().manual_seed(10)
    grad = torch.randn(patches.shape, generator=generator)
    src = torch.randn(5000, 96, generator=generator)
    lopsided = torch.randint(0, 300, (5000,), generator=generator) * (torch.arange(5000) % 3 == 0)
    even = torch.arange(5000) % 300

    before, results = torch.get_num_threads(), []
    for count in (1, 2, 3, 2):
        torch.set_num_threads(count)
        results.append(
            [
                patches_backward(video, overlap, None, grad).clone(),
                segment_sum(src, lopsided, 300, True).clone(),
                segment_sum(src, even, 300, True).clone(),
            ]
        )
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_info_and_signatures():
    info = _native.info()
    assert info["available"] and info["reason"] is None
    assert info["cpu_level"] in ("baseline", "avx2", "avx512")
    assert info["build"]["source_hash"] == info["source_hash"]
    assert _native.torch_symbol("torch_parallel_for") and _native.torch_symbol("no_such_symbol") is None
