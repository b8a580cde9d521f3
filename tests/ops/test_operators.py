"""The ops as PyTorch operators: opcheck, fullgraph, FLOPs, and errors where silence were a wrong number."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import fastvivit.functional as F


def _lengths(*values):
    return torch.tensor([0, *values], dtype=torch.int32).cumsum(0, dtype=torch.int32)


def _grad(*shape):
    return torch.randn(*shape, requires_grad=True)


VIDEO = torch.randint(256, (2, 3, 4, 32, 32), dtype=torch.uint8)
KEEP = torch.tensor([[0, 3, 5], [1, 2, 7]])
CLASS = torch.tensor([3, 0, -100, 6, 1])

# What the public functions pass on: every operator, forward and backward.
OPERATORS = {
    "gather": ("gather_tokens", lambda: (_grad(6, 8), torch.tensor([5, 0, 0]), False, "auto")),
    "gather_batch": ("gather_tokens", lambda: (_grad(2, 6, 8), torch.tensor([[5, 0], [1, 1]]), False, "reference")),
    "gather_distinct": ("gather_tokens", lambda: (_grad(6, 8), torch.tensor([5, 0, 2]), True, "auto")),
    "gather_backward": (
        "gather_tokens_backward",
        lambda: (torch.randn(3, 8), torch.tensor([5, 0, 0]), 6, False, "auto"),
    ),
    "scatter": ("scatter_tokens", lambda: (_grad(2, 8), torch.tensor([3, 1]), 5, _grad(8), "auto")),
    "scatter_zero": ("scatter_tokens", lambda: (_grad(2, 8), torch.tensor([3, 1]), 5, None, "reference")),
    "scatter_backward": (
        "scatter_tokens_backward",
        lambda: (torch.randn(5, 8), torch.tensor([3, 1]), True, "auto"),
    ),
    "segment_mean": ("segment_mean", lambda: (_grad(4, 8), torch.tensor([2, 0, 2, 2]), 3, "auto")),
    "segment_mean_backward": (
        "segment_mean_backward",
        lambda: (torch.randn(3, 8), torch.tensor([2, 0, 2, 2]), torch.tensor([1, 0, 3]), "auto"),
    ),
    "embed": (
        "tubelet_embed",
        lambda: (
            VIDEO,
            _grad(8, 3, 2, 16, 16),
            _grad(8),
            _grad(8, 8),
            KEEP,
            [0.5] * 3,
            [0.5] * 3,
            [2, 16, 16],
            [0, 0, 0],
            "ieee",
            "auto",
        ),
    ),  # fmt: skip
    "embed_float": (
        "tubelet_embed",
        lambda: (
            _grad(2, 3, 4, 32, 32),
            _grad(8, 3, 2, 16, 16),
            None,
            None,
            None,
            None,
            None,
            [2, 16, 16],
            [0, 0, 0],
            "ieee",
            "reference",
        ),
    ),  # fmt: skip
    "embed_backward": (
        "tubelet_embed_backward",
        lambda: (
            torch.randn(2, 3, 8),
            VIDEO,
            torch.randn(8, 3, 2, 16, 16),
            KEEP,
            None,
            None,
            [2, 16, 16],
            [0, 0, 0],
            "ieee",
            [False, True, True, True],
            "auto",
        ),
    ),  # fmt: skip
    "attention": (
        "varlen_attention",
        lambda: (
            _grad(9, 2, 8),
            _grad(9, 2, 8),
            _grad(9, 2, 8),
            _lengths(4, 5),
            _lengths(4, 5),
            None,
            None,
            0.3,
            False,
            True,
            None,
            "ieee",
            True,
            "auto",
        ),
    ),  # fmt: skip
    "attention_unequal": (
        "varlen_attention",
        lambda: (
            _grad(9, 2, 8),
            _grad(7, 1, 8),
            _grad(7, 1, 8),
            _lengths(4, 3),
            _lengths(0, 7),
            4,
            7,
            0.3,
            True,
            False,
            None,
            "ieee",
            True,
            "reference",
        ),
    ),  # fmt: skip
    "attention_backward": (
        "varlen_attention_backward",
        lambda: (
            torch.randn(9, 2, 8),
            torch.randn(2, 9),
            *(torch.randn(9, 2, 8) for _ in range(4)),
            torch.randn(2, 9),
            _lengths(4, 5),
            _lengths(4, 5),
            None,
            None,
            0.3,
            False,
            None,
            "ieee",
            True,
            "auto",
        ),
    ),  # fmt: skip
    "linear": ("linear", lambda: (_grad(5, 8), _grad(4, 8), _grad(4))),
    "linear_backward": (
        "linear_backward",
        lambda: (torch.randn(5, 4), torch.randn(5, 8), torch.randn(4, 8), [True] * 3),
    ),
    "linear_backward_frozen": (
        "linear_backward",
        lambda: (torch.randn(5, 4), None, torch.randn(4, 8), [True, False, False]),
    ),
    "linear_cross_entropy": (
        "linear_cross_entropy",
        lambda: (_grad(5, 8), _grad(7, 8), _grad(7), CLASS, -100, 1.0, 0.0, 2, "mean", [True] * 3),
    ),
    "linear_cross_entropy_frozen": (
        "linear_cross_entropy",
        lambda: (_grad(5, 8), torch.randn(7, 8), None, CLASS, -100, 2.0, 3.0, 0, "none", [True, False, False]),
    ),
    "linear_cross_entropy_backward": (
        "linear_cross_entropy_backward",
        lambda: (
            torch.randn(5),
            torch.tensor(5),
            torch.randn(5, 8),
            torch.empty(0),
            torch.empty(0),
            *(torch.randn(5, 8), torch.randn(7, 8), torch.randn(7)),
            *(CLASS, -100, 1.0, 0.0, 2, "none", [True] * 3),
        ),
    ),
    "checked_ids": ("checked_ids", lambda: (torch.tensor([3, 0]), 4, "keep")),
    "checked_cu_seqlens": ("checked_cu_seqlens", lambda: (_lengths(3, 0, 2), 6, 4)),
}


@pytest.mark.parametrize("case", OPERATORS)
def test_opcheck(case):
    name, make = OPERATORS[case]
    torch.library.opcheck(getattr(torch.ops.fastvivit, name).default, make())


def test_every_operator_is_checked():
    known = {schema.name.removeprefix("fastvivit::") for schema in torch._C._jit_get_all_schemas()
             if schema.name.startswith("fastvivit::")}  # fmt: skip
    assert known == {name for name, _ in OPERATORS.values()}


def _embed(video, weight, keep):
    return F.tubelet_embed(video, weight, keep=keep, mean=[0.5] * 3, std=[0.5] * 3).square()


def _loss(x, target):
    return F.linear_cross_entropy(x, torch.arange(88.0).sin().view(11, 8), target, softcap=4.0).square()


def _attend(q, lengths):
    out, lse = F.varlen_attention(q, q, q, lengths, return_lse=True)
    return out.square().sum(-1) + lse.T


COMPILED = {
    "embed": (_embed, lambda n: (VIDEO, _grad(8, 3, 2, 16, 16), torch.arange(n).repeat(2, 1))),
    "gather": (lambda x, i: F.gather_tokens(x, i).square(), lambda n: (_grad(9, 8), torch.arange(n))),
    "scatter": (lambda x, i: F.scatter_tokens(x, i, 9).square(), lambda n: (_grad(n, 8), torch.arange(n))),
    "segment": (
        lambda x, i: F.segment_mean(x, i // 2, 9)[0].square(),
        lambda n: (_grad(n, 8), torch.arange(n)),
    ),
    "loss": (_loss, lambda n: (_grad(n, 8), torch.arange(n))),
    "attention": (_attend, lambda n: (_grad(n + 13, 2, 8), _lengths(n, 13))),
}


@pytest.mark.parametrize("case", COMPILED)
def test_fullgraph_compiles_once_for_many_lengths(case):
    function, make = COMPILED[case]
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        # None of them equals another size in the case: dynamo would take the two for one.
        for n in (5, 6, 7, 4):
            args = make(n)
            leaves = [a for a in args if a.requires_grad]
            got, want = compiled(*args), function(*args)
            torch.testing.assert_close(got, want)
            got, want = (torch.autograd.grad(o.sum(), leaves) for o in (got, want))
            for g, w in zip(got, want, strict=True):
                torch.testing.assert_close(g, w)


def test_values_are_checked_in_compiled_code_too():
    compiled = torch.compile(lambda x, i: F.gather_tokens(x, i) * 2, fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match=r"index: wanted ids in 0\.\.3, got 4"):
        compiled(torch.randn(4, 2), torch.tensor([4]))


def _calls():
    x, index = _grad(4, 8), torch.tensor([0, 1, 2, 3])
    yield lambda x: F.gather_tokens(x, index), x
    yield lambda x: F.scatter_tokens(x, index, 4), x
    yield lambda x: F.segment_mean(x, index, 4)[0], x
    yield lambda w: F.tubelet_embed(VIDEO, w), _grad(8, 3, 2, 16, 16)
    yield lambda q: F.varlen_attention(q, q, q, _lengths(4)), _grad(4, 2, 8)
    yield lambda q: F.attention(q, q, q), _grad(1, 4, 2, 8)
    yield lambda x: F.linear_cross_entropy(x, torch.randn(5, 8), index), x
    yield lambda w: F.linear_cross_entropy(x, w, index, reduction="none"), _grad(5, 8)


@pytest.mark.parametrize("number", range(8))
def test_double_backward_and_functional_transforms_are_errors(number):
    function, x = list(_calls())[number]
    (grad,) = torch.autograd.grad(function(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        grad.sum().backward()
    with pytest.raises(RuntimeError, match=r"does not support torch\.func transforms"):
        torch.func.grad(lambda x: function(x).sum())(x.detach())


def test_flops_are_counted():
    weight, pixels = _grad(8, 3, 2, 16, 16), 3 * 2 * 16 * 16
    with FlopCounterMode(display=False) as counter:
        F.tubelet_embed(VIDEO, weight, keep=KEEP).sum().backward()
    assert counter.get_total_flops() == 2 * 6 * 8 * pixels * 2  # forward, and the weight's gradient
    q = _grad(12, 2, 8)
    with FlopCounterMode(display=False) as counter:
        F.varlen_attention(q, q, q, _lengths(6, 6)).sum().backward()
    assert counter.get_total_flops() == 4 * 8 * 2 * (36 + 36) * 3.5
    x, weight, target = _grad(4, 8), _grad(5, 8), torch.arange(4)
    for reduction, given, products in (("mean", weight.detach(), 2), ("mean", weight, 3), ("none", weight, 4)):
        with FlopCounterMode(display=False) as counter:
            F.linear_cross_entropy(x, given, target, reduction=reduction).sum().backward()
        assert counter.get_total_flops() == 2 * 4 * 8 * 5 * products, (reduction, products)


def test_no_gradient_is_computed_that_nobody_wants(monkeypatch):
    from fastvivit.ops.tubelet_embed import reference

    seen = []
    backward = reference.backward
    monkeypatch.setattr(reference, "backward", lambda *args: seen.append(args[-1]) or backward(*args))
    weight, bias = torch.randn(8, 3, 2, 16, 16), _grad(8)
    F.tubelet_embed(VIDEO, weight, bias, backend="reference").sum().backward()
    assert seen == [(False, False, True, False)]
