"""Rows moved and added up, against plain torch: sizes, strides, instruction sets, threads."""

import pytest
import torch

from tests.native.calls import BUILT, LIB, guarded, ints, segment_sum

pytestmark = BUILT


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
