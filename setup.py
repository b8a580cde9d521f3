"""Builds csrc into two libraries, for CPUs and for CUDA, free of Python and torch; no install fails over one.

FASTVIVIT_BUILD=off compiles nothing, =cpp or =cuda only that library.
"""

import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
# The runtime is linked in, so that one library serves every torch; it finds the driver when first called.
CUDA_FLAGS = ["-O3", "-std=c++17", "--cudart=static", "-Xfatbin=-compress-all"]
CUDA_FLAGS += ["-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra"]
# What is compiled, as far as nvcc knows it; the last one's PTX is for devices to come.
CUDA_ARCHES = {"80": "80", "90": "90a", "100": "100"}


def load_native():
    """Return fastvivit/_native.py as a module on its own: importing the package would need torch."""
    spec = importlib.util.spec_from_file_location("_fastvivit_native", ROOT / "fastvivit" / "_native.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


native = load_native()


class BuildError(Exception):
    """Why there is no library; the text goes into the build record."""


@dataclass(frozen=True)
class Library:
    """One of the two: what FASTVIVIT_BUILD calls it, its file, its sources, and whose sources it leaves out."""

    name: str
    what: str
    file: str
    sources: str
    other: str

    def compiler(self) -> tuple[list[str], list[str]]:
        """Return the compiler's command and its flags."""
        if self.name == "cpp":
            return find_compiler(), FLAGS
        compiler = find_nvcc()
        return compiler, [*CUDA_FLAGS, *cuda_arches(compiler)]


CPU = Library("cpp", "CPU", native.LIBRARY, "*_cpu.cpp", "_cuda")
CUDA = Library("cuda", "CUDA", native.CUDA_LIBRARY, "*_cuda.cu", "_cpu")


def find_compiler() -> list[str]:
    """Return the command of $CXX, else of the first C++ compiler on the path."""
    named = shlex.split(os.environ.get("CXX", ""))
    if named:
        return named
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise BuildError("no C++ compiler: $CXX is not set, and c++, g++ and clang++ are not on the path")


def find_nvcc() -> list[str]:
    """Return the command of $CUDA_HOME's nvcc, else of the one on the path."""
    home = os.environ.get("CUDA_HOME")
    if home and (Path(home) / "bin" / "nvcc").is_file():
        return [str(Path(home) / "bin" / "nvcc")]
    if shutil.which("nvcc"):
        return ["nvcc"]
    raise BuildError("no CUDA compiler: $CUDA_HOME/bin holds no nvcc, and none is on the path")


def cuda_arches(compiler: list[str]) -> list[str]:
    """Return the flags for those of CUDA_ARCHES that this nvcc can compile."""
    known = set(re.findall(r"compute_(\d+)", run([*compiler, "--list-gpu-arch"])))
    arches = [arch for number, arch in CUDA_ARCHES.items() if number in known]
    if not arches:
        raise BuildError(f"nvcc knows none of compute_{', compute_'.join(CUDA_ARCHES)}")
    flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in arches]
    newest = arches[-1].rstrip("a")
    return [*flags, f"-gencode=arch=compute_{newest},code=compute_{newest}"]


def run(command: list[str]) -> str:
    """Run `command` in the source tree and return what it printed; on failure raise it as a BuildError."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise BuildError(f"{shlex.join(command)}: {error}") from error
    output = (done.stdout + done.stderr).strip()
    if done.returncode != 0:
        raise BuildError(f"{shlex.join(command)} ended with status {done.returncode}\n{output}".strip())
    return output


def compile_library(library: Library, target: Path, record: dict, before: dict, pool: Executor) -> None:
    """Compile every source, each in its own process, and link `target`; fills `record` on the way.

    Where `target` was made from the same sources by the same command, as the record `before` says, it stays.
    """
    compiler, flags = library.compiler()
    record["compiler"], record["flags"] = shlex.join(compiler), shlex.join(flags)
    sources = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").glob(library.sources))
    if not sources:
        raise BuildError(f"csrc holds no {library.sources}")
    flags = [*flags, f'-DFV_SOURCE_HASH="{record["source_hash"]}"']
    record["command"] = shlex.join([*compiler, *flags, "-shared", *sources, "-o", target.name])
    version = run([*compiler, "--version"]).splitlines()
    record["compiler_version"] = next((line for line in version if re.search(r"\d\.\d", line)), "")
    if target.is_file() and all(before.get(name) == value for name, value in record.items()):
        record.update(before)
        return
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        objects = [f"{scratch}/{Path(source).stem}.o" for source in sources]
        commands = [
            [*compiler, *flags, "-c", source, "-o", made] for source, made in zip(sources, objects, strict=True)
        ]
        record["warnings"] = "\n".join(filter(None, pool.map(run, commands)))
        # Renamed into place: a process that has the old library mapped keeps the old file.
        linked = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            run([*compiler, "-shared", *(["--cudart=static"] if library is CUDA else []), *objects, "-o", str(linked)])
            linked.replace(target)
        finally:
            linked.unlink(missing_ok=True)
    record["seconds"] = round(time.perf_counter() - started, 2)


class BuildNative(build_ext):
    """Writes the libraries and the build record into the package; without a library the record says why."""

    def run(self):
        """Build into the source tree for --inplace and editable installs, into build_lib otherwise."""
        self.build_into(self.package_folder())

    def package_folder(self) -> Path:
        """Return the folder of the package that is being made."""
        return (ROOT if self.inplace or self.editable_mode else Path(self.build_lib).resolve()) / "fastvivit"

    def build_into(self, package: Path) -> None:
        """Make both libraries in `package`, or for each that fails no such file and the reason in the record."""
        package.mkdir(parents=True, exist_ok=True)
        before = {} if self.force else self.earlier(package)
        # Two threads that wait, one for each library, and a pool whose processes they share.
        with ThreadPoolExecutor(2) as makers, ThreadPoolExecutor(os.cpu_count()) as pool:
            # nvcc's sources take longest, so they go first.
            cuda = makers.submit(self.make, CUDA, package, before.get("cuda") or {}, pool)
            record = self.make(CPU, package, before, pool)
            record["cuda"] = cuda.result()
        text = json.dumps(record, indent=2) + "\n"
        (package / native.RECORD).write_text(text, encoding="utf-8")

    def earlier(self, package: Path) -> dict:
        """Return the record of the last build there, if there was one."""
        try:
            return dict(json.loads((package / native.RECORD).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return {}

    def make(self, library: Library, package: Path, before: dict, pool: Executor) -> dict:
        """Make one library and return its record."""
        target = package / library.file
        record = {
            "source_hash": native.source_hash(ROOT / "csrc", library.other),
            "platform": platform.platform(),
            "error": None,
        }
        wanted = os.environ.get("FASTVIVIT_BUILD", "").lower()
        try:
            if wanted not in ("", library.name):
                raise BuildError(f"compiling was switched off by FASTVIVIT_BUILD={wanted}")
            compile_library(library, target, record, before, pool)
        except BuildError as error:
            # An older library must not pass for this build's.
            target.unlink(missing_ok=True)
            record["error"] = str(error)
            print(f"fastvivit: no {library.what} library: {error}", file=sys.stderr)
        return record

    def get_outputs(self):
        """Return the files that were made."""
        names = (native.LIBRARY, native.CUDA_LIBRARY, native.RECORD)
        return [str(path) for name in names if (path := self.package_folder() / name).is_file()]

    def get_output_mapping(self):
        """Return nothing: an editable install reads these files in the source tree, where they are made."""
        return {}

    def get_source_files(self):
        """Return nothing: MANIFEST.in lists csrc, headers included."""
        return []


class BuildWheel(bdist_wheel):
    """py3-none-<platform> with a library, py3-none-any without: they link neither Python nor torch."""

    def run(self):
        """Compile first, because whether that worked decides between the two kinds of wheel."""
        self.run_command("build")
        package = Path(self.get_finalized_command("build").build_lib) / "fastvivit"
        self.root_is_pure = not any((package / library.file).is_file() for library in (CPU, CUDA))
        super().run()

    def get_tag(self):
        """Return the tag without an interpreter version or an ABI."""
        platform_tag = "any" if self.root_is_pure else super().get_tag()[2]
        return "py3", "none", platform_tag


# benchmarks/ stays a folder of its own in the tree and is installed inside the package: `fastvivit bench` needs it, and
# a top-level package of that name would stand in the way of others. Its modules import each other relatively, so both
# names work. The results of earlier runs are no code and stay out.
BENCHMARKS = "fastvivit._benchmarks"
benchmarks = ["", *(f".{name}" for name in find_packages(str(ROOT / "benchmarks")))]

setup(
    packages=[*find_packages(include=["fastvivit", "fastvivit.*"]), *(BENCHMARKS + name for name in benchmarks)],
    package_dir={BENCHMARKS: "benchmarks"},
    ext_modules=[Extension("fastvivit.libfastvivit_cpu", sources=[])],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": BuildWheel},
)
