"""The CUDA kernels themselves, emulated on a CPU: widths of access, bounds, long sums, launches, refusals."""

import subprocess
import sys
from ctypes import c_int64
from importlib import import_module
from pathlib import Path

import pytest
import torch

import fastvivit.functional as F
from fastvivit import _native, _probe
from fastvivit._backends import BackendError
from fastvivit.ops import _rows_cuda as rows
from fastvivit.ops._rows_sorted import sort_ids

ROOT = Path(__file__).resolve().parent.parent
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
CANARY = 77.0


@pytest.fixture(params=[(1, 0), (7, 1)], ids=["small-device", "large-device-backwards"])
def device_kind(on_cpu, request):
    """Multiprocessors, so that grids stride or don't; and the order of the blocks, which may not matter."""
    on_cpu.shim_set(*request.param, 0)
    return on_cpu


def guarded(rows, width, dtype, shift):
    """A contiguous tensor that starts ``shift`` elements off an aligned address, and a check of what is around."""
    buffer = torch.full((rows * width + 64 + shift,), CANARY, dtype=dtype)
    first = 32 + shift

    def check():
        assert (buffer[:first] == CANARY).all() and (buffer[first + rows * width :] == CANARY).all(), "out of bounds"

    return buffer[first : first + rows * width].view(rows, width), check


def launched(library, call):
    before = library.shim_launches()
    result = call()
    return result, library.shim_launches() - before


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shift", [0, 1, 2, 4])
@pytest.mark.parametrize("width", [1, 2, 8, 31, 264, 4100])
def test_moves_of_every_alignment_stay_in_bounds(device_kind, dtype, shift, width, monkeypatch):
    source, _ = guarded(9, width + shift, dtype, 0)
    source.copy_(torch.randn(9, width + shift))
    x = source[:, shift:]
    ids = torch.tensor([8, 0, -1, 3, 9, 3, 2**62, -(2**62)])
    out, check = guarded(8, width, dtype, shift)
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *args, **kwargs: out)
    bad = (ids < 0) | (ids > 8)
    fill = torch.randn(width).to(dtype)
    for options, value in (({}, 0), ({"fill": fill}, fill), ({"nan_outside": True}, torch.nan)):
        rows.gather_rows(x, ids, **options)
        check()
        want = torch.where(bad[:, None], torch.as_tensor(value, dtype=dtype), x[ids.clamp(0, 8)])
        torch.testing.assert_close(out, want, rtol=0, atol=0, equal_nan=True)
    flag = torch.tensor([5])
    rows.gather_rows(x, ids, fill=fill, guard=(flag, 4))
    check()
    assert out.isnan().all()
    rows.gather_rows(x, ids, fill=fill, guard=(flag, 5))
    assert not out.isnan().any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shift", [0, 1, 2, 4])
@pytest.mark.parametrize("width", [1, 8, 31, 264])
@pytest.mark.parametrize("segments", [1, 40])
def test_sums_of_every_alignment_stay_in_bounds(on_cpu, dtype, shift, width, segments, monkeypatch):
    source, _ = guarded(90, width + shift, dtype, 0)
    # Small whole numbers: their sums are exact in any order.
    source.copy_(torch.randint(-4, 5, source.shape))
    x = source[:, shift:]
    ids = torch.randint(segments, (90,))
    offsets, order = sort_ids(ids, segments)
    out, check = guarded(segments, width, dtype, shift)
    real = torch.Tensor.new_empty
    monkeypatch.setattr(
        torch.Tensor,
        "new_empty",
        lambda x, *shape, dtype=None: out if dtype is None else real(x, *shape, dtype=dtype).fill_(torch.nan),
    )
    rows.sum_sorted(x, offsets, order)
    check()
    want = torch.zeros(segments, width, dtype=torch.float64).index_add(0, ids, x.double())
    assert torch.equal(out.double(), want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("lengths", "launches"),
    [
        ([64], 1),
        ([65], 2),
        ([9000], 3),
        ([0, 0, 9000, 0], 2),
        ([1, 20000, 0, 63, 64, 65], 2),
        ([0, 128, 0, 0, 640, 1, 64 * 64 * 8], 3),
    ],
    ids=str,
)
def test_long_sums_in_several_passes(device_kind, dtype, lengths, launches, poisoned):
    segments = len(lengths)
    ids = torch.repeat_interleave(torch.arange(segments), torch.tensor(lengths))
    ids = ids[torch.randperm(len(ids))]
    x = torch.randint(-1, 2, (len(ids), 3)).to(dtype)
    got, passes = launched(device_kind, lambda: rows.sum_sorted(x, *sort_ids(ids, segments)))
    exact = torch.zeros(segments, 3, dtype=torch.float64).index_add(0, ids, x.double())
    assert torch.equal(got.double(), exact.to(dtype).double())
    assert passes == launches
    # Rows of bad ids come first in the order, and are in no segment.
    ids[::7] = -1
    kept = torch.zeros(segments, 3, dtype=torch.float64).index_add(
        0, ids.clamp(min=0), x.double() * (ids >= 0)[:, None]
    )
    assert torch.equal(rows.sum_sorted(x, *sort_ids(ids, segments)).double(), kept.to(dtype).double())
    assert rows.sum_sorted(x, *sort_ids(ids, segments), mean=True).isnan().all()


@pytest.mark.parametrize("lengths", [[300], [7, 0, 300, 5]], ids=str)
def test_any_schedule_gives_the_same_bits(on_cpu, lengths):
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    x = torch.randn(len(ids), 40)
    found = []
    for processors, backwards in ((1, 0), (5, 1), (200, 0)):
        on_cpu.shim_set(processors, backwards, 0)
        found.append(rows.sum_sorted(x, *sort_ids(ids, len(lengths)), mean=True))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_mean_is_rounded_as_a_division(on_cpu, dtype):
    count = torch.tensor([0, 1, 3, 7, 41, 2**24 + 1, 2**40])
    x = torch.randn(7, 500, dtype=dtype) * 1e3
    x[:, 0], x[:, 1], x[:, 2], x[:, 3] = torch.inf, -torch.inf, torch.nan, 0
    found = rows.divide_rows(x, torch.arange(7), count)
    want = x / count.clamp(min=1).to(dtype).unsqueeze(1)
    assert torch.equal(found.nan_to_num(nan=-1.0), want.nan_to_num(nan=-1.0))
    assert found[:, 2].isnan().all() and not found[:, :2].isnan().any()


def test_moves_are_one_pass(on_cpu):
    from fastvivit.ops.gather_tokens import backend_cuda as gather
    from fastvivit.ops.scatter_tokens import backend_cuda as scatter
    from fastvivit.ops.segment_mean import backend_cuda as segment

    x, ids, fill = torch.randn(6, 8), torch.tensor([5, 0, 3, 1, 2, 4]), torch.randn(8)
    calls = {
        1: [lambda: gather.forward(x, ids), lambda: gather.backward(x, ids, 6), lambda: segment.forward(x, ids, 6)],
        2: [lambda: scatter.forward(x, ids, 9, fill), lambda: scatter.backward(x, ids, False)],
        3: [lambda: scatter.backward(x, ids, True)],
    }
    for wanted, cases in calls.items():
        for case in cases:
            assert launched(on_cpu, case)[1] == wanted


def test_grids_fit_a_device_and_stride_beyond(on_cpu):
    x, ids = torch.randn(50_000, 1), torch.randint(50_000, (70_000,))
    for processors, blocks in ((1, 64), (132, 69)):
        on_cpu.shim_set(processors, 0, 0)
        before = on_cpu.shim_blocks()
        assert torch.equal(rows.gather_rows(x, ids), x[ids])
        assert on_cpu.shim_blocks() - before == blocks


def test_a_failed_launch_is_a_runtime_error_with_cudas_text(on_cpu):
    x, ids = torch.randn(4, 8), torch.tensor([1, 0])
    on_cpu.shim_set(1, 0, 9)
    with pytest.raises(RuntimeError, match="fv_cuda_gather_rows: invalid configuration argument"):
        rows.gather_rows(x, ids)
    assert torch.equal(rows.gather_rows(x, ids), x[ids])
    on_cpu.shim_set(1, 0, 9)
    with pytest.raises(RuntimeError, match="fv_cuda_sum_rows"):
        rows.sum_sorted(torch.randn(100, 8), *sort_ids(torch.zeros(100, dtype=torch.int64), 1))


def test_launchers_refuse_what_they_cannot_do(on_cpu):
    odd = torch.zeros(65, dtype=torch.uint8)
    ids, out = torch.zeros(1, dtype=torch.int64), torch.zeros(8)
    call = (1, 4, ids.data_ptr(), 1, 4, None, 0, 0, None, 0, out.data_ptr(), None)
    assert on_cpu.fv_cuda_gather_rows(odd.data_ptr() + 1, *call) == 716
    offsets = torch.tensor([0, 100])
    x = torch.zeros(100, 8)
    sums = (8, 100, None, None, offsets.data_ptr(), 1, 8, 0, 0, None, 0)
    assert on_cpu.fv_cuda_sum_rows(0, x.data_ptr(), *sums, None, out.data_ptr(), None) == 1, "scratch is missing"
    assert on_cpu.fv_cuda_sum_rows(9, x.data_ptr(), *sums, x.data_ptr(), out.data_ptr(), None) == 1, "no such dtype"
    assert on_cpu.fv_cuda_divide_rows(9, x.data_ptr(), 1, 8, *([ids.data_ptr(), 1, 8, ids.data_ptr()]), None, 0,
                                      out.data_ptr(), None) == 1  # fmt: skip


def test_why_it_cannot_run():
    assert _probe.refuses_cuda(torch.empty(1)) == "tensors are on cpu, wanted cuda"
    with pytest.raises(BackendError) as caught:
        F.gather_tokens(torch.randn(4, 8), torch.tensor([0]), backend="cuda")
    assert f"\n  cuda: {_probe.no_native_cuda() or 'tensors are on cpu, wanted cuda'}" in str(caught.value)


@pytest.mark.parametrize("op", ["gather_tokens", "scatter_tokens", "segment_mean"])
def test_it_stands_behind_triton_and_before_pytorch(op):
    backends = import_module(f"fastvivit.ops.{op}.op").OP.backends
    assert [b.name for b in backends if b.auto is None or "cuda" in b.auto] == ["triton", "cuda", "reference"]


def test_nothing_loads_it_until_a_cuda_tensor_comes():
    code = (
        "import torch, fastvivit, fastvivit.functional as F\n"
        "from fastvivit import _native\n"
        "F.gather_tokens(torch.ones(3, 2, requires_grad=True), torch.tensor([1, 1])).sum().backward()\n"
        "assert _native._cuda_loaded.cache_info().currsize == 0\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=ROOT)


@pytest.mark.skipif(_native.load_cuda() is None, reason=_native.cuda_reason() or "built")
def test_the_built_library_loads_without_a_device_and_says_so():
    library = _native.load_cuda()
    assert library.fv_cuda_source_hash().decode() == _native.source_hash(ROOT / "csrc", "_cpu")
    assert library.fv_cuda_error(1) == b"invalid argument"
    if torch.cuda.is_available():
        pytest.skip("there is a device")
    state = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(RuntimeError, match=r"fv_cuda_invert_ids: .*\(CUDA error \d+\)"):
        rows.invert_ids(state, 2)
    assert library.fv_cuda_sum_scratch(0, 100, 1, 8) == c_int64(3 * 8 * 4).value
