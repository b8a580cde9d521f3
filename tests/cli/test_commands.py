"""What the commands do."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fastvivit as fv
from fastvivit.cli import selftest
from fastvivit.cli.ops import CASES
from fastvivit.data import read_manifest
from fastvivit.search import find_videos, load_index, read_windows
from fastvivit.train import latest_checkpoint, read_metrics


def test_every_op_is_listed():
    folders = {path.parent.name for path in (Path(selftest.__file__).parents[1] / "ops").glob("*/op.py")}
    assert {case.op.name for case in CASES} == folders


def test_info(call):
    code, out, _ = call("info", "--json")
    found = json.loads(out)
    assert code == 0 and found["ops"].keys() == {case.op.name for case in CASES}
    for devices in found["ops"].values():
        choice = devices["cpu"]
        assert choice["auto"] and choice["auto"] not in choice["others"]
        assert all(choice["others"].values())
    code, out, _ = call("info")
    assert code == 0 and "tubelet_embed on cpu: " in out and "compiled CPU kernels: " in out
    assert "compiled CUDA kernels: " in out and found["native_cuda"].keys() >= {"available", "reason", "path"}


def test_selftest_passes(call):
    code, out, _ = call("selftest")
    assert code == 0, out
    assert "MISS" not in out and "checks that can run here passed" in out


def test_selftest_finds_a_wrong_backend(call, monkeypatch):
    from fastvivit.ops.segment_mean import reference

    right = reference.forward
    monkeypatch.setattr(reference, "forward", lambda x, *rest: (right(x, *rest)[0] * 1.01, right(x, *rest)[1]))
    from fastvivit import _probe

    if _probe.no_native() is not None:
        pytest.skip("the compiled kernels are the other opinion, and they are not built")
    code, out, _ = call("selftest")
    assert code == 1 and "MISS" in out and "missed" in out


def test_selftest_shows_a_broken_backend(call, monkeypatch):
    from fastvivit.ops.varlen_attention import backend_sdpa

    def broken(*args):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(backend_sdpa, "forward", broken)
    code, out, _ = call("selftest")
    assert code == 1 and "RuntimeError: no such kernel" in out


def test_train_resume_and_override(call, toml, tmp_path):
    path, out = toml(), tmp_path / "run"
    code, text, err = call("train", path, "--out", out, "--override", "steps=4", "--override", "run.keep_last=1")
    assert code == 0 and f"report: {out / 'report.html'}" in text and "t2v_r1" in text, err
    assert len(read_metrics(out)) == 4 and latest_checkpoint(out).name == "step-00000004"
    code, _, err = call("train", path, "--out", out)
    assert code == 2 and "holds a run already" in err
    code, _, err = call("train", path, "--out", out, "--resume")
    assert code == 2 and "fields differ: steps" in err
    assert call("train", path, "--out", out, "--resume", "--override", "steps=4")[0] == 0


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimiser.learning=1", "optimiser.learning: no such field of OptimiserConfig"),
        ("model.frames=9", "model.frames: wanted a multiple of the tubelet's t = 2, got 9"),
        (
            "stage=finetune",
            "dim: wanted in stage 'contrastive', 'images', 'image_to_video' or 'short_to_long' only",
        ),
        ("data.train=absent.jsonl", "manifest: wanted a JSONL or CSV file, no such file"),
    ],
)
def test_train_mistakes(call, toml, tmp_path, override, words):
    code, _, err = call("train", toml(), "--out", tmp_path / "run", "--override", override)
    assert code == 2 and words in err and err.count("\n") == 1


def test_a_diverged_run_fails_in_one_line(call, toml, tmp_path):
    code, _, err = call("train", toml(), "--out", tmp_path / "run", "--override", "optimiser.lr=1e38")
    assert code == 1 and "the loss is" in err and "optimiser.lr" in err


@pytest.fixture
def folder(digits, tmp_path):
    """Held-out files, a broken one and a text among them."""
    shutil.copytree(digits[1].parent, tmp_path / "clips")
    (tmp_path / "clips" / "broken.mp4").write_text("no video")
    return tmp_path / "clips"


def test_embed_and_search_agree(call, run, folder, digits, tmp_path):
    index, query = tmp_path / "deep" / "vectors.safetensors", read_manifest(digits[1])[2].captions[0]
    code, out, err = call("embed", folder, "--model", run, "--out", index)
    assert code == 0 and "8 vectors of 16 from 8 files" in out
    assert "broken.mp4" in err and "1 files could not be read" in err
    vectors = load_file(index)["vectors"]
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(8))
    code, out, _ = call("search", query, "--model", run, "--index", index, "--json", "--top", 3)
    by_index = json.loads(out)
    assert code == 0 and len(by_index) == 3
    assert [match["score"] for match in by_index] == sorted((m["score"] for m in by_index), reverse=True)
    code, out, _ = call("search", query, folder, "--model", latest_checkpoint(run), "--json", "--top", 3)
    for one, other in zip(by_index, json.loads(out), strict=True):
        assert one["file"] == other["file"] and abs(one["score"] - other["score"]) < 1e-5
    code, out, _ = call("search", query, folder, "--model", run)
    assert code == 0 and by_index[0]["file"] in out.splitlines()[1]


def test_an_index_of_another_model_is_refused(call, run, folder, config, tmp_path, change):
    from fastvivit.train import fit

    index = tmp_path / "vectors.safetensors"
    assert call("embed", folder, "--model", run, "--out", index)[0] == 0
    other = fit(change(config, seed=5), tmp_path / "other", quiet=True)
    code, _, err = call("search", "up", "--model", other, "--index", index)
    assert code == 2 and "is another's" in err
    index.write_bytes(b"{}")
    code, _, err = call("search", "up", "--model", run, "--index", index)
    assert code == 2 and "index: wanted a file that `fastvivit embed` wrote" in err


def test_only_broken_files(call, run, folder, tmp_path):
    code, _, err = call("embed", folder / "broken.mp4", "--model", run, "--out", tmp_path / "x.safetensors")
    assert code == 2 and "wanted at least one video that can be read, got none of 1" in err


def test_a_model_without_its_run_wants_fps(call, run, folder, tmp_path):
    shutil.copytree(run / "model", tmp_path / "alone" / "model")
    arguments = [
        "embed",
        folder,
        "--model",
        tmp_path / "alone" / "model",
        "--out",
        tmp_path / "x.safetensors",
    ]
    code, _, err = call(*arguments)
    assert code == 2 and "fps: wanted --fps" in err
    assert call(*arguments, "--fps", "8")[0] == 0
    assert load_index(tmp_path / "x.safetensors").seconds == 1.0


def test_windows(digits, tmp_path):
    file = read_manifest(digits[1])[0].video  # 8 pictures at 8 a second
    found = list(read_windows(file, 3, 8.0, 32))
    assert [start for start, _ in found] == pytest.approx([0, 3 / 8, 6 / 8])
    whole = next(read_windows(file, 8, 8.0, 32))[1]
    torch.testing.assert_close(torch.cat([clip for _, clip in found], dim=1)[:, :8], whole)
    assert torch.equal(found[2][1][:, 2], whole[:, 7])  # the last picture again
    assert [start for start, _ in read_windows(file, 7, 8.0, 32)] == [0.0]  # one picture is no window
    assert len(list(read_windows(file, 100, 8.0, 32))) == 1


def test_long_files_are_read_in_parts(digits, monkeypatch):
    import fastvivit.search as module

    file = read_manifest(digits[1])[0].video
    whole = list(read_windows(file, 2, 8.0, 32))
    monkeypatch.setattr(module, "_CHUNK", 4)  # two windows at a time; the file ends with the second part
    parts = list(read_windows(file, 2, 8.0, 32))
    assert [start for start, _ in parts] == [start for start, _ in whole] == [0.0, 0.25, 0.5, 0.75]
    for (_, one), (_, other) in zip(parts, whole, strict=True):
        assert torch.equal(one, other)


def test_videos_are_found_by_suffix(folder):
    names = [path.name for path in find_videos([folder])]
    assert len(names) == 9 and names == sorted(names) and "manifest.jsonl" not in names
    assert find_videos([folder / "manifest.jsonl", folder / "manifest.jsonl"]) == [folder / "manifest.jsonl"]


def test_a_batch_of_nothing_is_refused(run, folder):
    from fastvivit.search import embed_files

    with pytest.raises(ValueError, match="batch_size: wanted at least 1, got 0"):
        embed_files(fv.load_pretrained(run / "model"), [folder / "broken.mp4"], fps=8.0, batch_size=0)
