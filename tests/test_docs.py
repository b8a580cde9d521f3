"""Pages that are generated are up to date, links lead somewhere, and code on pages runs."""

import importlib.util
import inspect
import json
import re
from pathlib import Path

import pytest
import torch

import fastvivit
from fastvivit.train.build import scratch_tower
from fastvivit.train.tables import TextConfig
from tests.test_examples import folders
from tests.tiny_captioner import make_dual

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


def test_encoders_page_is_what_the_sweep_says():
    page = maker("make_encoders").page()
    assert (ROOT / "docs" / "encoders.md").read_text() == page, "run python docs/make_encoders.py"


def sweep_row(**changes):
    about = {"date": "2026-01-02T00:00:00+00:00", "device": "A CPU", "commit": "0" * 12, "dirty": False, "gpu": None}
    about |= {"torch": "2.11.0", "threads": 2, "dtype": "float32", "quick": False, "kind": "sweep", "error": None}
    about |= {"encoder": "joint", "model": "B", "frames": 16, "mask": 0, "clips": 1, "checkpointing": False}
    about |= {"tokens": 2048, "saved_bytes": 3 << 30, "peak_bytes": 4 << 30, "weight_bytes": 1 << 30}
    about |= {"optimiser_bytes": 2 << 30, "clip_bytes": 1 << 20, "flops_step": 5 * 10**12, "predicted_seconds": 8.0}
    return about | {"seconds": None, "measured_peak_bytes": None} | changes


def test_encoders_page_tells_measured_from_predicted(tmp_path):
    ceilings = {"copy_bytes_per_s": 5e10, "product_flop_per_s": 4e11, "date": "2026-01-02", "quick": False}
    timed = {"seconds": {"median": 2.5}, "predicted_seconds": 2.0, "measured_peak_bytes": 5 << 30}
    lines = [
        {"kind": "sweep_ceilings"} | ceilings,
        sweep_row(),
        sweep_row(mask=75, tokens=512, saved_bytes=1 << 30, flops_step=10**12, **timed),
        sweep_row(encoder="tubes", error="frames: wanted more"),
        sweep_row(dtype="bfloat16", saved_bytes=2 << 30),
    ]
    (tmp_path / "2026-01-02_a-cpu_0_sweep.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "2026-01-03_part_sweep.jsonl").write_text(json.dumps(sweep_row(date="2026-01-03", device="Another")))
    page = maker("make_encoders").page(tmp_path)
    assert "| 16 | joint | 2,048 | 3.00 GiB | 1.00 GiB | 7.00 GiB | 7.00 GiB |" in page
    assert "| 16 | joint | 5, ≥ 8 s | 1, 2.5 s |" in page
    assert "Steps measured: 1. Their times are 1.25 to 1.25" in page and "are 1.25 to 1.25 (median 1.25)" in page
    assert "No rows for tubes at 16 frames: `frames: wanted more`" in page
    assert "| ViT-B | 16 | 0 % | 3.00 GiB, 7.00 GiB | 2.00 GiB, 7.00 GiB |" in page
    assert "A CPU" in page and "Another" not in page
    assert maker("make_performance").runs(tmp_path) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_every_proof_on_the_papers_page_is_a_test():
    text = (ROOT / "docs" / "paper.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (.*) \| (.*) \| (.*) ?\|$", text, re.MULTILINE)
    assert [int(number) for number, *_ in rows] == list(range(1, 29))
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


def test_a_batch_in_chunks_and_a_plan_as_the_readme_says(capsys):
    pytest.importorskip("transformers")
    text = (ROOT / "README.md").read_text()
    part = text[text.index("## Long video on one GPU") : text.index("## Video to text")]
    step, plan = re.findall(r"```python\n(.*?)```", part, re.DOTALL)
    cfg = fastvivit.ViViTConfig.tiny(depth=1, frames=4, size=32)
    tower = scratch_tower(TextConfig(width=16, depth=1, heads=2), ["a clip"])
    model = fastvivit.VideoTextModel(fastvivit.ViViT(cfg), tower, dim=8)
    clips = torch.randint(256, (10, 3, 4, 32, 32), dtype=torch.uint8)
    keep = fastvivit.functional.random_keep(10, cfg.tokens, mask_ratio=0.75)
    names = {"model": model, "clips": clips, "captions": ["a clip"] * 10, "keep": keep}
    exec(step, names)
    assert names["values"]["loss"] > 0 and all(p.grad is not None for p in model.video.blocks.parameters())
    exec(plan, {})
    assert "of 80.0 GB: fits" in capsys.readouterr().out


def test_training_is_called_as_the_readme_says():
    code = code_of("Training on your clips")
    (file,) = re.findall(r'from_toml\("(.+?)"\)', code)
    (arguments,) = re.findall(r"fit\((.+?)\)", code)
    bind = inspect.signature(fastvivit.train.fit).bind
    eval(f"bind({arguments})", {"bind": bind, "config": fastvivit.train.TrainConfig.from_toml(ROOT / file)})


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


def test_captioning_page_is_what_the_report_says():
    made = maker("make_captioning")
    text, report = made.PAGE.read_text(), json.loads(made.REPORT.read_text())
    assert text == made.page(text, report), "run python docs/make_captioning.py"
    # What the page says of the run in words.
    first, second = (report["results"][half] for half in ("first half", "second half"))
    right = [[t in c for t, c in zip(half["text"], report["captions"], strict=True)] for half in (first, second)]
    assert all(right[0][:-1]) and sum(right[1]) == 4 and not right[0][-1]
    assert first["loss"][-1] > report["results"]["before"]["loss"][-1]
    report["losses"][-1] = 9.87
    assert "→ 9.87" in made.page(text, report)


def test_the_captioner_is_used_as_its_page_says(tmp_path, monkeypatch):
    pytest.importorskip("av")
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    folders(tmp_path)
    models = tmp_path / "models"
    models.mkdir()
    (tmp_path / "dinov2").rename(models / "dinov2_small")
    (tmp_path / "llama").rename(models / "smollm2")
    next((tmp_path / "clips").glob("*.mp4")).rename(tmp_path / "cup.mp4")
    text, names = (ROOT / "docs" / "captioning.md").read_text(), {}
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(code.replace("size=224", "size=28").replace("frames=16", "frames=4"), names)
    assert names["cap"].layers[0].gate.abs() > 0 and (tmp_path / "layers").is_dir()


def test_a_captioner_is_made_as_the_readme_says(tmp_path, monkeypatch):
    pytest.importorskip("av")
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    folders(tmp_path)
    (tmp_path / "llama").rename(tmp_path / "smollm2")
    next((tmp_path / "clips").glob("*.mp4")).rename(tmp_path / "cup.mp4")
    fastvivit.save_pretrained(make_dual(), tmp_path / "run" / "model")
    names = {}
    exec(code_of("Video to text").replace("frames=16", "frames=4"), names)
    assert names["loss"].requires_grad and names["cap"].lm is names["lm"]
