"""Pages that are generated are up to date, links lead somewhere, and code on pages runs."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

import fastvivit

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def maker(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_backends_page_is_what_the_ops_say():
    page = maker("make_backends").page()
    assert (ROOT / "docs" / "backends.md").read_text() == page, "run python docs/make_backends.py"


def test_performance_page_is_what_the_results_say():
    page = maker("make_performance").page()
    assert (ROOT / "docs" / "performance.md").read_text() == page, "run python docs/make_performance.py"


def test_performance_page_says_what_a_gpu_measured(tmp_path):
    """A results file of an H100 answers its lines; the others stay unmeasured."""
    about = {"date": "2026-01-02T00:00:00+00:00", "device": "NVIDIA H100 80GB HBM3", "commit": "0" * 12, "dirty": False}
    about |= {"torch": "2.11.0", "threads": 16, "dtype": "bfloat16", "gpu": {}, "quick": False}
    name = "attention/ViT-B, 256 frames, 0 % masked, forward"
    spread = {"median": 7e-3, "p10": 6e-3, "p90": 8e-3}
    times = {"note": "", "seconds": spread, "share_of_ceiling": 0.5, "speedup_of_ours": spread}
    claim = {"text": "H100: at least 450 TFLOP/s", "value": 471.2, "unit": "TFLOP/s", "met": True}
    case = {"kind": "case", "name": name, "gate": "ok", "ceiling": "product", "claims": [claim]}
    case["contestants"] = {"fastvivit": times, "sdpa flash": times}
    (tmp_path / "h100.jsonl").write_text("\n".join(json.dumps(line | about) for line in (case,)))
    page = maker("make_performance").page(tmp_path)
    (line,) = [line for line in page.splitlines() if "32,768 tokens" in line and "at least 450" in line]
    assert "471 TFLOP/s, met" in line and "h100.jsonl" in page
    assert "beyond 514 TFLOP/s | not measured yet" in page and "no GPU has run" not in page


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_every_proof_on_the_papers_page_is_a_test():
    text = (ROOT / "docs" / "paper.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (.*) \| (.*) \| (.*) ?\|$", text, re.MULTILINE)
    assert [int(number) for number, *_ in rows] == list(range(1, 27))
    for _, technique, provider, proof in rows:
        assert proof.strip() or "not built yet" in provider, technique
        for name, file in re.findall(r"\[(\w+?)\]\(\.\./(\S+?\.py)\)", proof):
            assert f"def {name}(" in (ROOT / file).read_text(), (name, file)
        for name in re.findall(r"fv\.([a-z_A-Z.]+)", provider):
            found = fastvivit
            for part in name.split("."):
                found = getattr(found, part)


def code_of(heading):
    """The first block of Python below a heading of the README."""
    text = (ROOT / "README.md").read_text()
    return re.search(r"```python\n(.*?)```", text[text.index(f"## {heading}\n") :], re.DOTALL).group(1)


@pytest.mark.parametrize("heading", ["An op", "The encoder"])
def test_code_of_the_readme_runs(heading):
    code = code_of(heading)
    # The shapes are what is shown, not the size of the model: a tiny one says the same in less time.
    exec(code.replace("ViViTConfig.base(", "ViViTConfig.tiny(depth=1, "), {})


def test_an_image_model_becomes_an_encoder_as_the_readme_says(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = transformers.Dinov2Model(transformers.Dinov2Config(image_size=224, patch_size=14, **sizes)).eval()
    model.save_pretrained(tmp_path / "dinov2_small")
    names = {}
    exec(code_of("From an image model").replace("dinov2_small", str(tmp_path / "dinov2_small")), names)
    found = names["encoder"](names["still"]).last_hidden_state
    wanted = model(names["still"][:, :, 0]).last_hidden_state.repeat(1, 8, 1)
    assert (found - wanted).abs().max() < 1e-5


def test_a_model_is_accelerated_as_the_readme_says():
    pytest.importorskip("transformers")
    small = "VivitConfig(hidden_size=32, num_attention_heads=2, intermediate_size=64, "
    exec(code_of("A model you already have").replace("VivitConfig(", small), {})
