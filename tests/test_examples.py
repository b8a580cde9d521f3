"""Every example runs as it stands, and is short."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


def run(example, arguments, folder):
    """The finished process of an example that ended well."""
    environment = os.environ | {"PYTHONPATH": str(example.parents[1]), "TMPDIR": str(folder)}
    # The interpreter that other tests turn on would only be slower here.
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, example, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done


def folders(out):
    """Tiny models of the kinds that the captioner is made of, a tokenizer of bytes, four clips: their options."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from fastvivit.data import write_digits

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    image = transformers.Dinov2Config(image_size=28, patch_size=14, **sizes)
    transformers.Dinov2Model(image).save_pretrained(out / "dinov2")
    text = transformers.LlamaConfig(vocab_size=258, intermediate_size=64, bos_token_id=256, eos_token_id=257, **sizes)
    transformers.LlamaForCausalLM(text).save_pretrained(out / "llama")
    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<s>", "</s>"]
    tokens = Tokenizer(models.BPE({token: number for number, token in enumerate(alphabet)}, []))
    tokens.pre_tokenizer, tokens.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    whole = transformers.PreTrainedTokenizerFast(tokenizer_object=tokens, bos_token="<s>", eos_token="</s>")
    whole.chat_template = "{% for turn in messages %}{{ turn.content }}\n{% endfor %}"
    whole.save_pretrained(out / "llama")
    manifest = write_digits(out / "clips", 4, seed=0)
    return ["--video-model", out / "dinov2", "--language-model", out / "llama", "--manifest", manifest]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example(example, tmp_path):
    arguments = []
    if example.stem in ("train_on_your_clips", "caption_your_clips"):
        pytest.importorskip("av", reason='PyAV is not installed: pip install "fastvivit[video]"')
        pytest.importorskip("transformers", reason='transformers is not installed: pip install "fastvivit[hf]"')
    if example.stem == "caption_your_clips":
        arguments = [*folders(tmp_path), "--out", tmp_path / "run", "--frames=4", "--size=28", "--steps=24"]
    done = run(example, arguments, tmp_path)
    words = {
        "caption_your_clips": "frozen parts bit-identical: {'video': True, 'lm': True}",
        "embed_kept_tubelets": "largest difference to Conv3d and index: ",
        "encode_long_clip": "one vector a clip: (3, 192)",
        "train_on_your_clips": "nearest to ",
        "tune_an_encoder": "merged, largest difference: ",
    }
    assert words[example.stem] in done.stdout
    for line in done.stdout.splitlines():
        if "largest difference" in line:
            assert float(line.split(": ")[1].split(";")[0]) < 1e-4
    if example.stem == "caption_your_clips":
        report = json.loads((tmp_path / "run" / "report.json").read_text())
        assert len(report["losses"]) == 24 and report["losses"][-1] < 0.98 * report["losses"][0]
        assert report["left_out"] == report["clips"][-1] and len(report["clips"]) == 4
        for found in report["results"].values():
            assert [len(part) for part in found.values()] == [4, 4, 4]


def test_real_models_begin_to_see_real_clips(tmp_path):
    """DINOv2-S, SmolLM2-135M and clips of the kind the example is meant for, where their folders are present."""
    shared = Path(__file__).resolve().parents[2] / "shared"
    asked = {
        "--video-model": shared / "models" / "dinov2_small",
        "--language-model": shared / "models" / "smollm2",
        "--manifest": shared / "videos" / "captions.jsonl",
    }
    for path in asked.values():
        if not path.exists():
            pytest.skip(f"no {path}")
    example = next(path for path in EXAMPLES if path.stem == "caption_your_clips")
    named = [part for item in asked.items() for part in item]
    run(example, [*named, "--out", tmp_path / "run", "--frames=2", "--masks=1", "--steps=8"], tmp_path)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["losses"][-1] < 0.9 * report["losses"][0] and all(report["frozen_same"].values())


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
