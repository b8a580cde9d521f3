"""Every example runs as it stands, and is short."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example(example, tmp_path):
    if example.stem == "train_on_your_clips":
        pytest.importorskip("av", reason='PyAV is not installed: pip install "fastvivit[video]"')
        pytest.importorskip("transformers", reason='transformers is not installed: pip install "fastvivit[hf]"')
    environment = os.environ | {"PYTHONPATH": str(example.parents[1]), "TMPDIR": str(tmp_path)}
    # The interpreter that other tests turn on would only be slower here.
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, example], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    words = {
        "embed_kept_tubelets": "largest difference to Conv3d and index: ",
        "encode_long_clip": "one vector a clip: (3, 192)",
        "train_on_your_clips": "nearest to ",
        "tune_an_encoder": "merged, largest difference: ",
    }
    assert words[example.stem] in done.stdout
    for line in done.stdout.splitlines():
        if "largest difference" in line:
            assert float(line.split(": ")[1].split(";")[0]) < 1e-4


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_short(example):
    assert len(example.read_text().splitlines()) < 150


def test_the_example_config_is_right():
    from fastvivit.train import TrainConfig

    config = TrainConfig.from_toml(EXAMPLES[0].parent / "contrastive.toml")
    assert config.model.width == 384 and config.data.train.endswith("/examples/train.jsonl")


def test_the_example_config_of_captions_is_right():
    from fastvivit.train import TrainConfig

    config = TrainConfig.from_toml(EXAMPLES[0].parent / "video_to_text.toml")
    assert config.stage == "video_to_text" and config.vision.cache and config.optimiser.lr == 4e-5
    assert config.start.endswith("/examples/runs/contrastive") and config.mask.ratio == 0.3
