"""The compile report: what makes it fail, and what it predicts.

In processes of their own: this one's kernels are Triton's interpreter's, and such a kernel can't be compiled.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastvivit.planning.devices import DEVICES, Work, predict

ROOT = Path(__file__).parents[2]

JUDGE = """
import json, sys
from dataclasses import replace
from benchmarks import compile_report as cr
from benchmarks.compile_cases import attention_cases

half = next(c for c in attention_cases() if c.name.startswith("attention forward half d64") and 90 in c.arches)
def judged(case=half, arch=90, **found):
    report = cr.Report(case.name, arch, 8, 3, registers=200, **({"instructions": {"HGMMA": 8}} | found))
    cr._judge(case, report)
    return report.problems
print(json.dumps({
    "right": judged(),
    "stack": judged(stack=16),
    "spill": judged(spills=3),
    "shared": judged(shared=(227 << 10) + 1),
    "none": judged(instructions={}),
    "older": judged(instructions={"HMMA": 4}),
    "ampere": judged(arch=80, instructions={"HMMA": 4}),
    "blackwell": judged(arch=100, instructions={"UTCHMMA": 4}),
    "blackwell, older": judged(arch=100, instructions={"HMMA": 4}),
    "tensor memory": judged(arch=100, instructions={"UTCHMMA": 4}, tensor_memory=1024),
    "no product": judged(replace(half, matrix=False), instructions={}),
}))
"""


def _python(*arguments):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def problems():
    pytest.importorskip("triton")
    done = _python("-c", JUDGE)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", ["right", "ampere", "blackwell", "no product"])
def test_what_may_ship(problems, case):
    assert problems[case] == []


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("stack", "16 bytes of stack"),
        ("spill", "3 local accesses"),
        ("shared", "232449 bytes of shared memory"),
        ("none", "no wgmma instructions"),
        ("older", "HMMA where wgmma should be"),
        ("blackwell, older", "no tcgen05 instructions"),
        ("tensor memory", "1024 columns of tensor memory"),
    ],
)
def test_what_may_not(problems, case, words):
    assert any(words in problem for problem in problems[case]), problems[case]


def test_a_kernel_compiles_without_a_gpu_and_gets_a_prediction(tmp_path):
    pytest.importorskip("triton")
    written = tmp_path / "report.json"
    arguments = ["--only", "rows scatter zero bf16", "--arch", "90", "--jobs", "1", "--json", str(written)]
    done = _python("-m", "benchmarks.compile_report", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    (report,) = json.loads(written.read_text())["reports"]
    assert report["registers"] > 0 and report["problems"] == [] and report["bound"] == "memory"
    assert "predicted with H100 SXM" in done.stdout and "data sheet" in done.stdout


def test_predictions_are_over_the_ceilings():
    h100 = DEVICES[90]
    # Attention at d = 64: 256 FLOPs and one exponential a score.
    scores = 12 * 16384**2
    found = predict(Work(flops=256 * scores, exponentials=scores, bytes=4 * 16384 * 768 * 2), h100)
    assert found.bound in ("products", "exponentials")
    assert found.seconds == pytest.approx(found.products + found.exponentials)
    assert 256 * scores / found.seconds / 1e12 == pytest.approx(495, abs=2)
    assert found.overlapped == max(found.products, found.exponentials)
    moved = predict(Work(bytes=335 * 10**9), h100)
    assert moved.bound == "memory" and moved.seconds == pytest.approx(0.1)
    assert predict(Work(flops=10**12, kind="tf32"), h100).seconds > predict(Work(flops=10**12), h100).seconds
