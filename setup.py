"""Builds csrc/*_cpu.cpp into one library, free of Python and torch; an install never fails over it."""

import importlib.util
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]


def load_native():
    """Return fastvivit/_native.py as a module on its own: importing the package would need torch."""
    spec = importlib.util.spec_from_file_location("_fastvivit_native", ROOT / "fastvivit" / "_native.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


native = load_native()


class BuildError(Exception):
    """Why there is no library; the text goes into the build record."""


def find_compiler() -> list[str]:
    """Return the command of $CXX, else of the first C++ compiler on the path."""
    named = shlex.split(os.environ.get("CXX", ""))
    if named:
        return named
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise BuildError("no C++ compiler: $CXX is not set, and c++, g++ and clang++ are not on the path")


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


def compile_library(target: Path, record: dict) -> None:
    """Compile every source, each in its own process, and link `target`; fills `record` on the way."""
    compiler = find_compiler()
    record["compiler"] = shlex.join(compiler)
    sources = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").glob("*_cpu.cpp"))
    if not sources:
        raise BuildError("csrc holds no *_cpu.cpp")
    flags = [*FLAGS, f'-DFV_SOURCE_HASH="{record["source_hash"]}"']
    record["command"] = shlex.join([*compiler, *flags, "-shared", *sources, "-o", target.name])
    record["compiler_version"] = run([*compiler, "--version"]).partition("\n")[0]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [f"{scratch}/{Path(source).stem}.o" for source in sources]
        commands = [
            [*compiler, *flags, "-c", source, "-o", made] for source, made in zip(sources, objects, strict=True)
        ]
        record["warnings"] = "\n".join(filter(None, pool.map(run, commands)))
        # Renamed into place: a process that has the old library mapped keeps the old file.
        linked = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            run([*compiler, "-shared", *objects, "-o", str(linked)])
            linked.replace(target)
        finally:
            linked.unlink(missing_ok=True)
    record["seconds"] = round(time.perf_counter() - started, 2)


class BuildNative(build_ext):
    """Writes the library and the build record into the package; without a library the record says why."""

    def run(self):
        """Build into the source tree for --inplace and editable installs, into build_lib otherwise."""
        self.build_into(self.package_folder())

    def package_folder(self) -> Path:
        """Return the folder of the package that is being made."""
        return (ROOT if self.inplace or self.editable_mode else Path(self.build_lib).resolve()) / "fastvivit"

    def build_into(self, package: Path) -> None:
        """Make `package`/libfastvivit_cpu.so, or no such file and the reason in the record."""
        package.mkdir(parents=True, exist_ok=True)
        target = package / native.LIBRARY
        record = {
            "source_hash": native.source_hash(ROOT / "csrc"),
            "flags": shlex.join(FLAGS),
            "platform": platform.platform(),
            "error": None,
        }
        try:
            if os.environ.get("FASTVIVIT_BUILD", "").lower() == "off":
                raise BuildError("compiling was switched off by FASTVIVIT_BUILD=off")
            compile_library(target, record)
        except BuildError as error:
            # An older library must not pass for this build's.
            target.unlink(missing_ok=True)
            record["error"] = str(error)
            print(f"fastvivit: no CPU library: {error}", file=sys.stderr)
        text = json.dumps(record, indent=2) + "\n"
        (package / native.RECORD).write_text(text, encoding="utf-8")

    def get_outputs(self):
        """Return the files that were made."""
        names = [self.package_folder() / native.LIBRARY, self.package_folder() / native.RECORD]
        return [str(path) for path in names if path.is_file()]

    def get_output_mapping(self):
        """Return nothing: an editable install reads both files in the source tree, where they are made."""
        return {}

    def get_source_files(self):
        """Return nothing: MANIFEST.in lists csrc, headers included."""
        return []


class BuildWheel(bdist_wheel):
    """py3-none-<platform> with the library, py3-none-any without: it links neither Python nor torch."""

    def run(self):
        """Compile first, because whether that worked decides between the two kinds of wheel."""
        self.run_command("build")
        package = Path(self.get_finalized_command("build").build_lib) / "fastvivit"
        self.root_is_pure = not (package / native.LIBRARY).is_file()
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
