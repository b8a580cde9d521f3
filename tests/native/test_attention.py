"""The compiled CPU attention where its blocks, its instruction sets and its threads end."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastvivit.functional as F
from tests.native.calls import BUILT
from tests.numerics import check
from tests.ops.test_varlen_attention import cu, masked, plain

pytestmark = BUILT


def agrees(lengths_q, lengths_k, heads, kv_heads, width, causal, dtype=torch.float32):
    q = torch.randn(sum(lengths_q), heads, width, requires_grad=True)
    k, v = (torch.randn(sum(lengths_k), kv_heads, width, requires_grad=True) for _ in "kv")
    cu_q, cu_k = cu(lengths_q), cu(lengths_k)

    def call(q, k, v):
        return F.varlen_attention(q, k, v, cu_q, cu_k, causal=causal, return_lse=True, backend="cpp")

    check(masked(call, with_lse=True), masked(plain(lengths_q, lengths_k, causal), with_lse=True), [q, k, v], dtype)


# Blocks are 96 queries against 128 keys; vectors 4, 8 and 16 floats; tiles 6 rows of up to 4 vectors.
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize(
    ("lengths_q", "lengths_k", "heads", "kv_heads", "width"),
    [
        ([95, 96, 97], [127, 128, 129], 1, 1, 16),
        ([193, 5, 0, 1], [3, 258, 4, 0], 2, 1, 24),
        ([6, 7, 1], [15, 16, 17], 3, 3, 1),
        ([100], [130], 2, 2, 80),
        ([33], [40], 4, 2, 130),
        ([200], [200], 1, 1, 64),
    ],
)
def test_at_the_ends_of_blocks(level, lengths_q, lengths_k, heads, kv_heads, width, causal):
    agrees(lengths_q, lengths_k, heads, kv_heads, width, causal)


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_a_sequence_of_several_pieces(causal):
    agrees([1200, 30], [1300, 700], 1, 1, 256, causal)


LENGTH = st.sampled_from([0, 1, 2, 5, 6, 7, 15, 16, 17, 63, 65, 95, 96, 97, 127, 128, 129, 191, 193])


# A query of one key has no gradient of its own: what is left of two equal numbers is no measure of anything.
@given(
    pairs=st.lists(st.tuples(LENGTH, LENGTH.filter(lambda n: n != 1)), min_size=1, max_size=5),
    heads=st.sampled_from([(1, 1), (2, 1), (3, 3), (4, 2)]),
    width=st.sampled_from([1, 3, 8, 15, 16, 17, 32, 40, 64, 72]),
    causal=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_any_lengths(pairs, heads, width, causal, dtype):
    lengths_q, lengths_k = map(list, zip(*pairs, strict=True))
    agrees(lengths_q, lengths_k, *heads, width, causal, dtype)


def test_bits_do_not_depend_on_threads():
    lengths = [300, 20, 513, 128, 1]
    q, k, v = (torch.randn(sum(lengths), 4, 64, requires_grad=True) for _ in range(3))
    grad = torch.randn(sum(lengths), 4, 64)
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            out = F.varlen_attention(q, k, v, cu(lengths), causal=True, backend="cpp")
            found.append([out.detach(), *torch.autograd.grad(out, (q, k, v), grad)])
    finally:
        torch.set_num_threads(threads)
    for one in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(one, found[0], strict=True))


def test_scores_of_any_size():
    """2^x stays right from 0 down to where it is 0, and rows of equal huge scores share their weight."""
    q = torch.full((1, 1, 1), 1.0)
    scores = torch.cat([torch.linspace(-200, 0, 401), torch.tensor([-1e30, -2e38])]).view(-1, 1, 1)
    one = cu([1]), cu([scores.shape[0]])
    for shift in (0.0, 80.0, -80.0):
        k = scores + shift
        out, lse = F.varlen_attention(q, k, scores, *one, softmax_scale=1.0, return_lse=True, backend="cpp")
        weights = k.double().flatten().softmax(0)
        want = (weights * scores.double().flatten()).sum()
        assert abs(out.item() - want) < 1e-5 * abs(want)
        assert abs(lse.item() - k.double().flatten().logsumexp(0)) < 1e-5 * max(abs(lse.item()), 1)
    k = torch.full((40, 1, 1), 2e38)
    out = F.varlen_attention(q, k, torch.arange(40.0).view(-1, 1, 1), cu([1]), cu([40]), backend="cpp")
    assert out.item() == pytest.approx(19.5, rel=1e-6)


def test_a_nan_reaches_what_saw_it_and_nothing_else():
    q, k, v = (torch.randn(60, 2, 8) for _ in range(3))
    k[7, 1] = float("nan")
    out, lse = F.varlen_attention(q, k, v, cu([20, 40]), return_lse=True, backend="cpp")
    assert out[:20, 1].isnan().all() and lse[1, :20].isnan().all()
    assert not out[20:].isnan().any() and not out[:, 0].isnan().any() and not lse[0].isnan().any()


def test_strides_of_any_kind():
    base = torch.randn(3, 50, 24, 4)
    q, k, v = base.permute(0, 1, 3, 2).unbind(0)  # head dim strided
    tight = [t.contiguous() for t in (q, k, v)]
    lengths = cu([30, 20])
    assert torch.equal(
        F.varlen_attention(q, k, v, lengths, backend="cpp"), F.varlen_attention(*tight, lengths, backend="cpp")
    )
    one = torch.randn(1, 1, 24).expand(50, 4, 24)  # every stride 0
    assert torch.equal(
        F.varlen_attention(one, k, v, lengths, backend="cpp"),
        F.varlen_attention(one.contiguous(), k.contiguous(), v.contiguous(), lengths, backend="cpp"),
    )


def test_offsets_past_2_to_the_31(tmp_path):
    apart, rows = 2**31 + 2**12, 3
    # A sparse file: only the rows that are touched take memory.
    storage = torch.from_file(str(tmp_path / "far"), shared=True, size=rows * apart, dtype=torch.float16)
    far = storage.as_strided((rows, 3, 2, 16), (apart, 64, 16, 1))
    far.copy_(torch.randn(far.shape).half())
    found = []
    for x in (far, far.clone()):
        leaves = [t.detach().requires_grad_() for t in x.unbind(1)]
        out = F.varlen_attention(*leaves, cu([rows]), backend="cpp")
        found.append([out.detach(), *torch.autograd.grad(out, leaves, torch.ones_like(out))])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
