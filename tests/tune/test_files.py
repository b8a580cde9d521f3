"""A tuning in a file of its own, and tuned models in folders."""

import json
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import fastvivit as fv
from tests.tune.encoders import PAIRS, WAYS, clips, encoder, train


def tuned(kind, way):
    """A trained tuning, and the encoder that it began with."""
    enc = encoder(kind)
    train(enc, WAYS[way](enc))
    return enc.eval(), encoder(kind).eval()


@pytest.mark.parametrize(("kind", "way"), PAIRS)
def test_a_file_goes_onto_the_plain_encoder_and_onto_the_tuned_one(kind, way, tmp_path):
    enc, plain = tuned(kind, way)
    file = fv.tune.save(enc, tmp_path / "new" / "tuning.safetensors")
    assert file == tmp_path / "new" / "tuning.safetensors" and [p.name for p in file.parent.iterdir()] == [file.name]
    names = {name for name, p in enc.named_parameters() if p.requires_grad}
    assert load_file(file).keys() == names
    with safe_open(file, "pt") as opened:
        assert json.loads(opened.metadata()["fastvivit.tuning"]) == enc.tuning
    assert file.stat().st_size < 4 * sum(p.numel() for p in enc.parameters() if p.requires_grad) + 16000
    again = encoder(kind).eval()
    WAYS[way](again)
    for other in (plain, again):
        returned = fv.tune.load(other, file)
        assert {name for name, p in other.named_parameters() if p.requires_grad} == names
        assert len(returned) == len(names) and other.tuning == enc.tuning
        assert torch.equal(other(clips_of(0)).tokens, enc(clips_of(0)).tokens)


def clips_of(seed):
    torch.manual_seed(seed)
    return clips()


def test_a_file_is_small(tmp_path):
    enc = encoder(width=96, ff=384, depth=12)
    fv.tune.add_lora(enc, 1)
    file = fv.tune.save(enc, tmp_path / "tuning.safetensors")
    whole = fv.save_pretrained(enc, tmp_path / "model") / "model.safetensors"
    assert file.stat().st_size < 0.1 * whole.stat().st_size


def test_saving_replaces_a_file_whole_or_leaves_it(tmp_path, monkeypatch):
    enc, _ = tuned("joint", "lora")
    file = fv.tune.save(enc, tmp_path / "tuning.safetensors")
    before = file.read_bytes()
    train(enc, [p for p in enc.parameters() if p.requires_grad])

    def broken(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("fastvivit.tune.files.save_file", broken)
        with pytest.raises(OSError, match="disk full"):
            fv.tune.save(enc, file)
    assert file.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    fv.tune.save(enc, file)
    assert file.read_bytes() != before and len(list(tmp_path.iterdir())) == 1


def test_saving_wants_a_tuning_that_is_all_that_trains(tmp_path):
    enc = encoder()
    with pytest.raises(ValueError, match="enc: wanted an encoder that fastvivit.tune has tuned, got one with tuning"):
        fv.tune.save(enc, tmp_path / "file")
    fv.tune.last_layers(enc, 1)
    enc.embed.bias.requires_grad_(True)
    with pytest.raises(ValueError, match=r"wanted nothing trainable beside .* got \['embed.bias'\]"):
        fv.tune.save(enc, tmp_path / "file")
    enc.requires_grad_(False)
    assert "norm.weight" in load_file(fv.tune.save(enc, tmp_path / "file"))


def test_files_that_do_not_fit_are_refused_and_change_nothing(tmp_path):
    enc, _ = tuned("joint", "lora")
    file, other, text = fv.tune.save(enc, tmp_path / "lora"), tmp_path / "other", tmp_path / "text"
    text.write_text("no tensors")
    save_file({"norm.weight": torch.ones(48)}, other)
    tensors, metadata = load_file(file), {"fastvivit.tuning": json.dumps(enc.tuning)}
    short = {name: tensor for name, tensor in tensors.items() if name != "norm.bias"}
    save_file(short | {"cls": torch.ones(1)}, tmp_path / "names", metadata=metadata)
    save_file(tensors | {"norm.bias": torch.ones(47)}, tmp_path / "shape", metadata=metadata)
    save_file(tensors, tmp_path / "method", metadata={"fastvivit.tuning": '{"method": "prompts"}'})
    for path, changes, message in (
        (file, {"width": 96}, "file: wanted the weights of its tuning for this encoder, got missing [], unused []"),
        (file, {"depth": 2}, "unused ['blocks.2.attn.proj.lora_a'"),
        (file, {"frames": 8}, "of another shape ['embed.pos']"),
        (tmp_path / "names", {}, "got missing ['norm.bias'], unused ['cls'], of another shape []"),
        (tmp_path / "shape", {}, "got missing [], unused [], of another shape ['norm.bias']"),
        (tmp_path / "method", {}, "file: its tuning does not fit this encoder: tuning: wanted a method of"),
        (tmp_path / "none", {}, "file: wanted one that fastvivit.tune.save wrote, no such file"),
        (text, {}, "file: wanted one that fastvivit.tune.save wrote, got"),
        (other, {}, "no 'fastvivit.tuning' in its metadata"),
    ):
        plain = encoder(**changes)
        state = {name: value.clone() for name, value in plain.state_dict().items()}
        with pytest.raises(ValueError, match=re.escape(message)):
            fv.tune.load(plain, path)
        after = plain.state_dict()
        assert plain.tuning is None and after.keys() == state.keys()
        assert all(torch.equal(after[name], state[name]) for name in state)
    deep = fv.tune.save(tuned("joint", "last_layers")[0], tmp_path / "deep")
    with pytest.raises(ValueError, match="its tuning does not fit this encoder: k: wanted a whole number in 1..1"):
        fv.tune.load(encoder(depth=1), deep)
    with pytest.raises(ValueError, match=re.escape("enc: wanted one that is not tuned, or tuned by {'method': 'last_")):
        fv.tune.load(enc, deep)


@pytest.mark.parametrize(("kind", "way"), PAIRS)
def test_folders_keep_the_tuning(kind, way, tmp_path):
    enc, _ = tuned(kind, way)
    again = fv.load_pretrained(fv.save_pretrained(enc, tmp_path / "model"))
    assert again.tuning == enc.tuning and torch.equal(again(clips_of(0)).tokens, enc(clips_of(0)).tokens)
    for (name, p), (other, q) in zip(enc.named_parameters(), again.named_parameters(), strict=True):
        assert name == other and p.requires_grad == q.requires_grad


def test_folders_of_plain_and_merged_encoders_know_no_tuning(tmp_path):
    enc, _ = tuned("joint", "separate")
    fv.tune.merge_lora(enc)
    again = fv.load_pretrained(fv.save_pretrained(enc, tmp_path / "model"))
    assert again.tuning is None and all(p.requires_grad for p in again.parameters())
    assert "tuning" not in json.loads((tmp_path / "model" / "config.json").read_text())
    assert torch.equal(again(clips_of(0)).tokens, enc(clips_of(0)).tokens)


def test_a_dual_encoder_keeps_the_tuning_of_its_video_encoder(tmp_path):
    pytest.importorskip("transformers", reason='transformers is not installed: pip install "fastvivit[hf]"')
    from fastvivit.train.build import scratch_tower
    from fastvivit.train.config import TextConfig

    tower = scratch_tower(TextConfig(width=16, depth=1, heads=2, max_length=8), ["a hand tilts"])
    enc, _ = tuned("factorised", "adapters")
    model = fv.VideoTextModel(enc, tower, dim=8).eval()
    again = fv.load_pretrained(fv.save_pretrained(model, tmp_path / "model"))
    assert again.video.tuning == enc.tuning
    assert torch.equal(again.encode_video(clips_of(0)), model.encode_video(clips_of(0)))
    assert again.text_proj.weight.requires_grad and not again.video.blocks[0].mlp.fc1.weight.requires_grad
