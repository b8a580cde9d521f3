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
    # Without the CUDA library unless a test says so: it takes nvcc many times as long as all of a test.
    env = {"FASTVIVIT_BUILD": "cpp"} | (env or {})
    inherited = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "FASTVIVIT_BUILD")}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=inherited | env, capture_output=True, text=True)
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
        ({"FASTVIVIT_BUILD": "cuda", "CUDA_HOME": "", "PATH": "/nowhere"}, "FASTVIVIT_BUILD=cuda"),
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


@pytest.fixture
def cuda_home(tree, tmp_path):
    """A CUDA whose nvcc is the C++ compiler with the tests' stand-in for CUDA's header."""
    if COMPILER is None:
        pytest.skip("no C++ compiler on this machine")
    nvcc = tmp_path / "cuda" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(
        "#!/bin/sh\n"
        'for argument; do case "$argument" in\n'
        "  --list-gpu-arch) echo compute_75; echo compute_80; echo compute_90; exit ;;\n"
        "  --version) echo 'Copyright (c) nobody'; echo 'tools, release 99.0'; exit ;;\n"
        "esac; done\n"
        'log="$0.log"; printf "%s\\n" "$*" >> "$log"\n'
        "language=\n"
        'for argument; do shift; case "$argument" in\n'
        "  -gencode=*|--cudart=*|-X*) ;;\n"
        '  *.cu) language=yes; set -- "$@" -x c++ "$argument" ;;\n'
        '  *) set -- "$@" "$argument" ;;\n'
        "esac; done\n"
        f'exec {COMPILER} -O0 -fPIC -fvisibility=hidden -I{ROOT}/tests/cuda_shim "$@"\n'
    )
    nvcc.chmod(0o755)
    return nvcc.parent.parent


def build(tree, **env):
    run(sys.executable, "setup.py", "-q", "build_ext", "--inplace", cwd=tree, env=env)
    return native_of(tree / "fastvivit")


def test_cuda_library_is_built_checked_and_kept(tree, cuda_home):
    package, log = tree / "fastvivit", cuda_home / "bin" / "nvcc.log"
    assert "not built" in native_of(package).cuda_reason()
    (package / "libfastvivit_cuda.so").write_bytes(b"not a library")
    assert "cannot be loaded" in native_of(package).cuda_reason()
    native = build(tree, FASTVIVIT_BUILD="cuda", CUDA_HOME=str(cuda_home))
    assert native.cuda_reason() is None and "FASTVIVIT_BUILD=cuda" in native.reason()
    info = native.cuda_info()
    assert info["available"] and info["source_hash"] == info["build"]["source_hash"]
    assert info["build"]["compiler_version"] == "tools, release 99.0" and info["build"]["seconds"] > 0
    flags = info["build"]["flags"]
    assert "code=sm_80 " in flags and "code=sm_90a " in flags and flags.endswith("code=compute_90")

    # What came of the same sources stays; a source of the other library is no reason.
    calls = log.read_text()
    for name, again in (("rows_cpu.cpp", False), ("rows_move_cuda.cu", True), ("dtypes.h", True)):
        source = tree / "csrc" / name
        source.write_text(source.read_text() + "\n")
        assert (native_of(package).cuda_reason() is not None) == again
        if again:
            assert "the CUDA library is stale" in native_of(package).cuda_reason()
        native = build(tree, FASTVIVIT_BUILD="cuda", CUDA_HOME=str(cuda_home))
        # Read, because this process would be given the library that it has loaded from that path before.
        wanted = native.source_hash(tree / "csrc", "_cpu")
        assert wanted.encode() in (package / "libfastvivit_cuda.so").read_bytes()
        assert native.cuda_info()["build"]["source_hash"] == wanted
        assert (log.read_text() != calls) == again
        calls = log.read_text()


@needs_compiler
def test_failed_cuda_compile_leaves_the_cpu_library(tree, cuda_home):
    package, nvcc = tree / "fastvivit", cuda_home / "bin" / "nvcc"
    (package / "libfastvivit_cuda.so").write_bytes(b"left over from an earlier build")
    nvcc.write_text(nvcc.read_text().replace("exec ", "echo 'error: no such warp' >&2; exit 2; "))
    native = build(tree, FASTVIVIT_BUILD="", CUDA_HOME=str(cuda_home))
    assert native.reason() is None and native.load() is not None
    assert "the CUDA library is not built" in native.cuda_reason() and "no such warp" in native.cuda_reason()
    assert "no such warp" in native.cuda_info()["build"]["error"] and native.info()["build"]["error"] is None
    assert not (package / "libfastvivit_cuda.so").exists()


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"FASTVIVIT_BUILD": "cuda", "CUDA_HOME": "/nowhere", "PATH": "/nowhere"}, "no CUDA compiler"),
        ({"FASTVIVIT_BUILD": "cpp"}, "FASTVIVIT_BUILD=cpp"),
        ({"FASTVIVIT_BUILD": "off"}, "FASTVIVIT_BUILD=off"),
    ],
)
def test_build_without_a_cuda_library(tree, env, message):
    native = build(tree, **env)
    assert native.load_cuda() is None and message in native.cuda_reason()


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
        "assert _native._cuda_loaded.cache_info().currsize == 0, 'importing loaded the CUDA library'\n"
    )
    run(sys.executable, "-W", "ignore", "-c", code, cwd=ROOT)
