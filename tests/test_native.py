"""Every kernel of csrc against plain torch: sizes, strides, instruction sets, threads, ids out of range."""

import numpy as np
import pytest
import torch

from fastvivit import _native

LIB = _native.load()
pytestmark = pytest.mark.skipif(LIB is None, reason=_native.reason() or "built")

CANARY = 77
DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3, torch.uint8: 4}


@pytest.fixture(params=[0, 1, 2], ids=["baseline", "avx2", "avx512"])
def level(request):
    LIB.fv_set_cpu_level(request.param)
    name = LIB.fv_cpu_level().decode()
    if name != ["baseline", "avx2", "avx512"][request.param]:
        LIB.fv_set_cpu_level(-1)
        pytest.skip(f"this CPU stops at {name}")
    yield name
    LIB.fv_set_cpu_level(-1)


@pytest.fixture(params=[1, 2], ids=["1thread", "2threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def guarded(*shape, dtype=torch.float32):
    """A tensor with canaries on both sides, and a check that they are still alive."""
    size = int(np.prod(shape))
    buffer = torch.full((size + 128,), CANARY, dtype=dtype)

    def check():
        assert (buffer[:64] == CANARY).all() and (buffer[64 + size :] == CANARY).all(), "written out of bounds"

    return buffer[64 : 64 + size].view(shape), check


def ints(*values):
    return torch.tensor(values, dtype=torch.int64)


def flat_ids(ids, size, distinct=True, want_out=True):
    out, check = guarded(*ids.shape, dtype=torch.int64)
    code = LIB.fv_flat_ids(ids.data_ptr(), *ids.shape, size, int(distinct), out.data_ptr() if want_out else None)
    check()
    return code, out


def random_ids(batch, per_clip, size, ascending, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.rand(batch, size, generator=generator).argsort(1)[:, :per_clip]
    return ids.sort(1)[0] if ascending else ids.contiguous()


@pytest.mark.parametrize("ascending", [True, False])
@pytest.mark.parametrize("shape", [(0, 0), (1, 0), (1, 1), (3, 7), (2, 512), (1, 70001), (40000, 3)])
def test_flat_ids(shape, ascending, level, threads):
    batch, per_clip = shape
    size = per_clip + 5
    ids = random_ids(batch, per_clip, size, ascending)
    code, out = flat_ids(ids, size)
    assert code == -1
    assert torch.equal(out, ids + torch.arange(batch)[:, None] * size)
    assert flat_ids(ids, size, want_out=False)[0] == -1


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (1, 131073), (30000, 5)])
@pytest.mark.parametrize("bad", [-1, "size", -(2**63), 2**63 - 1])
def test_flat_ids_finds_the_first_id_outside(shape, bad, level, threads):
    size = shape[1] + 5
    for row in {0, shape[0] * shape[1] // 2, shape[0] * shape[1] - 1}:
        for ascending in (True, False):
            ids = random_ids(*shape, size, ascending)
            ids.view(-1)[row:] = size if bad == "size" else bad
            assert flat_ids(ids, size)[0] == row
            assert flat_ids(ids, size, distinct=False)[0] == row


def test_flat_ids_finds_the_first_repeat(level, threads):
    assert flat_ids(ints(0, 1, 1).view(1, 3), 4)[0] == -2 - 2
    assert flat_ids(ints(3, 1, 3).view(1, 3), 4)[0] == -2 - 2
    assert flat_ids(ints(0, 0, 9).view(1, 3), 4)[0] == -2 - 1
    assert flat_ids(ints(0, 9, 0).view(1, 3), 4)[0] == 1
    assert flat_ids(ints(2, 3, 2, 3).view(2, 2), 4)[0] == -1, "another clip may use the same id"
    code, out = flat_ids(ints(2, 2, 0, 0).view(2, 2), 4, distinct=False)
    assert code == -1 and out.tolist() == [[2, 2], [4, 4]]
    ids = random_ids(1, 140000, 140000, True)
    for row in (65535, 65536, 65537, 139999):
        repeated = ids.clone()
        repeated[0, row] = repeated[0, row - 1]
        assert flat_ids(repeated, 140000)[0] == -2 - row
    assert flat_ids(ints(0).view(1, 1), 0)[0] == 0, "no id is inside an empty grid"


@pytest.mark.parametrize(("rows", "size"), [(0, 0), (0, 5), (1, 1), (7, 20), (5, 0), (50001, 140001)])
def test_invert_ids(rows, size, threads):
    ids = torch.randperm(max(size, rows), generator=torch.Generator().manual_seed(1))[:rows].contiguous()
    if rows:
        ids[0] = -1
    inverse, check = guarded(size, dtype=torch.int64)
    LIB.fv_invert_ids(ids.data_ptr(), rows, size, inverse.data_ptr())
    check()
    wanted = torch.full((size,), -1)
    inside = (ids >= 0) & (ids < size)
    wanted[ids[inside]] = torch.arange(rows)[inside]
    assert torch.equal(inverse, wanted)


def sort_ids(ids, segments):
    offsets, check_offsets = guarded(segments + 1, dtype=torch.int64)
    order, check_order = guarded(len(ids), dtype=torch.int64)
    LIB.fv_sort_ids(ids.data_ptr(), len(ids), segments, offsets.data_ptr(), order.data_ptr())
    check_offsets()
    check_order()
    return offsets, order


@pytest.mark.parametrize(("rows", "segments"), [(0, 0), (0, 3), (1, 1), (3, 0), (9, 4), (1000, 77), (77, 1000)])
def test_sort_ids(rows, segments):
    ids = torch.randint(-2, segments + 2, (rows,), generator=torch.Generator().manual_seed(2))
    offsets, order = sort_ids(ids, segments)
    clamped = ids.clamp(0, max(segments - 1, 0))
    assert torch.equal(order, clamped.argsort(stable=True) if segments else torch.arange(rows))
    counts = torch.bincount(clamped, minlength=segments)[:segments]
    assert torch.equal(offsets, torch.cat([ints(0), counts.cumsum(0)]))


@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("width", [1, 2, 3, 4, 8, 31, 3072])
@pytest.mark.parametrize("rows", [0, 1, 501])
def test_gather_rows(rows, width, fill, threads):
    generator = torch.Generator().manual_seed(3)
    src = torch.randint(0, 256, (37, width + 5), generator=generator, dtype=torch.uint8)[:, 2 : 2 + width]
    ids = torch.randint(-3, 41, (rows,), generator=generator)
    if rows > 2:
        ids[1], ids[2] = -(2**63), 2**63 - 1
    filling = torch.full((width,), 9 if fill else 0, dtype=torch.uint8)
    out, check = guarded(rows, width, dtype=torch.uint8)
    LIB.fv_gather_rows(
        src.data_ptr(), 37, src.stride(0), ids.data_ptr(), rows, width, filling.data_ptr() if fill else None,
        out.data_ptr(),
    )  # fmt: skip
    check()
    wanted = src[ids.clamp(0, 36)]
    wanted[(ids < 0) | (ids > 36)] = filling
    assert torch.equal(out, wanted)


def segment_sum(src, segment, segments, mean):
    offsets, order = sort_ids(segment, segments)
    out, check = guarded(segments, src.shape[1], dtype=src.dtype)
    LIB.fv_segment_sum(
        DTYPES[src.dtype], src.data_ptr(), src.stride(0), order.data_ptr(), offsets.data_ptr(), segments,
        src.shape[1], int(mean), out.data_ptr(),
    )  # fmt: skip
    check()
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "width", "segments"),
    [(0, 5, 3), (1, 1, 1), (9, 33, 20), (700, 64, 90), (513, 1031, 1), (600, 96, 3)],
)
@pytest.mark.parametrize("mean", [False, True])
def test_segment_sum(rows, width, segments, mean, dtype, level):
    generator = torch.Generator().manual_seed(4)
    src = torch.randn(rows, width + 7, generator=generator).to(dtype)[:, 3 : 3 + width]
    segment = torch.randint(0, segments, (rows,), generator=generator)
    out = segment_sum(src, segment, segments, mean)

    wanted = torch.zeros(segments, width, dtype=torch.float64).index_add_(0, segment, src.double())
    size = torch.zeros(segments, width, dtype=torch.float64).index_add_(0, segment, src.double().abs())
    count = torch.bincount(segment, minlength=segments).clamp(min=1)[:, None]
    if mean:
        wanted, size = wanted / count, size / count
    rounding = torch.finfo(dtype).eps * wanted.abs()
    inside = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps * count * size
    assert ((out.double() - wanted).abs() <= rounding + inside + 1e-7 * (dtype == torch.float16)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_values_survive_exactly(dtype, level):
    """All 65536 values go through float32 and back: subnormals, infinities, NaN."""
    src = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).view(1, -1).contiguous()
    out = segment_sum(src, ints(0), 1, False)
    torch.testing.assert_close(out, src, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_to_sixteen_bits_is_torchs(dtype, level):
    bits = torch.randint(-(2**31), 2**31, (40000,), generator=torch.Generator().manual_seed(5))
    value = bits.to(torch.int32).view(torch.float32)
    value = torch.cat([value, torch.randn(20000) * torch.logspace(-9, 5, 20000)])
    pair = torch.stack([value.to(dtype), (value - value.to(dtype).float()).to(dtype)])
    wanted = (torch.zeros(1) + pair[0].float() + pair[1].float()).to(dtype)
    out = segment_sum(pair.contiguous(), ints(0, 0), 1, False)[0]
    torch.testing.assert_close(out, wanted, rtol=0, atol=0, equal_nan=True)


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


@pytest.mark.parametrize("width", [1, 37, 768])
@pytest.mark.parametrize("with_pos", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_embed_rows(with_bias, with_pos, width, level, threads):
    generator = torch.Generator().manual_seed(9)
    tokens, rows, first = 11, 150, 3
    bias = torch.randn(width, generator=generator) if with_bias else None
    pos = torch.randn(tokens, width + 4, generator=generator)[:, 1 : 1 + width] if with_pos else None
    ids = torch.randint(-5, 4 * tokens, (first + rows,), generator=generator)
    for given in (None, ids):
        out, check = guarded(rows, width)
        LIB.fv_embed_rows(
            bias.data_ptr() if with_bias else None, pos.data_ptr() if with_pos else None, width + 4, tokens,
            given.data_ptr() if given is not None else None, first, rows, width, out.data_ptr(),
        )  # fmt: skip
        check()
        rows_of = (torch.arange(first, first + rows) if given is None else given[first:]) % tokens
        wanted = torch.zeros(rows, width)
        wanted = wanted + bias if with_bias else wanted
        wanted = wanted + pos[rows_of] if with_pos else wanted
        assert torch.equal(out, wanted)


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
