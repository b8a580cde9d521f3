"""``fastvivit plan``."""

import json

import pytest

pytest.importorskip("tyro")

from fastvivit.cli import main


def test_it_prints_a_plan_and_says_by_its_code_whether_it_fits(capsys):
    given = ["plan", "--model", "tiny", "--frames", "16", "--mask", "0.75", "--text", "none", "--batch", "4"]
    assert main([*given, "--tuning", "last_4"]) == 0
    assert "ViViT 192 x 12" in capsys.readouterr().out
    assert main([*given, "--gpu-mem", "600MB", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert not told["fits"] and told["gpu_memory"] == 600 * 10**6


def test_a_config_and_changes_to_it(tmp_path, capsys):
    config = tmp_path / "run.toml"
    config.write_text(
        'steps = 10\nbatch_size = 8\n[schedule]\nwarmup = 1\n[data]\ntrain = "clips.jsonl"\n[model]\n'
        'preset = "tiny"\nframes = 4\nsize = 32\ndepth = 3\n[text]\nwidth = 32\nheads = 2\n'
    )
    assert main(["plan", str(config), "--override", "mask.ratio=0.5", "--chunk", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    step = told["step"]
    assert (step["batch"], step["chunk"], step["mask_ratio"], told["steps"]) == (8, 2, 0.5, 10)


def test_a_mixed_batch_is_named_part_by_part(tmp_path, capsys):
    config = tmp_path / "run.toml"
    config.write_text(
        'stage = "image_to_video"\nsteps = 10\nbatch_size = 24\n[schedule]\nwarmup = 1\n[model]\npreset = "tiny"\n'
        'frames = 4\nsize = 32\ndepth = 2\n[text]\nwidth = 32\nheads = 2\n[[data.sources]]\npath = "clips.jsonl"\n'
        'batch = 8\n[[data.sources]]\npath = "images.jsonl"\nbatch = 16\nmask_ratio = 0.5\n'
    )
    (tmp_path / "images.jsonl").write_text('{"image": "a.png", "caption": "a"}\n')
    assert main(["plan", str(config)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "8 clips of 4 x 32 x 32, 75% masked: 2 tokens; 16 images of 32 x 32, 50% masked: 2 tokens"
    assert lines[3] == f"note: nothing to read in {tmp_path / 'clips.jsonl'} yet: planned for as clips"
    assert any(line.startswith("largest batch in 80.0 GB: ") and " + " in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu-mem", "much"], "gpu-mem: wanted a size such as 16GB"),
        (["--tuning", "last_99"], "tuning: wanted last_1 to last_12"),
        (["--override", "seed=1"], "override: wanted a CONFIG.toml"),
        (["--tuning", "lora_0"], "tuning: wanted a width or rank of at least 1"),
        (["run.toml", "--model", "large"], "model: wanted none beside run.toml"),
        (["missing.toml"], "missing.toml"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    assert main(["plan", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
