"""The row kernels in Triton and CUDA, called as on a GPU, where bad ids reach them and must not look plausible.

On a CPU Triton's run in its interpreter, and CUDA's by the header of tests/cuda_shim.
"""

from importlib import import_module
from types import SimpleNamespace

import pytest
import torch

from fastvivit import _probe
from tests.conftest import DEVICE
from tests.numerics import assert_close


def kits():
    """(backend, dtype), but for what Triton's interpreter gets wrong."""
    for name in ("triton", "cuda"):
        for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            if (name, dtype, DEVICE) != ("triton", torch.bfloat16, "cpu"):
                yield pytest.param((name, dtype), id=f"{name}-{str(dtype)[6:]}")


def load(name, request):
    if name == "triton":
        pytest.importorskip("triton")
    elif DEVICE == "cpu":
        request.getfixturevalue("on_cpu")
    elif _probe.no_native_cuda():
        pytest.skip(_probe.no_native_cuda())
    ops = {"gather": "gather_tokens", "scatter": "scatter_tokens", "segment": "segment_mean"}
    return SimpleNamespace(**{short: import_module(f"fastvivit.ops.{op}.backend_{name}") for short, op in ops.items()})


@pytest.fixture(params=list(kits()))
def typed(request):
    """The three backends of one kind, and a dtype."""
    name, dtype = request.param
    return load(name, request), dtype


@pytest.fixture(params=["triton", "cuda"])
def kit(request):
    return load(request.param, request)


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


@pytest.mark.parametrize("width", WIDTHS)
def test_gather_with_bad_and_repeated_ids(typed, width, device, poisoned):
    kit, dtype = typed
    x = torch.randn(13, width, device=device, dtype=dtype)
    ids = torch.randint(13, (29,), device=device)
    ids[3], ids[17], ids[28] = 13, -1, 2**40
    bad = (ids < 0) | (ids >= 13)
    out = kit.gather.forward(x, ids)
    assert out[bad].isnan().all()
    assert torch.equal(out[~bad], x[ids[~bad]])
    grad = torch.randn(29, width, device=device, dtype=dtype)
    got = kit.gather.backward(grad, ids, 13)
    near("grad_x", got, sums(grad, ids, 13, torch.float64), sums(grad, ids, 13, dtype))
    assert torch.equal(got, kit.gather.backward(grad, ids, 13))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("size", [20, 700])
def test_scatter_with_and_without_fill(typed, width, size, device, poisoned):
    kit, dtype = typed
    x = torch.randn(13, width, device=device, dtype=dtype)
    fill = torch.randn(width, device=device, dtype=dtype)
    ids = torch.randperm(size, device=device)[:13]
    for value, want in ((None, x.new_zeros(size, width)), (fill, fill.repeat(size, 1))):
        assert torch.equal(kit.scatter.forward(x, ids, size, value), want.index_copy(0, ids, x))
    grad = torch.randn(size, width, device=device, dtype=dtype)
    grad_x, grad_fill = kit.scatter.backward(grad, ids, True)
    assert torch.equal(grad_x, grad[ids])
    free = torch.ones(size, 1, dtype=torch.bool, device=device).index_fill(0, ids, False)
    near("grad_fill", grad_fill, (grad.double() * free).sum(0), (grad * free).sum(0))
    assert torch.equal(grad_fill, kit.scatter.backward(grad, ids, True)[1])
    assert kit.scatter.backward(grad, ids, False)[1] is None


@pytest.mark.parametrize("spoil", [-1, 20, "repeated"])
def test_one_bad_id_spoils_a_whole_scatter(kit, spoil, device, poisoned):
    x, fill = torch.randn(13, 24, device=device), torch.randn(24, device=device)
    ids = torch.randperm(20, device=device)[:13]
    ids[4] = ids[11] if spoil == "repeated" else spoil
    assert kit.scatter.forward(x, ids, 20, fill).isnan().all()
    for grad in kit.scatter.backward(torch.randn(20, 24, device=device), ids, True):
        assert grad.isnan().all()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("shape", [(29, 7), (700, 2), (1, 1)], ids=["short", "long", "one"])
def test_segment_mean(typed, width, shape, device, poisoned):
    kit, dtype = typed
    count, segments = shape
    x = torch.randn(count, width, device=device, dtype=dtype)
    ids = torch.randint(segments, (count,), device=device)
    ids[ids == 3] = 2
    mean, found = kit.segment.forward(x, ids, segments)
    lengths = torch.bincount(ids, minlength=segments)
    assert torch.equal(found, lengths)
    scale = lengths.clamp(min=1).unsqueeze(1)
    golden, own = (sums(x, ids, segments, d) / scale.to(d) for d in (torch.float64, dtype))
    near("mean", mean, golden, own)
    assert torch.equal(mean, kit.segment.forward(x, ids, segments)[0])
    grad = torch.randn(segments, width, device=device, dtype=dtype)
    got = kit.segment.backward(grad, ids, found)
    near("grad_x", got, (grad.double() / scale)[ids], (grad / scale.to(dtype))[ids])


@pytest.mark.parametrize("shape", [(29, 7), (700, 2)], ids=["short", "long"])
@pytest.mark.parametrize("spoil", [-1, 7])
def test_one_bad_id_spoils_a_whole_segment_mean(kit, shape, spoil, device, poisoned):
    x, ids = torch.randn(shape[0], 24, device=device), torch.randint(shape[1], (shape[0],), device=device)
    ids[5] = spoil
    mean, count = kit.segment.forward(x, ids, shape[1])
    assert mean.isnan().all()
    assert int(count.sum()) == shape[0] - 1
    assert kit.segment.backward(torch.randn_like(mean), ids, count).isnan().all()


def test_segments_of_very_different_lengths(kit, device, poisoned):
    lengths = [0, 1, 255, 256, 257, 0, 600, 0]
    ids = torch.repeat_interleave(torch.arange(8, device=device), torch.tensor(lengths, device=device))
    ids = ids[torch.randperm(len(ids), device=device)]
    x = torch.randn(len(ids), 40, device=device)
    mean, count = kit.segment.forward(x, ids, 8)
    assert count.tolist() == lengths
    scale = count.clamp(min=1).unsqueeze(1)
    near("mean", mean, sums(x, ids, 8, torch.float64) / scale, sums(x, ids, 8, torch.float32) / scale)


def test_nothing_at_all(kit, device):
    none, no_ids = torch.empty(0, 8, device=device), torch.empty(0, dtype=torch.int64, device=device)
    some, narrow = torch.randn(5, 8, device=device), torch.empty(5, 0, device=device)
    ids = torch.tensor([3, 0], device=device)
    assert kit.gather.forward(some, no_ids).shape == (0, 8)
    assert kit.gather.forward(narrow, ids).shape == (2, 0)
    assert kit.gather.forward(none, ids).isnan().all()
    assert torch.equal(kit.gather.backward(none, no_ids, 4), torch.zeros(4, 8, device=device))
    assert kit.gather.backward(some, torch.arange(5, device=device), 0).shape == (0, 8)
    assert torch.equal(kit.scatter.forward(none, no_ids, 3, some[0]), some[:1].repeat(3, 1))
    assert kit.scatter.forward(some, torch.arange(5, device=device), 0, None).shape == (0, 8)
    grad_x, grad_fill = kit.scatter.backward(some, no_ids, True)
    assert grad_x.shape == (0, 8)
    torch.testing.assert_close(grad_fill, some.sum(0))
    mean, count = kit.segment.forward(none, no_ids, 2)
    assert torch.equal(mean, torch.zeros(2, 8, device=device))
    assert count.tolist() == [0, 0]
    assert kit.segment.backward(mean, no_ids, count).shape == (0, 8)
    assert kit.segment.forward(none, no_ids, 0)[0].shape == (0, 8)


def test_rows_far_apart_are_addressed_in_64_bits(kit, device):
    # Only pages that are touched exist: 12 GB of address space, three of its pages in memory.
    stride = 2**30
    try:
        x = torch.empty(3 * stride, dtype=torch.float32, device=device).as_strided((3, 8), (stride, 1))
    except RuntimeError as error:
        pytest.skip(f"no room for the addresses: {error}")
    x.copy_(torch.arange(24, device=device).view(3, 8))
    ids = torch.tensor([2, 0], device=device)
    assert torch.equal(kit.gather.forward(x, ids), x[ids])
    assert torch.equal(kit.gather.backward(x, torch.tensor([1, 1, 0], device=device), 2)[1], x[0] + x[1])


def test_views_are_read_in_place(kit, device):
    wide = torch.randn(9, 3, 40, device=device)
    x, ids = wide[:, 1, 8:32], torch.tensor([8, 0, 3], device=device)
    assert torch.equal(kit.gather.forward(x, ids), x[ids])
    assert torch.equal(kit.gather.forward(x[:1].expand(6, 24), ids % 6), x[:1].repeat(3, 1))
    assert torch.equal(kit.gather.forward(wide[:, 0].t(), ids), wide[:, 0].t()[ids])


def test_a_triton_access_is_as_wide_as_the_stride_allows():
    pytest.importorskip("triton")
    from fastvivit.ops._rows_triton import RowTile

    assert RowTile.of(torch.randn(9, 3, 40)[:, 1, :24]).vec == 4


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA device")
def test_calls_are_captured_in_a_graph_and_follow_the_stream(kit, device):
    x, fill = torch.randn(700, 40, device=device), torch.randn(40, device=device)
    ids, segments = torch.randperm(700, device=device), torch.randint(3, (700,), device=device)

    def calls():
        out = kit.scatter.forward(x, ids, 900, fill)
        mean, count = kit.segment.forward(x, segments, 3)
        moved = kit.gather.forward(x, ids), kit.gather.backward(x, ids // 2, 350)
        return *moved, out, *kit.scatter.backward(out, ids, True), mean, kit.segment.backward(mean, segments, count)

    wanted = calls()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = calls()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = calls()
    graph.replay()
    for a, b, c in zip(wanted, found, replayed, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
