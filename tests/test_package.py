"""Building and installing: with and without a compiler, in pip's isolated environment, from a bare tree."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMPILER = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler on this machine")
OPTIONAL = ["av", "einops", "matplotlib", "numpy", "safetensors", "scipy", "tensorboard", "tokenizers"]
OPTIONAL += ["tqdm", "transformers", "triton", "tyro"]


def run(*command, cwd=None, env=None):
    inherited = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "FASTVIVIT_BUILD")}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=inherited | (env or {}), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def native_of(package):
    """Return that tree's _native module, without importing its package."""
    spec = importlib.util.spec_from_file_location("_native_under_test", Path(package) / "_native.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(tmp_path):
    """A clean copy of the sources: what a clone holds."""
    target = tmp_path / "tree"
    made = shutil.ignore_patterns("__pycache__", "*.so", "_build.json")
    for name in ("csrc", "fastvivit", "benchmarks"):
        shutil.copytree(ROOT / name, target / name, ignore=made)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, target / name)
    return target


def pip_install(tree, target, *options, env=None):
    run(sys.executable, "-m", "pip", "install", "--no-deps", "-q", *options, "--target", target, tree, env=env)
    return target


def wheel_tags(target):
    text = next(target.glob("fastvivit-*.dist-info/WHEEL")).read_text()
    return [line.removeprefix("Tag: ") for line in text.splitlines() if line.startswith("Tag: ")]


@needs_compiler
def test_pip_install_in_its_isolated_environment(tree, tmp_path):
    """The isolated environment holds setuptools alone, so a build that wanted torch would fail here."""
    target = pip_install(tree, tmp_path / "site")
    (tag,) = wheel_tags(target)
    assert tag.startswith("py3-none-") and tag != "py3-none-any"
    if sys.platform == "linux":
        assert tag.startswith("py3-none-linux_")
    report = run(
        sys.executable,
        "-c",
        "import json, fastvivit\nfrom fastvivit import _native\n"
        "print(json.dumps({**_native.info(), 'package': fastvivit.__file__}))",
        cwd=tmp_path,
        env={"PYTHONPATH": str(target)},
    )
    info = json.loads(report)
    assert info["available"], info["reason"]
    assert Path(info["package"]).is_relative_to(target) and Path(info["path"]).is_relative_to(target)
    assert info["build"]["error"] is None and info["build"]["compiler_version"] and info["build"]["command"]

    # The benchmarks come along, under the package's own name and no other.
    assert not (target / "benchmarks").exists()
    listed = run(sys.executable, "-m", "fastvivit", "bench", "--list", cwd=tmp_path, env={"PYTHONPATH": str(target)})
    assert "rows/gather" in listed.splitlines()

    record = target / "fastvivit" / "_build.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"source_hash": "0" * 64}))
    assert "stale" in native_of(target / "fastvivit").reason()


def test_install_with_a_broken_compiler_succeeds_and_says_why(tree, tmp_path):
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho 'fatal error: out of vowels' >&2\nexit 1\n")
    compiler.chmod(0o755)
    target = pip_install(tree, tmp_path / "site", "--no-build-isolation", env={"CXX": str(compiler)})
    assert wheel_tags(target) == ["py3-none-any"]
    reason = run(
        sys.executable,
        "-c",
        "import fastvivit\nfrom fastvivit import _native\nassert _native.load() is None\nprint(_native.reason())",
        cwd=tmp_path,
        env={"PYTHONPATH": str(target)},
    )
    assert "not built" in reason and "out of vowels" in reason and str(compiler) in reason


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"CXX": "/no/such/compiler"}, "/no/such/compiler"),
        ({"CXX": "false"}, "ended with status 1"),
        ({"CXX": "", "PATH": "/nowhere"}, "no C++ compiler"),
        ({"FASTVIVIT_BUILD": "off"}, "FASTVIVIT_BUILD=off"),
    ],
)
def test_build_without_a_library(tree, env, message):
    package = tree / "fastvivit"
    (package / "libfastvivit_cpu.so").write_bytes(b"left over from an earlier build")
    run(sys.executable, "setup.py", "-q", "build_ext", "--inplace", cwd=tree, env=env)
    native = native_of(package)
    assert native.load() is None and message in native.reason()
    assert not (package / "libfastvivit_cpu.so").exists()
    assert message in native.info()["build"]["error"]


@needs_compiler
def test_stale_library_is_refused(tree):
    package = tree / "fastvivit"
    assert "not built" in native_of(package).reason()
    (package / "libfastvivit_cpu.so").write_bytes(b"not a library")
    assert "cannot be loaded" in native_of(package).reason()
    run(sys.executable, "setup.py", "-q", "build_ext", "--inplace", cwd=tree)
    native = native_of(package)
    assert native.reason() is None and native.load().fv_source_hash().decode() == native.info()["source_hash"]

    source = tree / "csrc" / "ids_cpu.cpp"
    text = source.read_text()
    source.write_text(text + "\n")
    native = native_of(package)
    assert native.load() is None and "stale" in native.reason() and native.info()["available"] is False
    source.write_text(text)
    assert native_of(package).reason() is None


def test_torch_without_the_shim_is_a_reason(tree, monkeypatch):
    if COMPILER is None:
        pytest.skip("no C++ compiler on this machine")
    run(sys.executable, "setup.py", "-q", "build_ext", "--inplace", cwd=tree)
    native = native_of(tree / "fastvivit")
    monkeypatch.setattr(native, "torch_symbol", lambda name: None)
    assert native.load() is None and "torch_parallel_for" in native.reason()


def test_sdist_holds_the_sources(tree, tmp_path):
    (tree / "fastvivit" / "libfastvivit_cpu.so").write_bytes(b"never ship this")
    (tree / "fastvivit" / "_build.json").write_text("{}")
    run(sys.executable, "setup.py", "-q", "sdist", "-d", tmp_path / "dist", cwd=tree)
    (archive,) = (tmp_path / "dist").glob("fastvivit-*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    wanted = {f"csrc/{path.name}" for path in (ROOT / "csrc").iterdir() if path.is_file()}
    assert wanted and wanted <= names
    assert {"setup.py", "pyproject.toml", "LICENSE", "fastvivit/_native.py"} <= names
    assert not [name for name in names if name.endswith((".so", "_build.json", ".pyc"))]


def test_import_needs_torch_only():
    code = (
        "import sys\n"
        f"absent = set({OPTIONAL!r})\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in absent:\n"
        "            raise ModuleNotFoundError(f'{name} is not installed', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import fastvivit\n"
        "from fastvivit import _native\n"
        "assert not absent & set(sys.modules), absent & set(sys.modules)\n"
        "assert _native._loaded.cache_info().currsize == 0, 'importing loaded the library'\n"
    )
    run(sys.executable, "-W", "ignore", "-c", code, cwd=ROOT)
