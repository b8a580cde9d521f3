"""The dual encoder, its text tower, and both as folders."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as nnf

import fastvivit as fv
import fastvivit.functional as F
from tests.processes import run_two_ranks

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = ["the", "digit", "one", "two", "moves", "up", "down", "first", "then"]


def text_tower():
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", *WORDS])}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]")
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
    )
    return fv.TextTower(transformers.BertModel(config, add_pooling_layer=False).eval(), tokenizer)


def dual():
    torch.manual_seed(0)
    cfg = fv.ViViTConfig(frames=4, size=32, width=48, depth=1, heads=3, ff=96)
    return fv.VideoTextModel(fv.ViViT(cfg), text_tower(), dim=16).eval()


VIDEO = torch.randint(256, (3, 3, 4, 32, 32), dtype=torch.uint8)
TEXTS = ["the digit one moves up", "two", "first down then up then down"]


def test_text_is_the_mean_over_real_tokens():
    tower = text_tower()
    together = tower(TEXTS)
    alone = torch.cat([tower([t]) for t in TEXTS])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    states = tower.model(
        **{k: v for k, v in tower.tokenizer(TEXTS[:1], return_tensors="pt").items() if k != "token_type_ids"}
    )
    torch.testing.assert_close(alone[0], states.last_hidden_state[0].mean(0), rtol=1e-4, atol=1e-5)
    for bad in ("a string", [], [1]):
        with pytest.raises(ValueError, match="texts: wanted a list of strings, at least one"):
            tower(bad)


def test_captions_are_cut_to_what_the_model_has_positions_for():
    tokenizer = text_tower().tokenizer
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
    )
    tower = fv.TextTower(transformers.BertModel(config, add_pooling_layer=False).eval(), tokenizer)
    assert tokenizer.model_max_length > 1e9 and text_tower().max_length == 512
    torch.testing.assert_close(tower(["the digit " * 30]), tower(["the digit " * 8]))
    assert fv.TextTower(tower.model, tokenizer, max_length=9).max_length == 9


def test_the_loss_is_that_of_its_unit_vectors():
    model = dual()
    video, text = model.encode_video(VIDEO), model.encode_text(TEXTS)
    torch.testing.assert_close(video.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(text.norm(dim=1), torch.ones(3))
    loss = model(VIDEO, TEXTS)
    torch.testing.assert_close(loss, F.nce_loss(video, text, 1 / 0.07))
    loss.backward()
    missing = {n for n, p in model.named_parameters() if p.grad is None}
    assert missing == {"video.image.weight", "video.image.bias", "video.image.pos"}


def test_masks_are_inputs():
    model = dual()
    keep = F.random_keep(3, 8, 0.5)
    torch.testing.assert_close(
        model(VIDEO, TEXTS, keep=keep),
        F.nce_loss(model.encode_video(VIDEO, keep=keep), model.encode_text(TEXTS), model.scale),
    )
    same = [model(VIDEO, TEXTS, mask_ratio=0.5, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*same)


def test_the_temperature_never_passes_100():
    model = dual()
    assert model.scale.item() == pytest.approx(1 / 0.07)
    model.logit_scale.data.fill_(math.log(1000.0))
    assert model.scale.item() == pytest.approx(100.0)


def test_an_encoder_that_does_not_pool_is_refused():
    with pytest.raises(ValueError, match="video: wanted an encoder that pools"):
        fv.VideoTextModel(fv.ViViT(fv.ViViTConfig.tiny(pool=None)), text_tower())


def test_folders_round_trip(tmp_path):
    model = dual()
    fv.save_pretrained(model, tmp_path / "run" / "model")
    again = fv.load_pretrained(tmp_path / "run" / "model")
    assert torch.equal(again.encode_video(VIDEO), model.encode_video(VIDEO))
    assert torch.equal(again.encode_text(TEXTS), model.encode_text(TEXTS))
    fv.save_pretrained(model.video, tmp_path / "run" / "model")  # over the other one
    assert isinstance(fv.load_pretrained(tmp_path / "run" / "model"), fv.ViViT)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["model"]
    assert (tmp_path / "run" / "model").stat().st_mode == (tmp_path / "run").stat().st_mode


def test_text_models_with_tied_weights_and_narrow_ones_round_trip(tmp_path):
    model = dual()
    config = transformers.T5Config(
        vocab_size=len(WORDS) + 2, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_decoder_layers=1, num_heads=2
    )
    model.text = fv.TextTower(transformers.T5EncoderModel(config).eval(), model.text.tokenizer)
    fv.save_pretrained(model, tmp_path / "tied")
    again = fv.load_pretrained(tmp_path / "tied")
    assert type(again.text.model) is transformers.T5EncoderModel
    assert torch.equal(again.encode_text(TEXTS), model.encode_text(TEXTS))
    narrow = model.video.bfloat16()
    fv.save_pretrained(narrow, tmp_path / "narrow")
    loaded = fv.load_pretrained(tmp_path / "narrow")
    assert loaded.norm.weight.dtype == torch.bfloat16 and torch.equal(loaded(VIDEO).tokens, narrow(VIDEO).tokens)


def test_a_folder_of_transformers_is_refused_with_who_reads_it(tmp_path):
    config = transformers.VivitConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32)
    transformers.VivitModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="folder: wanted one that save_pretrained wrote.*from_hf_vivit"):
        fv.load_pretrained(tmp_path)


@pytest.mark.parametrize("failing", [1, 2])
def test_a_failed_rename_leaves_the_folder_as_it_was(tmp_path, monkeypatch, failing):
    model, folder, renames = dual().video, tmp_path / "model", []
    fv.save_pretrained(model, folder)
    before, rename = (folder / "model.safetensors").read_bytes(), Path.rename

    def wrapped(path, to):
        renames.append(to)
        if len(renames) == failing:
            raise OSError("the disk is gone")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", wrapped)
    with pytest.raises(OSError, match="disk is gone"):
        fv.save_pretrained(dual().video, folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_folders_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"folder: wanted config\.json and model\.safetensors"):
        fv.load_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model: wanted a ViViT, VideoTextModel or VideoCaptioner, got Linear"):
        fv.save_pretrained(torch.nn.Linear(2, 2), tmp_path / "linear")
    folder = fv.save_pretrained(dual().video, tmp_path / "model")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(
        config.replace('"width": 48', '"width": 96').replace('"heads": 3', '"heads": 6')
    )
    with pytest.raises(ValueError, match="of another shape"):
        fv.load_pretrained(folder)
    (folder / "config.json").write_text(config.replace('"width"', '"widht"'))
    with pytest.raises(ValueError, match="widht: no such field of ViViTConfig .did you mean 'width'"):
        fv.load_pretrained(folder)


TWO_RANKS = """
import os, sys, torch, torch.distributed as dist
import fastvivit.functional as F
rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(0)
video, text = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
whole = [t.clone().requires_grad_() for t in (video, text)]
F.nce_loss(*whole, 5.0).backward()
mine = slice(3 * rank, 3 * rank + 3)
for chunk in (None, 2):
    part = [t[mine].clone().requires_grad_() for t in (video, text)]
    loss = F.nce_loss(*part, 5.0, gather=True, chunk=chunk)
    loss.backward()
    for p, w in zip(part, whole):
        torch.testing.assert_close(p.grad / 2, w.grad[mine])  # DDP averages over the two ranks
    total = loss.detach().clone(); dist.all_reduce(total)
    torch.testing.assert_close(total / 2, F.nce_loss(video, text, 5.0))
"""


def test_negatives_of_other_ranks_count_with_their_gradient(tmp_path):
    run_two_ranks(TWO_RANKS, tmp_path)


def test_unit_vectors_of_images_too():
    out = dual().encode_video(VIDEO[:, :, 0])
    torch.testing.assert_close(out.norm(dim=1), torch.ones(3))
    assert not torch.allclose(out, nnf.normalize(torch.ones(3, 16)))


def test_siglip_is_there_where_it_is_asked_for(tmp_path):
    plain = dual()
    model = fv.VideoTextModel(plain.video, plain.text, 16, loss="siglip").eval()
    assert set(model.state_dict()) - set(plain.state_dict()) == {"logit_bias"} and plain.logit_bias is None
    assert model.scale.item() == pytest.approx(10.0) and model.logit_bias.item() == -10.0
    assert {"logit_scale", "logit_bias"} <= model.no_weight_decay()
    video, text = model.encode_video(VIDEO), model.encode_text(TEXTS)
    loss = model(VIDEO, TEXTS)
    torch.testing.assert_close(loss, F.sigmoid_loss(video, text, 10.0, -10.0))
    torch.testing.assert_close(model.losses(VIDEO, TEXTS, loss="infonce")["loss"], F.nce_loss(video, text, 10.0))
    loss.backward()
    assert model.logit_bias.grad.abs() > 0
    model.logit_bias.data.fill_(-3.0)
    again = fv.load_pretrained(fv.save_pretrained(model, tmp_path / "model"))
    assert again.loss == "siglip" and torch.equal(again(VIDEO, TEXTS), model(VIDEO, TEXTS))
    assert "loss" not in json.loads((fv.save_pretrained(plain, tmp_path / "plain") / "config.json").read_text())
    with pytest.raises(ValueError, match="loss: wanted one of 'infonce', 'siglip', got 'triplet'"):
        fv.VideoTextModel(plain.video, plain.text, loss="triplet")
    with pytest.raises(ValueError, match="loss: wanted a model made with loss='siglip', which has a bias"):
        plain.losses(VIDEO, TEXTS, loss="siglip")


def test_texts_without_a_token_are_encoded_alone_too():
    tower = text_tower()
    assert torch.equal(tower([""]), torch.zeros(1, 32))
    torch.testing.assert_close(tower(["", "up"])[1:], tower(["up"]))
