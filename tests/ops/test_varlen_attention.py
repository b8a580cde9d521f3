"""varlen_attention and attention on every backend, against softmax(q kᵀ) v in float64."""

import pytest
import torch

import fastvivit.functional as F
from fastvivit.ops.varlen_attention import backend_sdpa
from fastvivit.ops.varlen_attention.op import OP
from tests.numerics import check
from tests.ops.cases import backends, names


def cu(lengths, device="cpu"):
    return torch.tensor([0, *lengths], dtype=torch.int32, device=device).cumsum(0, dtype=torch.int32)


def plain(lengths_q, lengths_k, causal, scale=None):
    """Sequence by sequence, scores whole, in the dtype that comes in; returns out and lse."""

    def formula(q, k, v):
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        outs, lses, at_q, at_k = [], [], 0, 0
        for lq, lk in zip(lengths_q, lengths_k, strict=True):
            s = torch.einsum("qhd,khd->hqk", q[at_q : at_q + lq], k[at_k : at_k + lk]) * (scale or q.shape[2] ** -0.5)
            if causal:
                seen = torch.ones(lq, lk, dtype=torch.bool, device=q.device).tril(lk - lq)
                s = s.masked_fill(~seen, float("-inf"))
            dead = (s == float("-inf")).all(-1)
            lse = torch.logsumexp(s.masked_fill(dead.unsqueeze(-1), 0.0), -1).masked_fill(dead, float("-inf"))
            p = s.masked_fill(dead.unsqueeze(-1), 0.0).softmax(-1).masked_fill(dead.unsqueeze(-1), 0.0)
            outs.append(torch.einsum("hqk,khd->qhd", p, v[at_k : at_k + lk]))
            lses.append(lse.to(torch.promote_types(lse.dtype, torch.float32)))
            at_q, at_k = at_q + lq, at_k + lk
        slack = q.shape[0] - at_q
        outs.append(q.new_zeros(slack, *q.shape[1:]))
        lses.append(lses[0].new_full((q.shape[1], slack), float("-inf")))
        return torch.cat(outs), torch.cat(lses, 1)

    return formula


def masked(function, *, with_lse):
    """lse is -inf where nothing is attended; keep its finite part, so that no gradient is asked for there."""

    def call(*args):
        out, lse = function(*args)
        return (out, lse.masked_fill(lse.isneginf(), 0.0)) if with_lse else out

    return call


# queries, keys, extra rows, heads, key heads, head dim
CASES = {
    "self": ([5, 0, 17, 1, 17], None, 0, 2, 2, 32),
    "slack": ([9, 3], None, 4, 2, 2, 16),
    "cross": ([4, 7, 0, 3], [9, 0, 5, 2], 2, 4, 2, 40),
    "grouped": ([12, 12], None, 0, 6, 2, 64),
    "one": ([1, 9, 1], None, 0, 2, 1, 8),
    "blocks": ([63, 65], None, 0, 1, 1, 80),
    "many equal": ([3] * 20, None, 1, 2, 1, 16),
    "many unequal": ([2, 5, 1] * 7, [4, 1, 3] * 7, 0, 1, 1, 8),
}


@pytest.mark.parametrize(("backend", "dtype"), backends(OP))
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("case", CASES)
def test_forward_and_gradients(backend, dtype, case, causal, device, poisoned):
    lengths_q, lengths_k, slack, heads, kv_heads, width = CASES[case]
    lengths_k = lengths_k or lengths_q
    q = torch.randn(sum(lengths_q) + slack, heads, width, device=device, requires_grad=True)
    k, v = (torch.randn(sum(lengths_k) + slack, kv_heads, width, device=device, requires_grad=True) for _ in "kv")
    cu_q, cu_k = cu(lengths_q, device), cu(lengths_k, device)
    longest = (max(lengths_q), max(lengths_k)) if backend != "triton" and device != "cpu" else (None, None)
    with_lse = not (backend == "sdpa" and device != "cpu")

    def call(q, k, v):
        found = F.varlen_attention(q, k, v, cu_q, cu_k, *longest, causal=causal, return_lse=with_lse, backend=backend)
        return found if with_lse else (found, torch.zeros(()))

    check(
        masked(call, with_lse=with_lse),
        masked(plain(lengths_q, lengths_k, causal), with_lse=with_lse),
        [q, k, v],
        dtype,
    )


@pytest.mark.parametrize("backend", names(OP))
def test_rows_past_the_end_are_zero_whatever_memory_holds(backend, device):
    q, k, v = (torch.randn(12, 2, 16, device=device) for _ in range(3))
    for t in (q, k, v):
        t[9:] = float("nan")
        t.requires_grad_()
    lengths = cu([4, 5], device)
    out, lse = F.varlen_attention(q, k, v, lengths, None, 5, 5, return_lse=True, backend=backend)
    assert out[9:].eq(0).all() and lse[:, 9:].isneginf().all() and not out.isnan().any()
    grad = torch.randn_like(out)
    grad[9:] = float("nan")
    for g in torch.autograd.grad(out, (q, k, v), grad):
        assert g[9:].eq(0).all() and not g.isnan().any()


@pytest.mark.parametrize("backend", names(OP))
def test_views_of_one_qkv_buffer(backend, device):
    qkv = torch.randn(20, 3, 2, 32, device=device, requires_grad=True)
    lengths = cu([13, 7], device)
    out = F.varlen_attention(*qkv.unbind(1), lengths, None, 13, 13, backend=backend)
    apart = [t.detach().clone().requires_grad_() for t in qkv.unbind(1)]
    want = F.varlen_attention(*apart, lengths, None, 13, 13, backend=backend)
    assert torch.equal(out, want)
    grad = torch.randn_like(out)
    (together,) = torch.autograd.grad(out, qkv, grad)
    assert torch.equal(together, torch.stack(torch.autograd.grad(want, apart, grad), 1))


@pytest.mark.parametrize("backend", names(OP))
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_attention_is_the_same_op_on_equal_lengths(backend, causal, device):
    q, k = torch.randn(3, 5, 2, 16, device=device), torch.randn(3, 9, 2, 16, device=device)
    out, lse = F.attention(q, k, k, causal=causal, return_lse=True, backend=backend)
    want = plain([5] * 3, [9] * 3, causal)(*(t.flatten(0, 1).double() for t in (q, k, k)))
    torch.testing.assert_close(out, want[0].view(q.shape).float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lse, want[1].view(2, 3, 5).transpose(0, 1).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_padded_sdpa_of_devices_that_cannot_be_read(causal):
    lengths_q, lengths_k = [5, 0, 17, 3], [9, 4, 0, 2]
    q = torch.randn(27, 4, 16, dtype=torch.float64)
    k, v = (torch.randn(16, 2, 16, dtype=torch.float64) for _ in "kv")
    q[25:], k[15:], v[15:] = float("nan"), float("nan"), float("nan")
    inputs = [t.requires_grad_() for t in (q, k, v)]
    out = backend_sdpa._padded(*inputs, cu(lengths_q), cu(lengths_k), 17, 9, 0.25, causal)
    assert out[25:].eq(0).all()
    want, _ = plain(lengths_q, lengths_k, causal, 0.25)(q, k, v)
    torch.testing.assert_close(out[:25], want[:25])
    grad = torch.randn(25, 4, 16, dtype=torch.float64)
    got, ref = (torch.autograd.grad(o[:25], inputs, grad) for o in (out, want))
    for g, r, rows in zip(got, ref, (25, 15, 15), strict=True):
        torch.testing.assert_close(g[:rows], r[:rows])
        assert g[rows:].eq(0).all()
    short = backend_sdpa._padded(*inputs, cu(lengths_q), cu(lengths_k), 4, 9, 0.25, causal)
    assert short[:5].isnan().all() and short[5:22].isnan().all() and not short[22:].isnan().any()


@pytest.mark.parametrize("backend", names(OP))
def test_bad_lengths_on_a_cpu_are_errors_that_name_them(backend):
    q = torch.randn(6, 1, 8)
    for lengths, message in (
        ([1, 6], "cu_seqlens_q: wanted a first value of 0, got 1"),
        ([0, 4, 3, 6], r"cu_seqlens_q: wanted values that never fall, got 4 then 3 at \[2\]"),
        ([0, 7], r"cu_seqlens_q: wanted a last value of at most 6 \(the rows\), got 7"),
    ):
        with pytest.raises(ValueError, match=message):
            F.varlen_attention(q, q, q, torch.tensor(lengths, dtype=torch.int32), backend=backend)
    many = torch.tensor([0, *range(0, 6), *[5] * 14], dtype=torch.int32)
    many[9] = 2
    with pytest.raises(ValueError, match=r"cu_seqlens_q: wanted values that never fall, got 5 then 2 at \[9\]"):
        F.varlen_attention(q, q, q, many, backend=backend)
    many[9:] = 4
    many[-1] = 9
    with pytest.raises(ValueError, match="cu_seqlens_q: wanted values that never fall"):
        F.varlen_attention(q, q, q, many, backend=backend)
    with pytest.raises(ValueError, match="max_seqlen_q: wanted at least 1, got 0"):
        F.varlen_attention(q, q, q, torch.arange(7, dtype=torch.int32).repeat_interleave(3), None, 0, backend=backend)
    with pytest.raises(ValueError, match="max_seqlen_q: wanted at least 6, got 5"):
        F.varlen_attention(q, q, q, torch.tensor([0, 6], dtype=torch.int32), None, 5, backend=backend)
    with pytest.raises(ValueError, match="cu_seqlens_k: wanted a last value of at most 6"):
        F.varlen_attention(q, q, q, *(torch.tensor([0, n], dtype=torch.int32) for n in (6, 9)), backend=backend)


def test_bad_arguments_are_errors_that_name_them():
    q, lengths = torch.randn(6, 4, 8), torch.tensor([0, 6], dtype=torch.int32)
    for call, message in (
        (lambda: F.varlen_attention(q[0], q, q, lengths), "q: wanted 3 dimensions"),
        (lambda: F.varlen_attention(q, q.half(), q, lengths), "k: wanted float32, got float16"),
        (
            lambda: F.varlen_attention(q, q[:, :3], q[:, :3], lengths),
            "k: wanted a number of heads that divides q's 4, got 3",
        ),
        (lambda: F.varlen_attention(q, q[:, :, :4], q[:, :, :4], lengths), "k: wanted head dim 8 like q"),
        (lambda: F.varlen_attention(q, q, q[:5], lengths), "v: wanted shape (6, 4, 8) like k"),
        (
            lambda: F.varlen_attention(q, q[:5], q[:5], lengths),
            "k: wanted 6 rows like q without cu_seqlens_k",
        ),
        (lambda: F.varlen_attention(q, q, q, lengths.long()), "cu_seqlens_q: wanted int32, got int64"),
        (
            lambda: F.varlen_attention(q, q, q, lengths, lengths[:1]),
            "cu_seqlens_k: wanted shape (2,) like cu_seqlens_q",
        ),
        (lambda: F.varlen_attention(q, q, q, lengths[:0]), "cu_seqlens_q: wanted at least one value"),
        (lambda: F.varlen_attention(q, q, q, lengths, dropout_p=0.1), "dropout_p: wanted 0.0"),
        (lambda: F.varlen_attention(q, q, q, lengths, window_size=(4, 4)), "window_size: wanted (-1, -1)"),
        (lambda: F.varlen_attention(q, q, q, lengths, softcap=5.0), "softcap: wanted 0.0"),
        (
            lambda: F.varlen_attention(q, q, q, lengths, backend="eager"),
            "backend: wanted one of 'auto', 'triton', 'flash', 'torch', 'cpp', 'sdpa'",
        ),
        (lambda: F.attention(q, q, q), "q: wanted 4 dimensions"),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        assert message in str(caught.value)


def test_the_backward_checks_what_it_is_given():
    q, lse = torch.randn(6, 2, 8), torch.randn(2, 6)
    tail = (None, None, 1.0, False, None, "ieee", True, "auto")
    backward = torch.ops.fastvivit.varlen_attention_backward

    def call(cu_seqlens, out=q, lse=lse):
        return backward(q, None, q, q, q, out, lse, cu_seqlens, cu_seqlens, *tail)

    call(cu([6]))
    with pytest.raises(ValueError, match="cu_seqlens_q: wanted a last value of at most 6"):
        call(cu([7]))
    with pytest.raises(ValueError, match=r"out: wanted shape \(6, 2, 8\), torch.float32, got \(5, 2, 8\)"):
        call(cu([6]), out=q[1:])
    with pytest.raises(ValueError, match=r"lse: wanted shape \(2, 6\), torch.float32, got \(2, 6\), torch.float64"):
        call(cu([6]), lse=lse.double())
