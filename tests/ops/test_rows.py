"""gather_tokens, scatter_tokens and segment_mean on every backend, against float64."""

import pytest
import torch

import fastvivit.functional as F
from fastvivit.ops.gather_tokens.op import OP as GATHER
from fastvivit.ops.scatter_tokens.op import OP as SCATTER
from fastvivit.ops.segment_mean.op import OP as SEGMENT
from tests.numerics import check
from tests.ops.cases import backends, names

# (rows, ids, width): empty on each side, one, odd widths, below and above a block, ViT-B at 512 tokens.
SHAPES = [(1, 0, 4), (1, 1, 1), (7, 5, 3), (33, 65, 8), (64, 31, 129), (40, 40, 768)]


@pytest.mark.parametrize(("backend", "dtype"), backends(GATHER))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gather(backend, dtype, shape, device, poisoned):
    rows, ids, width = shape
    x = torch.randn(rows, width, device=device, requires_grad=True)
    index = torch.randint(rows, (ids,), device=device)
    check(lambda x: F.gather_tokens(x, index, backend=backend), lambda x: x[index], [x], dtype)


@pytest.mark.parametrize(("backend", "dtype"), backends(GATHER))
def test_gather_of_distinct_ids(backend, dtype, device, poisoned):
    x = torch.randn(2, 33, 24, device=device, requires_grad=True)
    index = torch.stack([torch.randperm(33)[:20] for _ in range(2)]).to(device)
    plain = lambda x: x.gather(1, index.unsqueeze(2).expand(-1, -1, 24))  # noqa: E731
    check(lambda x: F.gather_tokens(x, index, distinct=True, backend=backend), plain, [x], dtype)


def test_a_broken_promise_of_distinct_ids(device):
    x, index = torch.randn(4, 8, device=device, requires_grad=True), torch.tensor([1, 2, 1], device=device)
    if device == "cpu":
        with pytest.raises(ValueError, match=r"index: wanted distinct ids, got 1 again at \[2\]"):
            F.gather_tokens(x, index, distinct=True)
    else:
        F.gather_tokens(x, index, distinct=True).sum().backward()
        assert x.grad.isnan().all()


@pytest.mark.parametrize(("backend", "dtype"), backends(GATHER))
def test_gather_of_a_batch_and_of_views(backend, dtype, device, poisoned):
    wide = torch.randn(3, 9, 24, device=device)
    x = wide[:, 1:, 8:].requires_grad_()
    index = torch.randint(8, (3, 5), device=device)

    def plain(x):
        return x[torch.arange(3, device=device).unsqueeze(1), index]

    check(lambda x: F.gather_tokens(x, index, backend=backend), plain, [x], dtype)


@pytest.mark.parametrize(("backend", "dtype"), backends(SCATTER))
@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize("shape", [(0, 0, 4), (5, 0, 4), (1, 1, 1), (9, 4, 3), (65, 33, 129), (40, 10, 768)], ids=str)
def test_scatter(backend, dtype, shape, filled, device, poisoned):
    size, ids, width = shape
    x = torch.randn(ids, width, device=device, requires_grad=True)
    index = torch.randperm(size, device=device)[:ids]
    fill = torch.randn(width, device=device, requires_grad=True) if filled else None

    def plain(x, fill):
        base = x.new_zeros(size, width) if fill is None else fill.expand(size, width)
        return base.index_put((index,), x)

    check(lambda x, fill: F.scatter_tokens(x, index, size, fill=fill, backend=backend), plain, [x, fill], dtype)


@pytest.mark.parametrize(("backend", "dtype"), backends(SCATTER))
def test_scatter_of_a_batch_inverts_gather(backend, dtype, device, poisoned):
    x = torch.randn(2, 6, 16, device=device, dtype=dtype)
    keep = F.random_keep(2, 6, 0.5, device=device)
    kept = F.gather_tokens(x, keep)
    back = F.scatter_tokens(kept, keep, 6, backend=backend)
    mask = torch.zeros(2, 6, 1, dtype=torch.bool, device=device).scatter_(1, keep.unsqueeze(2), True)
    assert torch.equal(back, torch.where(mask, x, 0))


@pytest.mark.parametrize(("backend", "dtype"), backends(SEGMENT))
@pytest.mark.parametrize("shape", [(0, 3, 4), (1, 1, 1), (50, 7, 5), (65, 200, 33), (33, 1, 768)], ids=str)
def test_segment_mean(backend, dtype, shape, device, poisoned):
    rows, segments, width = shape
    x = torch.randn(rows, width, device=device, requires_grad=True)
    segment = torch.randint(segments, (rows,), device=device)

    def plain(x):
        onehot = torch.nn.functional.one_hot(segment, segments).to(x.dtype)
        return (onehot.T @ x) / onehot.sum(0).clamp(min=1).unsqueeze(1), onehot.sum(0).long()

    check(lambda x: F.segment_mean(x, segment, segments, backend=backend), plain, [x], dtype)


@pytest.mark.parametrize("backend", names(SEGMENT))
def test_empty_segments_are_zero_with_count_zero(backend, device):
    mean, count = F.segment_mean(
        torch.ones(2, 3, device=device), torch.tensor([2, 2], device=device), 4, backend=backend
    )
    assert count.tolist() == [0, 0, 2, 0]
    assert mean.sum(1).tolist() == [0, 0, 3, 0]


@pytest.mark.parametrize("backend", [b.name for b in GATHER.backends if b.why_not((torch.empty(1),)) is None])
def test_bad_ids_on_a_cpu_are_errors_that_name_them(backend):
    x = torch.randn(4, 8)
    with pytest.raises(ValueError, match=r"index: wanted ids in 0\.\.3, got 4 at \[1\]"):
        F.gather_tokens(x, torch.tensor([0, 4]), backend=backend)
    with pytest.raises(ValueError, match=r"index: wanted ids in 0\.\.1, got 2 at \[0, 1\]"):
        F.gather_tokens(x.view(2, 2, 8), torch.tensor([[0, 2], [0, 1]]), backend=backend)
    with pytest.raises(ValueError, match=r"index: wanted distinct ids, got 1 again at \[2\]"):
        F.scatter_tokens(torch.randn(3, 8), torch.tensor([1, 0, 1]), 4, backend=backend)
    with pytest.raises(ValueError, match=r"index: wanted ids in 0\.\.3, got -1 at \[0\]"):
        F.scatter_tokens(torch.randn(1, 8), torch.tensor([-1]), 4, backend=backend)
    with pytest.raises(ValueError, match=r"segment: wanted ids in 0\.\.2, got 3 at \[3\]"):
        F.segment_mean(x, torch.tensor([0, 1, 2, 3]), 3, backend=backend)


def test_bad_arguments_are_errors_that_name_them():
    x, index = torch.randn(4, 8), torch.tensor([0, 1])
    for call, message in (
        (lambda: F.gather_tokens(x[0], index), "x: wanted 2 or 3 dimensions, got shape (8,)"),
        (lambda: F.gather_tokens(x, index.int()), "index: wanted int64, got int32"),
        (
            lambda: F.gather_tokens(x.long(), index),
            "x: wanted float32 | float16 | bfloat16 | float64, got int64",
        ),
        (lambda: F.gather_tokens(x.view(2, 2, 8), index), "index: wanted 2 dimensions, got shape (2,)"),
        (lambda: F.gather_tokens(x, index, backend="cuda9"), "backend: wanted one of 'auto'"),
        (lambda: F.gather_tokens([1.0], index), "x: wanted a tensor, got list"),
        (lambda: F.scatter_tokens(x, index, 9), "index: wanted shape (4,) like the rows of x, got (2,)"),
        (lambda: F.scatter_tokens(x[:2], index, -1), "size: wanted 0 or more rows, got -1"),
        (lambda: F.scatter_tokens(x[:2], index, 4, fill=x), "fill: wanted 1 dimensions"),
        (
            lambda: F.scatter_tokens(x[:2], index, 4, fill=torch.ones(3)),
            "fill: wanted shape (8,) like a row of x",
        ),
        (lambda: F.segment_mean(x, index, 2), "segment: wanted 4 ids like the rows of x"),
        (lambda: F.segment_mean(x[:2], index, -1), "num_segments: wanted 0 or more, got -1"),
        (lambda: F.gather_tokens(x, index.to("meta")), "index: wanted device cpu, got meta"),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        assert message in str(caught.value)
