"""The Triton kernels on shapes that hypothesis draws: lengths around a block, strides, views, and memory far apart."""

import math

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

import fastvivit.functional as F  # noqa: E402
from fastvivit import _probe  # noqa: E402
from fastvivit.ops.varlen_attention import backend_triton  # noqa: E402
from tests.numerics import check  # noqa: E402
from tests.ops.test_attention_triton import SMALL, Problem  # noqa: E402

pytestmark = [
    pytest.mark.skipif(_probe.no_triton() is not None, reason=str(_probe.no_triton())),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*"),
]
few = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
# Around the blocks of SMALL (16 and 32 rows).
LENGTH = st.sampled_from([0, 1, 15, 16, 17, 31, 32, 33])


def view(x, how):
    """``x`` again, as a part of a larger buffer full of NaN."""
    if how == "heads first":
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    if how == "steps":
        rows, heads, d = x.shape
        base = x.new_full((2 * rows + 1, 3 * heads, d + 8), math.nan)
        part = base[1::2, 1::3, 8:]
        part.copy_(x)
        return part
    return x


@few
@given(
    lengths=st.lists(st.tuples(LENGTH, LENGTH), max_size=3),
    slack=st.integers(0, 3),
    d=st.sampled_from([8, 16, 24, 40]),
    group=st.integers(1, 2),
    causal=st.booleans(),
    deterministic=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    how=st.sampled_from(["plain", "heads first", "steps"]),
)
def test_attention(monkeypatch, device, lengths, slack, d, group, causal, deterministic, dtype, how):
    monkeypatch.setattr(backend_triton, "_tiles", lambda q, precision: SMALL)
    torch.manual_seed(len(lengths) * 100 + d)
    lengths_q, lengths_k = ([pair[side] for pair in lengths] for side in (0, 1))
    problem = Problem(
        lengths_q, lengths_k, slack=slack, heads=group, kv_heads=1, d=d, causal=causal, dtype=dtype, device=device
    )
    for name in ("q", "k", "v", "grad_out"):
        setattr(problem, name, view(getattr(problem, name), how))
    first = problem.check(backend_triton, deterministic=deterministic)
    again = (*problem.forward(backend_triton), *problem.backward(backend_triton, *first[:2]))
    assert all(torch.equal(a, b) for a, b in zip(first[:2], again[:2], strict=True))
    if deterministic:
        assert all(torch.equal(a, b) for a, b in zip(first[2:], again[2:], strict=True))


def test_attention_of_thousands(device):
    Problem([1030, 2], [1500, 1], slack=2, heads=1, d=8, device=device).check(backend_triton)


@few
@given(
    size=st.tuples(st.integers(2, 5), st.integers(4, 9), st.integers(4, 9)),
    kernel=st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(1, 4)),
    width=st.sampled_from([8, 17, 33]),
    bytes_=st.booleans(),
    kept=st.floats(0, 1),
    last=st.booleans(),
)
def test_embed(device, size, kernel, stride, width, bytes_, kept, last):
    torch.manual_seed(width)
    grid = [(n - k) // s + 1 for n, k, s in zip(size, kernel, stride, strict=True)]
    tokens, channels = math.prod(grid), 2
    shape = (2, *size, channels) if last else (2, channels, *size)
    if bytes_:
        video = torch.randint(256, shape, dtype=torch.uint8, device=device)
    else:
        video = torch.randn(shape, device=device)
    video = video.permute(0, 4, 1, 2, 3) if last else video
    video.requires_grad_(not bytes_)
    weight = torch.randn(width, channels, *kernel, device=device, requires_grad=True)
    bias = torch.randn(width, device=device, requires_grad=True)
    pos = torch.randn(tokens, width, device=device, requires_grad=True)
    keep = torch.randperm(2 * tokens, device=device)[: round(kept * 2 * tokens)]

    # Near 0 and 1: of a handful of outputs PyTorch's own error is small by luck, and folding large ones into the
    # weights rounds numbers much larger than the result.
    def embed(backend):
        return lambda *inputs: F.tubelet_embed(
            *inputs[:3], pos=inputs[3], keep=keep, stride=stride, mean=[0.1, 0.0], std=[0.9, 1.0], backend=backend
        )

    check(embed("triton"), embed("reference"), [video, weight, bias, pos], torch.float32)


@few
@given(
    rows=st.sampled_from([1, 2, 31, 32, 33, 100]),
    ids=st.sampled_from([0, 1, 15, 64, 300]),
    width=st.sampled_from([1, 7, 8, 130]),
    step=st.integers(1, 3),
    dtype=st.sampled_from([torch.float32, torch.float16]),
)
def test_rows(device, rows, ids, width, step, dtype):
    torch.manual_seed(rows + ids)
    wide = torch.randn(rows * step, width + 3, device=device).to(dtype)
    x = wide[::step, 3:].detach().requires_grad_()
    index = torch.randint(rows, (ids,), device=device)
    places = torch.randperm(rows + ids, device=device)[:rows]
    segment = torch.randint(ids + 1, (rows,), device=device)
    for function in (
        lambda x, backend: F.gather_tokens(x, index, backend=backend),
        lambda x, backend: F.scatter_tokens(x, places, rows + ids, backend=backend),
        lambda x, backend: F.segment_mean(x, segment, ids + 1, backend=backend)[0],
    ):
        check(lambda x, f=function: f(x, "triton"), lambda x, f=function: f(x, "reference"), [x], dtype)


def test_embed_of_clips_far_apart(device, tmp_path):
    far = 2**31 + 2**10
    if device == "cuda":
        storage = torch.empty(far + 4096, dtype=torch.uint8, device=device)
    else:
        # A sparse file: only what is touched takes memory.
        storage = torch.from_file(str(tmp_path / "far"), shared=True, size=far + 4096, dtype=torch.uint8)
    video = storage.as_strided((2, 3, 2, 8, 8), (far, 64 * 2, 64, 8, 1))
    video.copy_(torch.randint(256, video.shape, dtype=torch.uint8, device=device))
    weight = torch.randn(16, 3, 2, 4, 4, device=device)
    near = video.contiguous()
    out = F.tubelet_embed(video, weight, backend="triton")
    assert torch.equal(out, F.tubelet_embed(near, weight, backend="triton"))
    assert out.isfinite().all() and not torch.equal(out[0], out[1])
