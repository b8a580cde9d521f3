"""The ``flash`` and ``torch`` backends of varlen_attention around kernels that stand in for those of a GPU.

The stand-ins compute what the real ones promise, and no more: rows outside the sequences come back as garbage, lse is
+inf where nothing is attended to, and lse has no gradient.
"""

import sys
from types import ModuleType

import pytest
import torch

import fastvivit.functional as F
from fastvivit import BackendError, _probe
from fastvivit.ops.varlen_attention import backend_flash, backend_torch, outside_kernels, reference
from fastvivit.ops.varlen_attention.setting import Setting
from tests.ops.test_attention_triton import Problem

CASES = {
    "self": ([5, 0, 17, 1], None, 2),
    "cross": ([4, 7, 0, 3], [9, 0, 5, 2], 3),
    "longer queries": ([9, 4], [3, 4], 0),
}


def garbage_outside(x, cu):
    x = x.clone()
    x[cu[-1] :] = float("nan")
    return x


def kernel(q, k, v, cu_q, cu_k, max_q, max_k, scale, causal):
    assert scale > 0 and max_q >= int(cu_q.diff().max()) and max_k >= int(cu_k.diff().max())
    out, lse = reference.forward(q, k, v, Setting(cu_q, cu_k, None, None, scale, causal, True, None, "ieee"))
    return garbage_outside(out, cu_q), garbage_outside(torch.where(lse.isinf(), float("inf"), lse).t(), cu_q).t()


def kernel_backward(grad, q, k, v, out, lse, cu_q, cu_k, scale, causal):
    assert not lse.isneginf().any()
    end = int(cu_q[-1])
    if not end or not int(cu_k[-1]):
        return tuple(torch.where(torch.arange(len(x))[:, None, None] < cu[-1], 0 * x, float("nan")) for x, cu in
                     zip((q, k, v), (cu_q, cu_k, cu_k), strict=True))  # fmt: skip
    grads = reference.backward(
        torch.where(torch.arange(len(q))[:, None, None] < end, grad, 0.0), None, q, k, v, out, lse,
        Setting(cu_q, cu_k, None, None, scale, causal, True, None, "ieee"),
    )  # fmt: skip
    return tuple(garbage_outside(g, cu) for g, cu in zip(grads, (cu_q, cu_k, cu_k), strict=True))


@pytest.fixture
def torch_backend(monkeypatch):
    calls = []

    def forward(q, k, v, cu_q, cu_k, max_q, max_k, dropout, causal, debug, *, scale):
        assert (dropout, debug) == (0.0, False)
        return *kernel(q, k, v, cu_q, cu_k, max_q, max_k, scale, causal), None, None, None

    def backward(grad, q, k, v, out, lse, cu_q, cu_k, max_q, max_k, dropout, causal, state, unused, *, scale):
        calls.append(torch.are_deterministic_algorithms_enabled())
        assert dropout == 0.0 and state.shape == (2,) and unused.numel() == 0
        return kernel_backward(grad, q, k, v, out, lse, cu_q, cu_k, scale, causal)

    class Operators:
        _flash_attention_forward = staticmethod(forward)
        _flash_attention_backward = staticmethod(backward)

    monkeypatch.setattr(backend_torch, "_attend", _with(backend_torch._attend, Operators))
    monkeypatch.setattr(backend_torch, "_gradients", _with(backend_torch._gradients, Operators))
    backend_torch.calls = calls
    return backend_torch


def _with(function, operators):
    """``function`` with other ``torch.ops.aten``: those of torch itself can't be replaced."""

    class Torch(ModuleType):
        ops = type("ops", (), {"aten": operators})

        def __getattr__(self, name):
            return getattr(torch, name)

    return type(function)(function.__code__, {**function.__globals__, "torch": Torch("torch")}, function.__name__)


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, cu_q, cu_k, max_q, max_k, scale, causal):
        out, lse = kernel(q, k, v, cu_q, cu_k, max_q, max_k, scale, causal)
        ctx.save_for_backward(q, k, v, out, lse.nan_to_num(posinf=float("inf")), cu_q, cu_k)
        ctx.settings = scale, causal
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    def backward(ctx, grad, _):
        return *kernel_backward(grad, *ctx.saved_tensors, *ctx.settings), *[None] * 6


def _flash(version, monkeypatch):
    """The versions differ in how lse is asked for, if at all, and in what else comes back."""

    def run(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal):
        lengths = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
        return _Flash.apply(q, k, v, *lengths, softmax_scale, causal)

    def two(*args, softmax_scale=None, causal=False, deterministic=False, return_attn_probs=False, **lengths):
        assert return_attn_probs
        return *run(*args, **lengths, softmax_scale=softmax_scale, causal=causal), None

    def three(*args, softmax_scale=None, causal=False, deterministic=False, **lengths):
        return run(*args, **lengths, softmax_scale=softmax_scale, causal=causal)

    def four(*args, softmax_scale=None, causal=False, deterministic=False, return_lse=False, **lengths):
        assert return_lse
        return run(*args, **lengths, softmax_scale=softmax_scale, causal=causal)

    function = {2: two, 3: three, 4: four}[version]
    monkeypatch.setattr(backend_flash, "_function", lambda: function)
    monkeypatch.setattr(backend_flash, "_arguments", backend_flash._arguments.__wrapped__)
    return backend_flash


@pytest.fixture
def flash_backend(monkeypatch):
    return _flash(2, monkeypatch)


@pytest.fixture(params=["torch", "flash 2", "flash 3", "flash 4"])
def outside(request, monkeypatch):
    if request.param == "torch":
        return request.getfixturevalue("torch_backend")
    return _flash(int(request.param[-1]), monkeypatch)


class Bounded(Problem):
    """With the maxima that these kernels need."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.longest = [max((0, *lengths)) for lengths in self.lengths]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", [0.3, -0.2, 0.0])
@pytest.mark.parametrize("case", CASES)
def test_contract_holds_around_the_kernels(outside, case, scale, causal):
    lengths_q, lengths_k, slack = CASES[case]
    for with_lse in (False, True):
        problem = Bounded(lengths_q, lengths_k, slack=slack, heads=4, kv_heads=2, d=16, scale=scale, causal=causal)
        problem.check(outside, with_lse)


@pytest.mark.parametrize("lengths", [([0, 0], [3, 4]), ([3, 4], [0, 0]), ([], []), ([0], [0])])
def test_empty(outside, lengths):
    Bounded(*lengths, slack=2, d=16).check(outside)


@pytest.mark.parametrize("wrong", [[1, 4, 8], [0, 5, 4], [0, 4, 9999]])
def test_bad_lengths_reach_no_kernel_and_give_nan(outside, wrong):
    problem = Bounded([3, 5], d=16, slack=4)
    good = problem.forward(outside)
    problem.cu = [torch.tensor(wrong, dtype=torch.int32), problem.cu[1]]
    assert all(x.isnan().all() for x in (*problem.forward(outside), *problem.backward(outside, *good)))


def test_too_small_a_maximum_gives_nan_rows():
    lengths = torch.tensor([0, 3, 8], dtype=torch.int32)
    setting = Setting(lengths, lengths, 4, 9, 1.0, False, True, None, "ieee")
    packed = outside_kernels.Packed(torch.ones(9, 1, 8), torch.ones(9, 1, 8), setting)
    out = packed.rows_q(torch.ones(9, 1, 8), torch.ones(9, 1, 8))
    assert out[:3].eq(1).all() and out[3:8].isnan().all() and out[8:].eq(0).all()


def test_pytorch_is_deterministic_only_while_asked(torch_backend):
    problem = Bounded([5, 3], d=16)
    good = problem.forward(torch_backend)
    problem.backward(torch_backend, *good, with_lse=False, deterministic=True)
    problem.backward(torch_backend, *good, with_lse=False, deterministic=False)
    assert torch_backend.calls == [True, False] and not torch.are_deterministic_algorithms_enabled()


def test_flash_without_determinism_refuses_it(monkeypatch, flash_backend):
    problem = Bounded([5, 3], d=16)
    good = problem.forward(flash_backend)
    monkeypatch.setattr(flash_backend, "_arguments", frozenset)
    with pytest.raises(BackendError, match="can't promise deterministic"):
        problem.backward(flash_backend, *good)


def test_newest_flash_attn_is_found(monkeypatch):
    for name in ("flash_attn", "flash_attn.cute", "flash_attn_interface"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="flash-attn is not installed or does not load"):
        _probe.flash_attn()
    for name in ("flash_attn", "flash_attn_interface"):
        module = ModuleType(name)
        module.flash_attn_varlen_func = name
        monkeypatch.setitem(sys.modules, name, module)
        assert _probe.flash_attn() == name


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("name", ["flash", "torch"])
def test_absent_without_a_device(name):
    q = torch.randn(4, 1, 16)
    with pytest.raises(BackendError, match=rf"  {name}: no CUDA device"):
        F.varlen_attention(q, q, q, torch.tensor([0, 4], dtype=torch.int32), None, 4, 4, backend=name)


def test_refusals(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))

    class Metadata:
        def __init__(self, dtype=torch.float16, width=64, device="cuda:0"):
            self.dtype, self.shape, self.device = dtype, (8, 2, width), torch.device(device)

    for q, longest, reason in (
        (Metadata(device="cpu"), (8, 8), "tensors are on cpu, wanted cuda"),
        (Metadata(torch.float32), (8, 8), "dtype float32, wanted float16 | bfloat16"),
        (Metadata(width=12), (8, 8), "head dim 12, wanted a multiple of 8 up to 256"),
        (Metadata(width=264), (8, 8), "head dim 264, wanted a multiple of 8 up to 256"),
        (Metadata(), (8, None), "max_seqlen_q or max_seqlen_k is None; reading lengths would stall cuda:0"),
        (Metadata(), (8, 8), "compute capability below 8.0"),
    ):
        assert outside_kernels.refuses(q, *longest) == reason
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert outside_kernels.refuses(Metadata(), 8, 8) is None
