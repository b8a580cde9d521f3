"""linear_cross_entropy against the loss of whole logits, in float64."""

import pytest
import torch
from torch.nn import functional as nnf
from torch.utils._python_dispatch import TorchDispatchMode

import fastvivit.functional as F
from fastvivit.ops.linear_cross_entropy import chunks, op
from tests.numerics import check

ROWS, WIDTH, CLASSES = 37, 24, 53


def inputs(needs=(True, True, True), dtype=torch.float32, ignored=(0, 7, 36), ignore_index=-100):
    x = torch.randn(ROWS, WIDTH, dtype=dtype, requires_grad=needs[0])
    weight = torch.randn(CLASSES, WIDTH, dtype=dtype, requires_grad=needs[1])
    bias = torch.randn(CLASSES, dtype=dtype, requires_grad=needs[2])
    target = torch.randint(CLASSES, (ROWS,))
    target[list(ignored)] = ignore_index
    return x, weight, target, bias


def plain(x, weight, target, bias=None, *, scale=1.0, softcap=0.0, **options):
    logits = nnf.linear(x, weight, bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * scale
    if softcap:
        logits = torch.tanh(logits / softcap) * softcap
    return nnf.cross_entropy(logits, target, **options)


def both(options, chunk=None):
    return (
        lambda *given: F.linear_cross_entropy(*given, chunk=chunk, **options),
        lambda *given: plain(*given, **options),
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"scale": 0.25}, {"softcap": 3.0}, {"scale": 2.0, "softcap": 5.0}],
    ids=["plain", "scale", "softcap", "scale and softcap"],
)
def test_loss_and_gradients(reduction, dtype, options):
    x, weight, target, bias = inputs(dtype=dtype)
    check(*both(options | {"reduction": reduction}, chunk=10), [x, weight, target, bias], dtype)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("biased", [True, False])
def test_float64(reduction, biased):
    options = {"scale": 0.5, "softcap": 3.0, "reduction": reduction}
    x, weight, target, bias = inputs(dtype=torch.float64)
    wanted = [t for t in (x, weight, bias if biased else None) if t is not None]
    found = [f(x, weight, target, bias if biased else None) for f in both(options, chunk=10)]
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-14)
    head = torch.randn_like(found[0])
    for got, want in zip(*(torch.autograd.grad(loss, wanted, head) for loss in found), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("chunk", [1, 8, ROWS, 1000, None])
@pytest.mark.parametrize("ignored", [(), (3,), range(1, ROWS)], ids=len)
def test_any_chunk_and_any_ignored_rows(chunk, ignored):
    options = {"ignore_index": 7, "reduction": "mean"}
    x, weight, target, bias = inputs(ignored=ignored, ignore_index=7)
    check(*both(options, chunk), [x, weight, target, bias], torch.float32)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("rows", [0, 4], ids=["no rows", "all ignored"])
def test_no_counted_row(rows, reduction):
    x, weight = torch.randn(rows, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    target = torch.full((rows,), -100)
    found, wanted = (f(x, weight, target, reduction=reduction) for f in (F.linear_cross_entropy, plain))
    torch.testing.assert_close(found, wanted, equal_nan=True)
    for got, want in zip(*(torch.autograd.grad(loss.sum(), (x, weight)) for loss in (found, wanted)), strict=True):
        torch.testing.assert_close(got, want)
        assert not got.any()


@pytest.mark.parametrize("needs", [(True, False, False), (False, True, False), (False, False, True)], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradients_one_at_a_time(needs, reduction):
    check(*both({"reduction": reduction}, chunk=10), [*inputs(needs)], torch.float32)


def test_shapes_and_strides():
    x = torch.randn(WIDTH, 5, 2, 3).permute(1, 2, 3, 0)[::2].requires_grad_()
    weight = torch.randn(WIDTH, CLASSES).t().requires_grad_()
    target = torch.randint(CLASSES, (3, 2, 6))[:, :, ::2]
    loss = F.linear_cross_entropy(x, weight, target, reduction="none", chunk=4)
    wanted = plain(x.reshape(-1, WIDTH), weight, target.reshape(-1), reduction="none").view(3, 2, 3)
    torch.testing.assert_close(loss, wanted)
    head = torch.randn(3, 2, 3)
    for got, want in zip(*(torch.autograd.grad(o, (x, weight), head) for o in (loss, wanted)), strict=True):
        torch.testing.assert_close(got, want)
    torch.testing.assert_close(
        F.linear_cross_entropy(x[0, 0, 0], weight, target[0, 0, 0]), plain(x[0, 0, 0], weight, target[0, 0, 0])
    )


def test_a_width_beyond_one_block_of_the_product():
    x, weight = torch.randn(9, 40, requires_grad=True), torch.randn(3000, 40, requires_grad=True) / 6
    check(*both({}), [x, weight.detach(), torch.randint(3000, (9,)), None], torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_logits_and_a_certain_answer(dtype):
    x, weight, target, _ = inputs((True, False, False), dtype)
    check(*both({"scale": 1000.0}, chunk=10), [x, weight, target, None], dtype)


def test_the_loss_is_float32_and_keeps_float64():
    for dtype, wanted in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        x, weight, target, bias = inputs(dtype=dtype)
        loss = F.linear_cross_entropy(x, weight, target, bias)
        assert loss.dtype == wanted
        assert [g.dtype for g in torch.autograd.grad(loss, (x, weight, bias))] == [dtype] * 3


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_autocast_casts_as_linear_does(reduction):
    x, weight, target, bias = inputs()
    x = x.detach().bfloat16().requires_grad_()
    found = []
    for function in (F.linear_cross_entropy, plain):
        with torch.autocast("cpu", torch.bfloat16):
            loss = function(x, weight, target, bias, reduction=reduction)
        assert loss.dtype == torch.float32
        found.append((loss, *torch.autograd.grad(loss.sum(), (x, weight, bias))))
    for got, want in zip(*found, strict=True):
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want, atol=2e-2, rtol=2e-2)
    # In the dtype of autocast, not in float32 rounded at the end.
    exact = plain(x.float(), weight, target, bias, reduction="sum")
    assert (found[0][0].sum() - exact).abs() > 0


class Largest(TorchDispatchMode):
    """Shapes of what is made, also inside our operators."""

    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kernel = {op.LINEAR_CROSS_ENTROPY.overload: op._kernel, op.BACKWARD.overload: op._backward}.get(function)
        if kernel is not None:
            with self:
                return kernel(*args)
        out = function(*args, **kwargs or {})
        given = {t.untyped_storage().data_ptr() for t in args if isinstance(t, torch.Tensor)}
        for t in out if isinstance(out, tuple | list) else [out]:
            if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in given:
                self.shapes.add(tuple(sorted(t.shape)))
        return out


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_neither_logits_nor_an_unwanted_gradient_of_the_weight_are_ever_whole(trained, dtype):
    x, weight, target, bias = inputs((True, trained, False), dtype)
    whole, gradient = (ROWS, CLASSES), (WIDTH, CLASSES)
    with Largest() as seen:
        F.linear_cross_entropy(x, weight, target, bias, chunk=8).backward()
    assert whole not in seen.shapes and (gradient in seen.shapes) == trained
    most = max(a * b for a, b, *_ in (s for s in seen.shapes if len(s) == 2))
    assert most == max(8 * CLASSES, ROWS * WIDTH, WIDTH * CLASSES * trained)
    with Largest() as seen:
        plain(x, weight, target, bias).backward()
    assert whole in seen.shapes


def test_nothing_but_the_loss_without_gradients():
    x, weight, target, bias = inputs()
    with torch.no_grad(), Largest() as seen:
        loss = F.linear_cross_entropy(x, weight, target, bias, chunk=8)
    assert not loss.requires_grad and (WIDTH, ROWS) not in seen.shapes and (WIDTH, CLASSES) not in seen.shapes


def test_default_chunks():
    assert chunks.chunk_rows(512, 49152, "cpu", 0) == 128
    assert chunks.chunk_rows(130, 49152, "cpu", 0) == 65
    assert chunks.chunk_rows(1000, 262144, "cpu", 0) == 63
    assert chunks.chunk_rows(0, 10, "cpu", 0) == 1
    assert chunks.chunk_rows(4096, 49152, "cuda", 0) == 1024
    assert chunks.chunk_rows(512, 49152, "cpu", 7) == 7


@pytest.mark.parametrize("bad", [CLASSES, -1, 1 << 40])
def test_a_target_out_of_range_is_an_error(bad):
    x, weight, target, bias = inputs()
    target[5] = bad
    with pytest.raises(ValueError, match=rf"target: wanted ids in 0\.\.52 or -100, got {bad} at row 5"):
        F.linear_cross_entropy(x, weight, target, bias)


@pytest.fixture
def masked(monkeypatch):
    """The way of a GPU, on a CPU: ignored rows are masked, bad targets become NaN."""

    def rows(target, classes, ignore_index):
        ignored = target == ignore_index
        return chunks._masked_rows(target, ignored, ((target < 0) | (target >= classes)) & ~ignored)

    monkeypatch.setattr(op, "checked_rows", rows)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_masked_rows(masked, reduction):
    x, weight, target, bias = inputs()
    check(*both({"reduction": reduction, "softcap": 4.0}, chunk=10), [x, weight, target, bias], torch.float32)


def test_an_ignored_row_of_nan_stays_out(masked):
    x, weight, target, bias = inputs((True, False, False))
    x = x.detach().index_fill(0, torch.tensor([7]), float("nan")).requires_grad_()
    loss = F.linear_cross_entropy(x, weight, target, bias, chunk=10)
    (grad,) = torch.autograd.grad(loss, x)
    assert loss.isfinite() and grad.isfinite().all() and not grad[7].any()


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_a_bad_target_that_nobody_sees_gives_nan(masked, reduction):
    x, weight, target, bias = inputs()
    target[5] = CLASSES
    loss = F.linear_cross_entropy(x, weight, target, bias, reduction=reduction, chunk=10)
    dx, dw, db = torch.autograd.grad(loss.sum(), (x, weight, bias))
    assert loss.isnan().sum() == 1 and dw.isnan().all() and db.isnan().all()
    assert dx[5].isnan().all() and dx.isnan().any(1).sum() == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": None}, "x: wanted a tensor"),
        ({"x": torch.tensor(1.0)}, "x: wanted"),
        ({"x": torch.ones(2, 3, dtype=torch.int64)}, "x: wanted float32"),
        ({"weight": torch.ones(5, 4)}, r"weight: wanted \(V, 3\)"),
        ({"weight": torch.ones(0, 3)}, r"weight: wanted \(V, 3\) with V at least 1"),
        ({"weight": torch.ones(5, 3, dtype=torch.bfloat16)}, "weight: wanted float32"),
        ({"weight": torch.ones(3)}, "weight: wanted 2 dimensions"),
        ({"target": torch.zeros(2)}, "target: wanted int64"),
        ({"target": torch.zeros(3, dtype=torch.int64)}, r"target: wanted shape \(2,\)"),
        ({"target": torch.zeros(2, 1, dtype=torch.int64)}, "target: wanted 1 dimensions"),
        ({"bias": torch.ones(4)}, r"bias: wanted shape \(5,\)"),
        ({"bias": torch.ones(5, dtype=torch.float64)}, "bias: wanted float32"),
        ({"reduction": "max"}, "reduction: wanted one of 'mean'"),
        ({"scale": float("inf")}, "scale: wanted a finite"),
        ({"softcap": -1.0}, "softcap: wanted 0"),
        ({"chunk": 0}, "chunk: wanted at least 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_refuses(change, message):
    given = {"x": torch.ones(2, 3), "weight": torch.ones(5, 3), "target": torch.zeros(2, dtype=torch.int64)}
    with pytest.raises(ValueError, match=message):
        F.linear_cross_entropy(**given | change)


def test_a_graph_that_is_kept_gives_the_same_again():
    x, weight, target, bias = inputs()
    loss = F.linear_cross_entropy(x, weight, target, bias)
    first, again = (torch.autograd.grad(loss, (x, weight, bias), retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiles_whole(reduction):
    x, weight, target, bias = inputs((True, reduction == "none", False))

    def function(x, target):
        return F.linear_cross_entropy(x * 2, weight, target, bias, reduction=reduction).sum() * 3

    found = []
    for call in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        loss = call(x, target)
        found.append((loss, *torch.autograd.grad(loss, x)))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want)
