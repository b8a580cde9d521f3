"""Compile the CUDA sources as shipped, with no GPU, and judge what ptxas says of every kernel.

    python -m benchmarks.compile_cuda [--arch 80 90a 100] [--json FILE] [--jobs N]

Prints registers, stack, spills and shared memory of each kernel and architecture, and how many threads a
multiprocessor can run at once by its registers. Exits with 1 where a source does not compile or a kernel
keeps anything on its stack; with 0 and the reason where there is no nvcc.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ARCHES = ("80", "90a", "100")
# Registers of a multiprocessor, and the granule in which a warp gets them.
REGISTERS, GRANULE = 65536, 256
BLOCK = 256
LINE = re.compile(r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<arch>\w+)'")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")


@dataclass
class Kernel:
    """What ptxas says of one kernel on one architecture."""

    name: str
    arch: str
    registers: int = 0
    stack: int = 0
    spills: int = 0
    shared: int = 0

    @property
    def threads(self) -> int:
        """Threads of a multiprocessor that run at once, of 2048, by registers alone."""
        warp = -(-self.registers * 32 // GRANULE) * GRANULE
        return min(REGISTERS // (warp * BLOCK // 32), 2048 // BLOCK) * BLOCK


def find_nvcc() -> str | None:
    """The command of $CUDA_HOME's nvcc, else of the one on the path."""
    home = Path(os.environ.get("CUDA_HOME", "/nonexistent")) / "bin" / "nvcc"
    return str(home) if home.is_file() else shutil.which("nvcc")


def readable(names: list[str]) -> dict[str, str]:
    """Kernels' names as in the source, if a demangler is installed: arguments are left out."""
    tool = shutil.which("c++filt") or shutil.which("cu++filt")
    if tool is None or not names:
        return {name: name for name in names}
    plain = subprocess.run([tool, *names], check=True, capture_output=True, text=True).stdout.splitlines()
    short = [
        re.sub(r"\(anonymous namespace\)::|fv::|^void |\(.*\)$|(?<=\d)(u?l|u)(?=[,>])", "", name) for name in plain
    ]
    noise = re.compile(r"\(anonymous namespace\)::|fv::|^void |\(int\)")
    short = [noise.sub("", name).partition("(")[0] for name in plain]
    return dict(zip(names, short, strict=True))


def parse(output: str) -> list[Kernel]:
    """The kernels in what ``ptxas -v`` printed."""
    kernels: list[Kernel] = []
    for line in output.splitlines():
        if found := LINE.search(line):
            kernels.append(Kernel(found["name"], found["arch"]))
        elif kernels and (found := STACK.search(line)):
            kernels[-1].stack, kernels[-1].spills = int(found[1]), int(found[2]) + int(found[3])
        elif kernels and (found := USED.search(line)):
            kernels[-1].registers = int(found[1])
            kernels[-1].shared = int(shared[1]) if (shared := SHARED.search(line)) else 0
    return kernels


def compile_source(nvcc: str, source: Path, arch: str, folder: str) -> tuple[list[Kernel], str | None]:
    """Compile one file for one architecture; its kernels, and the error if it does not compile."""
    target = Path(folder) / f"{source.stem}.{arch}.cubin"
    command = [nvcc, "-O3", "-std=c++17", "-Xptxas=-v", f"-arch=sm_{arch}", "-cubin", str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        return [], f"{shlex.join(command)}\n{done.stdout}{done.stderr}".strip()
    return parse(done.stdout + done.stderr), None


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="compile_cuda", description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", default=list(ARCHES), help="numbers after sm_")
    parser.add_argument("--json", type=Path, help="write the kernels there")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args(argv)
    nvcc = find_nvcc()
    if nvcc is None:
        print("no nvcc: $CUDA_HOME/bin holds none, and none is on the path", file=sys.stderr)
        return 0
    sources = sorted((ROOT / "csrc").glob("*_cuda.cu"))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        jobs = [(source, arch) for source in sources for arch in options.arch]
        found = list(pool.map(lambda job: compile_source(nvcc, *job, folder), jobs))
    kernels = [kernel for some, _ in found for kernel in some]
    errors = [error for _, error in found if error]
    names = readable(sorted({kernel.name for kernel in kernels}))
    for kernel in kernels:
        # Alike on every architecture but for the hash that nvcc puts into anonymous namespaces.
        kernel.name = names[kernel.name]
    kernels.sort(key=lambda kernel: (kernel.name, options.arch.index(kernel.arch)))
    width = max((len(kernel.name) for kernel in kernels), default=6) + 2
    print(f"{'kernel':<{width}}{'arch':>6}{'regs':>6}{'stack':>7}{'spills':>8}{'shared':>8}{'threads':>9}  verdict")
    for kernel in kernels:
        verdict = "ok" if not kernel.stack and not kernel.spills else "spills"
        numbers = f"{kernel.registers:>6}{kernel.stack:>7}{kernel.spills:>8}{kernel.shared:>8}{kernel.threads:>9}"
        print(f"{kernel.name:<{width}}{kernel.arch:>6}{numbers}  {verdict}")
    for error in errors:
        print(error, file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps([asdict(kernel) for kernel in kernels], indent=1) + "\n")
    bad = sum(bool(kernel.stack or kernel.spills) for kernel in kernels) + len(errors)
    seconds = time.perf_counter() - started
    print(f"\n{len(kernels)} kernels of {len(sources)} sources compiled in {seconds:.0f} s, {bad} may not ship")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
