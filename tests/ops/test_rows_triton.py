"""The row kernels in Triton, called as on a GPU, where bad ids reach them and must not look plausible."""

import pytest
import torch

from tests.numerics import assert_close

pytest.importorskip("triton")

from fastvivit.ops import _rows_triton as rows
from fastvivit.ops.gather_tokens import backend_triton as gather
from fastvivit.ops.scatter_tokens import backend_triton as scatter
from fastvivit.ops.segment_mean import backend_triton as segment

DTYPES = [torch.float32, torch.float16, torch.float64]
# Width: below an access, a multiple of 8 but not of 16, over a block of columns.
WIDTHS = [1, 24, 300]


def near(name, got, golden, own):
    if got.dtype == torch.float64:
        torch.testing.assert_close(got, golden, rtol=1e-13, atol=1e-13)
    else:
        assert_close(name, got, golden, own, got.dtype)


def sums(x, ids, segments, dtype):
    """Rows added in ``dtype`` by segment; ids outside nowhere."""
    inside = (ids >= 0) & (ids < segments)
    zeros = torch.zeros(segments, x.shape[1], dtype=dtype, device=x.device)
    return zeros.index_add(0, ids[inside], x[inside].to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_gather_with_bad_and_repeated_ids(dtype, width, device, poisoned):
    x = torch.randn(13, width, device=device, dtype=dtype)
    ids = torch.randint(13, (29,), device=device)
    ids[3], ids[17], ids[28] = 13, -1, 2**40
    bad = (ids < 0) | (ids >= 13)
    out = gather.forward(x, ids)
    assert out[bad].isnan().all()
    assert torch.equal(out[~bad], x[ids[~bad]])
    grad = torch.randn(29, width, device=device, dtype=dtype)
    got = gather.backward(grad, ids, 13)
    near("grad_x", got, sums(grad, ids, 13, torch.float64), sums(grad, ids, 13, dtype))
    assert torch.equal(got, gather.backward(grad, ids, 13))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("size", [20, 700])
def test_scatter_with_and_without_fill(dtype, width, size, device, poisoned):
    x = torch.randn(13, width, device=device, dtype=dtype)
    fill = torch.randn(width, device=device, dtype=dtype)
    ids = torch.randperm(size, device=device)[:13]
    for value, want in ((None, x.new_zeros(size, width)), (fill, fill.repeat(size, 1))):
        assert torch.equal(scatter.forward(x, ids, size, value), want.index_copy(0, ids, x))
    grad = torch.randn(size, width, device=device, dtype=dtype)
    grad_x, grad_fill = scatter.backward(grad, ids, True)
    assert torch.equal(grad_x, grad[ids])
    free = torch.ones(size, 1, dtype=torch.bool, device=device).index_fill(0, ids, False)
    near("grad_fill", grad_fill, (grad.double() * free).sum(0), (grad * free).sum(0))
    assert torch.equal(grad_fill, scatter.backward(grad, ids, True)[1])
    assert scatter.backward(grad, ids, False)[1] is None


@pytest.mark.parametrize("spoil", [-1, 20, "repeated"])
def test_one_bad_id_spoils_a_whole_scatter(spoil, device, poisoned):
    x, fill = torch.randn(13, 24, device=device), torch.randn(24, device=device)
    ids = torch.randperm(20, device=device)[:13]
    ids[4] = ids[11] if spoil == "repeated" else spoil
    assert scatter.forward(x, ids, 20, fill).isnan().all()
    for grad in scatter.backward(torch.randn(20, 24, device=device), ids, True):
        assert grad.isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("shape", [(29, 7), (700, 2), (1, 1)], ids=["short", "long", "one"])
def test_segment_mean(dtype, width, shape, device, poisoned):
    count, segments = shape
    x = torch.randn(count, width, device=device, dtype=dtype)
    ids = torch.randint(segments, (count,), device=device)
    ids[ids == 3] = 2
    mean, found = segment.forward(x, ids, segments)
    lengths = torch.bincount(ids, minlength=segments)
    assert torch.equal(found, lengths)
    scale = lengths.clamp(min=1).unsqueeze(1)
    golden, own = (sums(x, ids, segments, d) / scale.to(d) for d in (torch.float64, dtype))
    near("mean", mean, golden, own)
    assert torch.equal(mean, segment.forward(x, ids, segments)[0])
    grad = torch.randn(segments, width, device=device, dtype=dtype)
    got = segment.backward(grad, ids, found)
    near("grad_x", got, (grad.double() / scale)[ids], (grad / scale.to(dtype))[ids])


@pytest.mark.parametrize("shape", [(29, 7), (700, 2)], ids=["short", "long"])
@pytest.mark.parametrize("spoil", [-1, 7])
def test_one_bad_id_spoils_a_whole_segment_mean(shape, spoil, device, poisoned):
    x, ids = torch.randn(shape[0], 24, device=device), torch.randint(shape[1], (shape[0],), device=device)
    ids[5] = spoil
    mean, count = segment.forward(x, ids, shape[1])
    assert mean.isnan().all()
    assert int(count.sum()) == shape[0] - 1
    assert segment.backward(torch.randn_like(mean), ids, count).isnan().all()


def test_segments_of_very_different_lengths(device, poisoned):
    lengths = [0, 1, 255, 256, 257, 0, 600, 0]
    ids = torch.repeat_interleave(torch.arange(8, device=device), torch.tensor(lengths, device=device))
    ids = ids[torch.randperm(len(ids), device=device)]
    x = torch.randn(len(ids), 40, device=device)
    mean, count = segment.forward(x, ids, 8)
    assert count.tolist() == lengths
    scale = count.clamp(min=1).unsqueeze(1)
    near("mean", mean, sums(x, ids, 8, torch.float64) / scale, sums(x, ids, 8, torch.float32) / scale)


def test_nothing_at_all(device):
    none, no_ids = torch.empty(0, 8, device=device), torch.empty(0, dtype=torch.int64, device=device)
    some, narrow = torch.randn(5, 8, device=device), torch.empty(5, 0, device=device)
    ids = torch.tensor([3, 0], device=device)
    assert gather.forward(some, no_ids).shape == (0, 8)
    assert gather.forward(narrow, ids).shape == (2, 0)
    assert gather.forward(none, ids).isnan().all()
    assert torch.equal(gather.backward(none, no_ids, 4), torch.zeros(4, 8, device=device))
    assert gather.backward(some, torch.arange(5, device=device), 0).shape == (0, 8)
    assert torch.equal(scatter.forward(none, no_ids, 3, some[0]), some[:1].repeat(3, 1))
    assert scatter.forward(some, torch.arange(5, device=device), 0, None).shape == (0, 8)
    grad_x, grad_fill = scatter.backward(some, no_ids, True)
    assert grad_x.shape == (0, 8)
    torch.testing.assert_close(grad_fill, some.sum(0))
    mean, count = segment.forward(none, no_ids, 2)
    assert torch.equal(mean, torch.zeros(2, 8, device=device))
    assert count.tolist() == [0, 0]
    assert segment.backward(mean, no_ids, count).shape == (0, 8)
    assert segment.forward(none, no_ids, 0)[0].shape == (0, 8)


def test_rows_far_apart_are_addressed_in_64_bits(device):
    # Only pages that are touched exist: 12 GB of address space, three of its pages in memory.
    stride = 2**30
    try:
        x = torch.empty(3 * stride, dtype=torch.float32, device=device).as_strided((3, 8), (stride, 1))
    except RuntimeError as error:
        pytest.skip(f"no room for the addresses: {error}")
    x.copy_(torch.arange(24, device=device).view(3, 8))
    ids = torch.tensor([2, 0], device=device)
    assert torch.equal(gather.forward(x, ids), x[ids])
    assert torch.equal(gather.backward(x, torch.tensor([1, 1, 0], device=device), 2)[1], x[0] + x[1])


def test_views_are_read_in_place(device):
    wide = torch.randn(9, 3, 40, device=device)
    x, ids = wide[:, 1, 8:32], torch.tensor([8, 0, 3], device=device)
    assert torch.equal(gather.forward(x, ids), x[ids])
    assert torch.equal(gather.forward(x[:1].expand(6, 24), ids % 6), x[:1].repeat(3, 1))
    assert torch.equal(gather.forward(wide[:, 0].t(), ids), wide[:, 0].t()[ids])
    assert rows.RowTile.of(wide[:, 1, :24]).vec == 4
