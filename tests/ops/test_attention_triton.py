"""The Triton kernels of varlen_attention, called directly, against a softmax sequence by sequence in float64."""

import math

import pytest
import torch

triton = pytest.importorskip("triton")

from fastvivit import _probe  # noqa: E402
from fastvivit.ops.varlen_attention.schedule import blocks, table_size, varlen_schedule  # noqa: E402
from fastvivit.ops.varlen_attention.setting import Setting  # noqa: E402
from fastvivit.ops.varlen_attention.triton_configs import Tile, Tiles  # noqa: E402
from tests.numerics import assert_close  # noqa: E402

pytestmark = [
    pytest.mark.skipif(_probe.no_triton() is not None, reason=str(_probe.no_triton())),
    # The interpreter computes what masks then discard, and numpy mentions it.
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*"),
]
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * torch.cuda.is_available()
SMALL = Tiles(Tile(32, 16, 4, 1), Tile(16, 32, 4, 1), Tile(32, 16, 4, 1), Tile(16, 32, 4, 1))


@pytest.fixture
def backend():
    from fastvivit.ops.varlen_attention import backend_triton

    return backend_triton


@pytest.fixture
def small_tiles(backend, monkeypatch):
    """More blocks, and several programs for an entry of the schedule, from few rows."""
    monkeypatch.setattr(backend, "_tiles", lambda q, precision: SMALL)


def cu(lengths, device):
    return torch.tensor([0, *lengths], device=device).cumsum(0).int()


def dense(q, k, v, lengths_q, lengths_k, scale, causal):
    """Scores whole, in the dtype that comes in: out (Mq, H, d) and lse (H, Mq)."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    outs, lses, at_q, at_k = [], [], 0, 0
    for lq, lk in zip(lengths_q, lengths_k, strict=True):
        scores = torch.einsum("qhd,khd->hqk", q[at_q : at_q + lq], k[at_k : at_k + lk]) * scale
        unseen = torch.zeros(lq, lk, dtype=torch.bool, device=q.device)
        if causal:
            unseen = ~torch.ones_like(unseen).tril(lk - lq)
        nothing = unseen.all(1)[:, None]
        scores = scores.masked_fill(unseen & ~nothing, -math.inf)
        if lk:
            weights = scores.softmax(-1).masked_fill(nothing, 0.0)
            lse = scores.logsumexp(-1).masked_fill(nothing[:, 0], -math.inf)
        else:
            weights, lse = scores, scores.new_full((q.shape[1], lq), -math.inf)
        outs.append(torch.einsum("hqk,khd->qhd", weights, v[at_k : at_k + lk]))
        lses.append(lse)
        at_q, at_k = at_q + lq, at_k + lk
    slack = q.shape[0] - at_q
    outs.append(q.new_zeros(slack, *q.shape[1:]))
    lses.append(q.new_full((q.shape[1], slack), -math.inf))
    return torch.cat(outs), torch.cat(lses, 1)


class Problem:
    """Tensors of one case; rows past the sequences hold NaN, in grad_out too."""

    def __init__(self, lengths_q, lengths_k=None, *, slack=0, heads=2, kv_heads=None, d=64, causal=False,
                 dtype=torch.float32, device="cpu", scale=None):  # fmt: skip
        self.lengths = lengths_q, lengths_q if lengths_k is None else lengths_k
        self.cu = [cu(lengths, device) for lengths in self.lengths]
        self.causal, self.scale = causal, d**-0.5 if scale is None else scale
        used_q, used_k = map(sum, self.lengths)

        def rows(used, heads):
            made = torch.randn(used + slack, heads, d, device=device)
            made[used:] = math.nan
            return made.to(dtype)

        self.q, self.k, self.v = rows(used_q, heads), rows(used_k, kv_heads or heads), rows(used_k, kv_heads or heads)
        self.grad_out = rows(used_q, heads)
        self.grad_lse = torch.randn(heads, used_q + slack, device=device)
        self.schedule = None
        self.longest = (None, None)

    def forward(self, backend):
        return backend.forward(self.q, self.k, self.v, self.setting())

    def backward(self, backend, out, lse, with_lse=True, deterministic=True):
        grad_lse = self.grad_lse if with_lse else None
        return backend.backward(self.grad_out, grad_lse, self.q, self.k, self.v, out, lse, self.setting(deterministic))

    def setting(self, deterministic=True):
        return Setting(*self.cu, *self.longest, self.scale, self.causal, deterministic, self.schedule, "ieee")

    def expected(self, dtype, with_lse=True):
        """(out, lse, grad_q, grad_k, grad_v) of the dense formula in ``dtype``, as if the slack held zeros."""
        inputs = [x.nan_to_num().to(dtype).requires_grad_() for x in (self.q, self.k, self.v)]
        out, lse = dense(*inputs, *self.lengths, self.scale, self.causal)
        dead = lse.isneginf()
        heads = [self.grad_out.nan_to_num().to(dtype)]
        if with_lse:
            heads.append(self.grad_lse.masked_fill(dead, 0.0).to(dtype))
        # Adding nothing of q ties to it what has nothing to attend to.
        nothing = 0 * inputs[0].sum()
        outs = [out + nothing, lse.masked_fill(dead, 0.0) + nothing][: len(heads)]
        return out, lse, *torch.autograd.grad(outs, inputs, heads, materialize_grads=True)

    def check(self, backend, with_lse=True, deterministic=True):
        out, lse = self.forward(backend)
        got = out, lse, *self.backward(backend, out, lse, with_lse, deterministic)
        golden, own = self.expected(torch.float64, with_lse), self.expected(self.q.dtype, with_lse)
        for name, a, b, c in zip(("out", "lse", "grad_q", "grad_k", "grad_v"), got, golden, own, strict=True):
            assert a.dtype == (torch.float32 if name == "lse" else self.q.dtype)
            assert_close(name, a, b.detach(), c.detach(), self.q.dtype)
        return got


LENGTHS = {
    "blocks": ([0, 1, 128, 129], None),
    "cross": ([5, 70, 0, 64, 127], [129, 3, 7, 0, 64]),
    "longer keys": ([3, 60, 1], [200, 61, 130]),
    "longer queries": ([150, 40], [20, 33]),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_lengths_with_shipped_tiles(backend, poisoned, lengths, causal, dtype, device):
    Problem(*LENGTHS[lengths], slack=9, kv_heads=1, causal=causal, dtype=dtype, device=device).check(backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [8, 24, 32, 40, 64, 72, 80, 96, 128, 136, 248, 256])
def test_head_dims(backend, poisoned, d, dtype, device):
    lengths, causal = ([33, 0, 40], [70, 3, 31]), d % 16 == 0
    Problem(*lengths, slack=3, d=d, heads=1, causal=causal, dtype=dtype, device=device).check(backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_small_tiles(backend, poisoned, small_tiles, causal, dtype, device):
    lengths = [16, 17, 31, 33, 0, 1, 130], [17, 33, 16, 0, 5, 31, 65]
    Problem(*lengths, slack=40, heads=1, d=32, causal=causal, dtype=dtype, device=device).check(backend)


@pytest.mark.parametrize("heads, kv_heads", [(6, 2), (3, 3), (4, 1)])
@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_groups_of_heads(backend, monkeypatch, poisoned, heads, kv_heads, at_once, device):
    monkeypatch.setattr(backend, "_heads_at_once", lambda other, heads: min(at_once, heads))
    Problem([20, 7], [9, 30], heads=heads, kv_heads=kv_heads, d=16, device=device).check(backend)


@pytest.mark.parametrize("d", [16, 64, 72, 128])
@pytest.mark.parametrize("with_lse", [False, True])
def test_atomic_backward(backend, monkeypatch, poisoned, d, with_lse, device):
    # Blocks of 16 queries take the product with the head's columns as rows, blocks of 64 the other one.
    tiles = [Tiles(*SMALL[:3], Tile(m, 32, 4, 1)) for m in (16, 64)]
    for tile in tiles:
        monkeypatch.setattr(backend, "_tiles", lambda q, precision, tile=tile: tile)
        problem = Problem([5, 40, 0], [37, 3, 9], slack=3, heads=2, kv_heads=1, d=d, dtype=torch.float16,
                          device=device)  # fmt: skip
        problem.check(backend, with_lse, deterministic=False)


@pytest.mark.parametrize("lengths", [([0, 0], [3, 4]), ([3, 4], [0, 0]), ([], []), ([0], [0])])
def test_atomic_backward_of_nothing(backend, poisoned, small_tiles, lengths, device):
    Problem(*lengths, slack=3, d=16, device=device).check(backend, deterministic=False)


def test_atomic_backward_of_bad_lengths_is_nan(backend, small_tiles, device):
    problem = Problem([10, 30], [25, 20], slack=20, d=16, device=device)
    good = problem.forward(backend)
    problem.cu[0] = torch.tensor([0, 5, 4], dtype=torch.int32, device=device)
    assert all(grad.isnan().all() for grad in problem.backward(backend, *good, deterministic=False))


def test_causal_takes_two_kernels(backend, monkeypatch, small_tiles, device):
    problem = Problem([40, 9], d=16, causal=True, device=device)
    good = problem.forward(backend)
    pairs = zip(problem.backward(backend, *good), problem.backward(backend, *good, deterministic=False), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_without_gradient_of_lse(backend, poisoned, device):
    Problem([20, 7], [9, 30], slack=2, d=16, device=device).check(backend, with_lse=False)


@pytest.mark.parametrize("scale", [0.0, -0.3, 0.6])
@pytest.mark.parametrize("causal", [False, True])
def test_any_scale(backend, poisoned, small_tiles, scale, causal, device):
    Problem([40, 20, 3], [37, 3, 20], d=16, scale=scale, causal=causal, device=device).check(backend)


def test_scores_far_from_zero(backend, poisoned, small_tiles, device):
    # lse far below -88: exp(0 - lse) of a row or key past the end overflows, and must not meet anything.
    problem = Problem([37], [41], d=16, device=device)
    problem.k = -60 * problem.q[:1].expand(41, -1, -1) + problem.k
    problem.q = problem.q[:1].expand(37, -1, -1) + 0.1 * problem.q
    out, lse = problem.forward(backend)
    assert lse.max() < -100
    assert all(x.isfinite().all() for x in (out, *problem.backward(backend, out, lse)))


def test_large_sums_stay_exact_per_row(backend, small_tiles, device):
    problem = Problem([40], [50], d=16, device=device)
    problem.v = torch.ones_like(problem.v)
    out, _ = problem.forward(backend)
    assert torch.allclose(out, torch.ones_like(out), atol=4e-7, rtol=0)


def test_views_of_a_fused_buffer(backend, poisoned, device):
    problem = Problem([30, 50], slack=4, d=32, device=device)
    plain = problem.check(backend)
    fused = torch.stack((problem.q, problem.k, problem.v), 1)
    problem.q, problem.k, problem.v = fused.unbind(1)
    problem.grad_out = problem.grad_out.transpose(0, 1).contiguous().transpose(0, 1)
    problem.grad_lse = problem.grad_lse.t().contiguous().t()
    assert not problem.q.is_contiguous() and not problem.grad_out.is_contiguous()
    out, lse = problem.forward(backend)
    for a, b in zip((out, lse, *problem.backward(backend, out, lse)), plain, strict=True):
        assert torch.equal(a, b)


def test_gradient_of_a_sum_has_no_strides(backend, poisoned, device):
    problem = Problem([30], d=32, device=device)
    problem.grad_out = torch.ones((), device=device).expand_as(problem.q)
    problem.check(backend)


def test_repeats_are_bitwise_equal(backend, device):
    problem = Problem([64, 130], [70, 60], slack=4, heads=2, kv_heads=1, d=32, dtype=torch.float16, device=device)
    first, *others = [problem.check(backend) for _ in range(2 if device == "cpu" else 50)]
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("elements", [2**31 + 2**12, 2**25], ids=["wide tiles", "wide sequences"])
def test_offsets_past_2_to_the_31(backend, tmp_path, elements, device):
    rows = 3 if elements > 2**31 else 130
    if device == "cuda":
        storage = torch.empty(rows * elements, dtype=torch.float16, device=device)
    else:
        # A sparse file: only the rows that are touched take memory.
        storage = torch.from_file(str(tmp_path / "far"), shared=True, size=rows * elements, dtype=torch.float16)
    near = Problem([rows], heads=1, d=16, dtype=torch.float16, device=device)
    out, lse = near.forward(backend)
    grads = near.backward(backend, out, lse)
    far = storage.as_strided((rows, 3, 1, 16), (elements, 64, 16, 1))
    for i, x in enumerate((near.q, near.k, near.v)):
        far[:, i] = x
    near.q, near.k, near.v = far.unbind(1)
    again, lse = near.forward(backend)
    assert torch.equal(again, out)
    assert all(torch.equal(a, b) for a, b in zip(near.backward(backend, again, lse), grads, strict=True))


@pytest.mark.parametrize("wrong", [[1, 4, 8], [0, 5, 4], [0, 4, 9999], [0, 2**31 - 1, -(2**31)]])
@pytest.mark.parametrize("side", [0, 1])
def test_bad_cu_seqlens_give_nan(backend, wrong, side, device):
    problem = Problem([10, 30], [25, 20], slack=200, d=16, device=device)
    good = problem.forward(backend)
    problem.cu[side] = torch.tensor(wrong, dtype=torch.int32, device=device)
    out, lse = problem.forward(backend)
    assert out.isnan().all() and lse.isnan().all()
    assert all(grad.isnan().all() for grad in problem.backward(backend, *good))


def test_schedule_is_reused(backend, poisoned, device):
    problem = Problem([10, 130], [25, 20], slack=3, d=16, device=device)
    before = problem.check(backend)
    problem.schedule = varlen_schedule(*problem.cu, problem.q.shape[0], problem.k.shape[0])
    assert all(torch.equal(a, b) for a, b in zip(before, problem.check(backend), strict=True))


def test_schedule_of_other_lengths_gives_nan(backend, device):
    problem = Problem([10, 30, 5], [25, 20, 5], d=16, device=device)
    problem.schedule = varlen_schedule(cu([30, 10, 5], device), problem.cu[1], 45, 50)
    out, lse = problem.forward(backend)
    assert out[:40].isnan().all() and lse[:, :40].isnan().all()


def test_schedule_of_other_rows_gives_nan(backend, device):
    problem = Problem([40], [50], d=16, device=device)
    other = varlen_schedule(cu([41], device), cu([50], device), 41, 50)
    assert other.shape == (table_size(40, 50, 1),)
    good = problem.forward(backend)
    problem.schedule = other
    assert all(x.isnan().all() for x in (*problem.forward(backend), *problem.backward(backend, *good)))


def test_schedule_of_another_size_is_refused(backend, device):
    problem = Problem([40], [50], d=16, device=device)
    problem.schedule = torch.zeros(table_size(40, 50, 2), dtype=torch.int32, device=device)
    with pytest.raises(ValueError, match="schedule: wanted varlen_schedule of 40 and 50 rows in 1 sequences"):
        problem.forward(backend)


@pytest.mark.parametrize("lengths", [([0, 0], [3, 4]), ([3, 4], [0, 0]), ([], []), ([0], [0])])
@pytest.mark.parametrize("slack", [0, 3])
def test_empty(backend, poisoned, lengths, slack, device):
    Problem(*lengths, slack=slack, d=16, device=device).check(backend)


def test_grid_covers_every_block_of_every_tile(backend):
    for block in (16, 32, 64, 128):
        assert backend._grid(blocks(1000, 3), block, 5) == (blocks(1000, 3) * (128 // block) * 5,)
