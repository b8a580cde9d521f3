"""The report on the CUDA kernels' machine code, and what it says of those that ship."""

import json

import pytest

from benchmarks import compile_cuda

OUTPUT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z1av' for 'sm_90a'
ptxas info    : Function properties for _Z1av
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 64 registers, used 0 barriers, 1024 bytes smem, 448 bytes cmem[0]
ptxas info    : Compiling entry function '_Z1bv' for 'sm_90a'
ptxas info    : Function properties for _Z1bv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers
"""
needs_nvcc = pytest.mark.skipif(compile_cuda.find_nvcc() is None, reason="no nvcc on this machine")


def test_what_ptxas_says_is_read():
    first, second = compile_cuda.parse(OUTPUT)
    assert (first.name, first.arch, first.registers, first.stack) == ("_Z1av", "90a", 64, 16)
    assert (first.spills, first.shared, first.threads) == (20, 1024, 1024)
    assert (second.name, second.registers, second.stack, second.spills, second.shared) == ("_Z1bv", 32, 0, 0, 0)
    assert second.threads == 2048


def fake_nvcc(tmp_path, monkeypatch, script):
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(f"#!/bin/sh\n{script}\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))


def test_a_spill_and_a_failed_compile_may_not_ship(tmp_path, monkeypatch, capsys):
    fake_nvcc(tmp_path, monkeypatch, f"cat <<'END'\n{OUTPUT}END")
    assert compile_cuda.main(["--arch", "90a", "--json", str(tmp_path / "out.json")]) == 1
    out = capsys.readouterr().out
    assert "spills" in out and "3 may not ship" in out
    assert {kernel["spills"] for kernel in json.loads((tmp_path / "out.json").read_text())} == {0, 20}
    (tmp_path / "bin" / "nvcc").write_text("#!/bin/sh\necho 'error: no such warp' >&2; exit 2\n")
    assert compile_cuda.main(["--arch", "90a"]) == 1
    assert "no such warp" in capsys.readouterr().err


@needs_nvcc
@pytest.mark.slow
def test_the_kernels_compile_for_every_architecture_and_none_spills(tmp_path, capsys):
    assert compile_cuda.main(["--json", str(tmp_path / "out.json")]) == 0, capsys.readouterr().out
    kernels = json.loads((tmp_path / "out.json").read_text())
    assert {kernel["arch"] for kernel in kernels} == {"80", "90a", "100"}
    assert {kernel["name"].partition("<")[0] for kernel in kernels if kernel["name"].endswith((">", "kernel"))} >= {
        "move_rows_kernel",
        "divide_rows_kernel",
        "invert_ids_kernel",
        "sum_segments_kernel",
        "sum_chunks_kernel",
    }
