"""The layers of the package, read from its imports; and what importing it costs."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent / "fastvivit"

# Lowest first. A module may import its own layer and those below; backends load when they run.
LAYERS = [
    ("_native", "_autocast", "_backends", "_folders", "_staging"),
    ("_probe", "_checks", "_operator"),
    ("ops", "losses"),
    ("functional",),
    ("tokens", "metrics"),
    ("tubes",),
    ("models",),
    ("modules",),
    ("convert", "tune", "hf", "modular", "_chunks", "contrastive"),
    ("caption",),
    ("pretrained", "data"),
    ("search", "train", "planning", "describe"),
    ("evaluation",),
    ("cli",),
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def imports(path: Path) -> set[str]:
    """Modules of this package that a file names in any import, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").startswith("fastvivit"):
            found |= {node.module} | {f"{node.module}.{a.name}" for a in node.names if node.module == "fastvivit"}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.startswith("fastvivit")}
    return found - {"fastvivit"}


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] not in ("__init__", "__main__"):
            yield path, parts


def test_every_module_has_a_layer():
    assert {parts[0] for _, parts in modules()} == set(RANK)


def test_imports_only_go_down():
    wrong = []
    for path, parts in modules():
        for name in imports(path):
            below = name.split(".")[1]
            if below in RANK and RANK[below] > RANK[parts[0]]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_backends_import_neither_each_other_nor_the_reference():
    for path, parts in modules():
        if parts[0] == "ops" and parts[-1].startswith(("backend_", "triton_")):
            for name in imports(path):
                assert ".backend_" not in name and not name.endswith((".reference", ".api", ".op")), (
                    path,
                    name,
                )


def test_ops_name_no_kernel_in_an_import():
    for path, parts in modules():
        if parts[0] == "ops" and parts[-1] in ("op", "api"):
            assert not any(".backend_" in name or ".triton_" in name for name in imports(path)), path


def test_csrc_knows_nothing_of_python_or_torch():
    for path in (ROOT.parent / "csrc").iterdir():
        text = path.read_text()
        assert not any(word in text for word in ("torch/", "Python.h", "ATen", "omp.h")), path


def test_import_needs_torch_only_and_never_triton():
    blocked = {"numpy", "einops", "safetensors", "av", "transformers", "tokenizers", "tyro", "tqdm"}
    blocked |= {"tensorboard", "matplotlib", "triton", "flash_attn", "webdataset"}
    code = (
        "import sys\n"
        "import torch, torch.utils.checkpoint, torch._library.fake_impl\n"  # what torch itself brings
        "before = set(sys.modules)\n"
        "import fastvivit, fastvivit.functional\n"
        "new = {m.split('.')[0] for m in set(sys.modules) - before}\n"
        f"bad = new & {blocked!r}\n"
        "assert not bad, bad\n"
        "assert 'triton' not in sys.modules\n"
        "from torch.utils.flop_counter import flop_registry\n"
        "assert torch.ops.fastvivit.tubelet_embed in flop_registry\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)
