"""Compile every Triton kernel as shipped, with no GPU, and judge the machine code.

    python -m benchmarks.compile_report [--arch 80 90 100] [--only NAME] [--json FILE] [--jobs N]

Prints registers, stack, spills, shared memory and matrix instructions of each kernel, configuration and architecture,
and a predicted time: the bytes, FLOPs and exponentials of its layer in ViT-B on 256 frames over the published ceilings
of the architecture (benchmarks/predict.py), softmax after products, and which ceiling it is. Nothing is timed.
Exits with 1 where a shipped configuration does not compile, spills, takes more shared (or tensor) memory than the
architecture has, or lacks the architecture's matrix instructions where its products should have become some. Notes,
without failing, where ptxas made wgmma instructions, asynchronous by nature, wait for each other (sm_90).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path

# Triton reads this when a kernel is defined, and an interpreted kernel can't be compiled.
os.environ.pop("TRITON_INTERPRET", None)

import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from fastvivit.planning.devices import DEVICES, predict  # noqa: E402

from .compile_cases import CompileCase, attention_cases  # noqa: E402
from .compile_cases_rows import embed_cases, rows_cases  # noqa: E402

SHARED_LIMIT = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
TENSOR_MEMORY_LIMIT = 512
# Name in PTX (for people) and opcode in the machine code. An older kind than the architecture's own counts as missing.
MATRIX = {
    80: ("mma.sync", "HMMA"),
    86: ("mma.sync", "HMMA"),
    89: ("mma.sync", "HMMA"),
    90: ("wgmma", "HGMMA"),
    100: ("tcgen05", "UTC.*MMA"),
    120: ("mma.sync", "HMMA"),
}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
COLUMNS = (
    "kernel and configuration",
    "arch",
    "regs",
    "stack",
    "spills",
    "shared",
    "matrix",
    "predicted",
    "s",
    "verdict",
)


@dataclass
class Report:
    """What one compilation gave; ``problems`` is empty where it may ship."""

    name: str
    arch: int
    num_warps: int
    num_stages: int
    registers: int = 0
    stack: int = 0
    spills: int = 0
    shared: int = 0
    tensor_memory: int = 0
    instructions: dict[str, int] = field(default_factory=dict)
    predicted_seconds: float | None = None
    bound: str | None = None
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def all_cases() -> list[CompileCase]:
    """Every shipped configuration of every kernel of the package."""
    cases = attention_cases() + rows_cases() + embed_cases()
    names = [case.name for case in cases]
    assert len(set(names)) == len(names), sorted({name for name in names if names.count(name) > 1})
    return cases


def source_of(case: CompileCase) -> ASTSource:
    """The kernel with its types, constants, and what a launch would find out about alignment."""
    kernel, signature, aligned = case.kernel, {}, {}
    for position, parameter in enumerate(kernel.params):
        name = parameter.name
        kind = signature[name] = "constexpr" if name in case.constexprs else case.signature[name]
        integer = kind in ("i32", "i64") and not parameter.do_not_specialize
        if (kind.startswith("*") or integer) and name not in case.unaligned:
            aligned[(position,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, case.constexprs, aligned)


def compile_case(case: CompileCase, arch: int) -> Report:
    """Compile ``case`` for ``arch`` and judge it."""
    report = Report(case.name, arch, case.num_warps, case.num_stages)
    if case.work is not None and arch in DEVICES:
        prediction = predict(case.work, DEVICES[arch])
        report.predicted_seconds, report.bound = prediction.seconds, prediction.bound
    started = time.perf_counter()
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages, "enable_fp_fusion": True}
    try:
        compiled = triton.compile(source_of(case), target=GPUTarget("cuda", arch, 32), options=options)
    except Exception as error:  # any failure of any stage is a finding
        message = str(error).strip().splitlines() or [""]
        report.problems.append(f"does not compile: {type(error).__name__}: {message[-1][:200]}")
        return report
    report.shared = compiled.metadata.shared
    report.tensor_memory = getattr(compiled.metadata, "tmem_size", 0) or 0
    _read_machine_code(compiled.asm["cubin"], report)
    report.seconds = time.perf_counter() - started
    _judge(case, report)
    if arch == 90 and case.matrix and (message := _serialised(compiled.asm["ptx"])):
        report.notes.append(message)
    return report


def _read_machine_code(cubin: bytes, report: Report) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _run("cuobjdump", "-res-usage", path)
        code = _run("nvdisasm", "-c", path)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    report.registers, report.stack = map(int, found.groups())
    for opcode in re.findall(r"^\s+(?:/\*\w+\*/)?\s*(?:@!?\w+\s+)?(\w+)", code, re.MULTILINE):
        if opcode in ("STL", "LDL"):
            report.spills += 1
        elif opcode.endswith("MMA"):
            report.instructions[opcode] = report.instructions.get(opcode, 0) + 1


def _serialised(ptx: str) -> str | None:
    """What ptxas says about waiting wgmma (C7510 to C7519), or None; Triton drops it from a compile that works."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        # Which of the two Triton uses depends on its version; an older one refuses newer PTX.
        for tool in ("ptxas", "ptxas-blackwell"):
            command = [TOOLS / tool, "-v", "--gpu-name", "sm_90a", path, "-o", path.with_suffix(".cubin")]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode == 0:
                found = re.search(r"\(?C751\d\)?.*? due to (.*?) in the function", done.stderr + done.stdout)
                return f"wgmma serialised: {found[1]}" if found else None
    return f"ptxas refuses the PTX: {done.stderr.strip()[:200]}"


def _run(tool: str, *arguments) -> str:
    return subprocess.run([TOOLS / tool, *arguments], check=True, capture_output=True, text=True).stdout


def _judge(case: CompileCase, report: Report) -> None:
    if report.stack or report.spills:
        report.problems.append(f"spills: {report.stack} bytes of stack, {report.spills} local accesses")
    if report.shared > SHARED_LIMIT[report.arch]:
        report.problems.append(f"{report.shared} bytes of shared memory, {SHARED_LIMIT[report.arch]} at most")
    if report.tensor_memory > TENSOR_MEMORY_LIMIT:
        report.problems.append(f"{report.tensor_memory} columns of tensor memory, {TENSOR_MEMORY_LIMIT} at most")
    name, opcode = MATRIX[report.arch]
    if case.matrix and not any(re.fullmatch(opcode, found) for found in report.instructions):
        report.problems.append(f"no {name} instructions")
    others = [found for found in report.instructions if not re.fullmatch(opcode, found)]
    if case.matrix and others:
        report.problems.append(f"{', '.join(others)} where {name} should be")


def _line(report: Report) -> tuple[str, ...]:
    matrix = ", ".join(f"{count} {name}" for name, count in sorted(report.instructions.items())) or "-"
    name = f"{report.name}  w{report.num_warps} s{report.num_stages}"
    verdict = "; ".join((report.problems or ["ok"]) + report.notes)
    numbers = (report.arch, report.registers, report.stack, report.spills, report.shared)
    least = "-" if report.predicted_seconds is None else f"{report.predicted_seconds * 1e6:.0f} µs {report.bound}"
    return (name, *map(str, numbers), matrix, least, f"{report.seconds:.1f}", verdict)


# Set before the worker processes fork: kernels can't be sent to them, names can.
_cases: dict[str, CompileCase] = {}


def _compile_named(name: str, arch: int) -> Report:
    return compile_case(_cases[name], arch)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="compile_report", description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90, 100], choices=sorted(SHARED_LIMIT))
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--json", type=Path, help="write the reports there")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args(argv)

    _cases.update((case.name, case) for case in all_cases() if options.only in case.name)
    jobs = [(name, arch) for name, case in _cases.items() for arch in options.arch if arch in case.arches]
    if not jobs:
        print(f"no case has {options.only!r} in its name on sm {options.arch}", file=sys.stderr)
        return 1
    width = max(len(name) for name, _ in jobs) + 8
    form = f"{{:<{width}}}{{:>5}}{{:>6}}{{:>7}}{{:>8}}{{:>9}}  {{:<22}}{{:<23}}{{:>6}}  {{}}"
    print(f"triton {triton.__version__}")
    for device in (DEVICES[arch] for arch in options.arch if arch in DEVICES):
        print(f"predicted with {device.summary}")
    print(form.format(*COLUMNS), flush=True)
    reports = []
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("fork")) as pool:
        for future in as_completed([pool.submit(_compile_named, *job) for job in jobs]):
            reports.append(future.result())
            print(form.format(*_line(reports[-1])), flush=True)
    if options.json:
        order = {job: place for place, job in enumerate(jobs)}
        reports.sort(key=lambda report: order[report.name, report.arch])
        content = {"triton": triton.__version__, "reports": [asdict(report) for report in reports]}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    bad = [report for report in reports if report.problems]
    noted = sum(bool(report.notes) for report in reports)
    print(f"\n{len(reports)} compiled, {len(bad)} may not ship, {noted} noted")
    for report in sorted(bad, key=lambda report: (report.arch, report.name)):
        print(f"  sm_{report.arch} {report.name}: {'; '.join(report.problems)}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
