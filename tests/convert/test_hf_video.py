"""transformers' video models in and out: against the models themselves."""

import json

import pytest
import torch

import fastvivit as fv
from fastvivit.convert import from_hf_videomae, from_hf_vivit, from_image_vit, to_hf_state_dict
from tests.convert.foreign import hf_videomae, hf_vit, hf_vivit, tensors_equal, transformers

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def clips(frames=4):
    """A clip in our order, and the same in theirs."""
    video = torch.randn(2, 3, frames, 32, 32)
    return video, video.transpose(1, 2)


def disk_names(state):
    """Names of files and of version 4, spelled out here."""
    renamed = {
        "attention.q_proj": "attention.attention.query", "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value", "attention.o_proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
    }  # fmt: skip
    out = {}
    for name, value in state.items():
        if "layers." in name:
            for new, old in renamed.items():
                name = name.replace(new, old)
            name = name.replace("layers.", "encoder.layer.")
        out[name] = value
    return out


@pytest.mark.parametrize("changes", [{}, {"qkv_bias": False, "hidden_act": "gelu", "layer_norm_eps": 1e-3}])
@torch.no_grad()
def test_vivit_is_the_model(changes):
    model = hf_vivit(**changes)
    enc = from_hf_vivit(model)
    video, theirs = clips()
    want = model(theirs)
    out = enc(video)
    torch.testing.assert_close(out.last_hidden_state, want.last_hidden_state, **CLOSE)
    torch.testing.assert_close(out.pooled, want.last_hidden_state[:, 0], **CLOSE)
    mean = from_hf_vivit(model, pool="mean")(video).pooled
    torch.testing.assert_close(mean, want.last_hidden_state[:, 1:].mean(1), **CLOSE)
    assert enc.config.act == ("gelu" if changes else "gelu_tanh") and enc.image is None
    assert not enc.imported.missing or changes


@torch.no_grad()
def test_sizes_that_tubelets_do_not_divide_are_floored_as_theirs():
    for model, read in ((hf_vivit(image_size=36), from_hf_vivit), (hf_videomae(image_size=36), from_hf_videomae)):
        enc = read(model)
        video = torch.randn(1, 3, 4, 36, 36)
        assert enc.config.size == (32, 32)
        got = enc(video[..., :32, :32]).last_hidden_state
        torch.testing.assert_close(got, model(video.transpose(1, 2)).last_hidden_state, **CLOSE)


@torch.no_grad()
def test_vivit_s_classifier_reads_the_pooled_cls():
    model = hf_vivit(classify=True)
    enc = from_hf_vivit(model)
    video, theirs = clips()
    torch.testing.assert_close(model.classifier(enc(video).pooled), model(theirs).logits, **CLOSE)
    assert enc.imported.left_out == ("classifier.weight", "classifier.bias") and enc.imported.prefix == "vivit."


@pytest.mark.parametrize("classify", [False, True])
def test_vivit_comes_back_bit_for_bit_in_either_layout(classify, tmp_path):
    model = hf_vivit(classify)
    state = model.state_dict()
    model.save_pretrained(tmp_path)
    enc = from_hf_vivit(model)
    version_5 = any("q_proj" in name for name in state)
    for source in (tmp_path, state, disk_names(state)):
        again = from_hf_vivit(source, config=None if source is tmp_path else model.config)
        assert tensors_equal(again.state_dict(), enc.state_dict())
        for encoder in (enc, again):
            memory = encoder.to_hf_state_dict()
            assert tensors_equal(encoder.to_hf_state_dict("disk"), disk_names(memory))
            if version_5:
                assert tensors_equal(memory, state)
    twin = hf_vivit(classify)
    twin.load_state_dict(enc.to_hf_state_dict("memory" if version_5 else "disk"), strict=True)
    assert tensors_equal(twin.state_dict(), state)


@torch.no_grad()
def test_vivit_files_of_ours_load_into_transformers(tmp_path):
    """A folder written with the names of files is read by from_pretrained, whichever version that is."""
    from safetensors.torch import save_file

    model = hf_vivit(classify=True)
    enc = from_hf_vivit(model)
    model.config.save_pretrained(tmp_path)
    save_file(enc.to_hf_state_dict("disk"), tmp_path / "model.safetensors", metadata={"format": "pt"})
    back = type(model).from_pretrained(tmp_path, local_files_only=True)
    assert tensors_equal(back.state_dict(), model.state_dict())


@pytest.mark.parametrize("act, theirs", [("gelu_tanh", "gelu_fast"), ("quick_gelu", "quick_gelu"), ("gelu", "gelu")])
@torch.no_grad()
def test_an_encoder_of_ours_runs_in_transformers_extended_and_with_factorised_positions(act, theirs):
    cfg = fv.ViViTConfig(frames=2, size=32, tubelet=(2, 8, 8), width=32, depth=2, heads=4, ff=48, pos_std=0.2)
    enc = fv.ViViT(cfg.replace(pool="cls", positions="factorised", act=act)).eval()
    enc.extend_frames(4)
    torch.nn.init.normal_(enc.embed.pos_time)
    config = transformers.VivitConfig(
        image_size=32, num_frames=4, tubelet_size=[2, 8, 8], hidden_size=32, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=48, hidden_act=theirs,
    )  # fmt: skip
    model = transformers.VivitModel(config, add_pooling_layer=False).eval()
    model.load_state_dict(enc.to_hf_state_dict("memory" if hasattr(model, "layers") else "disk"), strict=True)
    video, clip = clips()
    torch.testing.assert_close(enc(video).last_hidden_state, model(clip).last_hidden_state, **CLOSE)


@torch.no_grad()
def test_an_exported_clip_may_be_longer_than_the_imported_one():
    model = hf_vivit(classify=True)
    enc = from_hf_vivit(model)
    enc.extend_frames(8)
    longer = hf_vivit(classify=True, num_frames=8)
    longer.load_state_dict(enc.to_hf_state_dict("memory" if hasattr(longer.vivit, "layers") else "disk"), strict=True)
    video, theirs = clips(8)
    torch.testing.assert_close(enc(video).last_hidden_state, longer.vivit(theirs).last_hidden_state, **CLOSE)
    assert torch.equal(longer.classifier.weight, model.classifier.weight)


def test_export_is_a_copy():
    enc = from_hf_vivit(hf_vivit(classify=True))
    for tensor in to_hf_state_dict(enc).values():
        assert not tensor.requires_grad
        tensor.zero_()
    assert enc.embed.weight.any() and enc.to_hf_state_dict()["classifier.weight"].any()


def test_what_transformers_vivit_can_not_express_is_an_error():
    cfg = fv.ViViTConfig(frames=4, size=32, tubelet=(2, 8, 8), width=32, depth=1, heads=4, ff=48, pool="cls")
    for message, changes in (
        ("wants a CLS, got none", {"pool": "mean"}),
        ("wants attention='joint', got 'frame'", {"attention": "frame"}),
        ("wants attention='joint', got 'factorised'", {"attention": "factorised"}),
        ("wants no norm before the blocks", {"pre_norm": True}),
        ("wants a final norm", {"final_norm": False}),
    ):
        with pytest.raises(ValueError, match=message):
            fv.ViViT(cfg.replace(**changes)).to_hf_state_dict()
    enc = fv.ViViT(cfg)
    with pytest.raises(ValueError, match="layout: wanted one of 'memory', 'disk', got 'v4'"):
        enc.to_hf_state_dict("v4")
    enc.blocks[0].mlp.adapter = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="without adapters.*blocks.0.mlp.adapter.bias"):
        enc.to_hf_state_dict()


@pytest.mark.parametrize("mean_pooling", [True, False])
@torch.no_grad()
def test_videomae_is_the_model(mean_pooling):
    model = hf_videomae(use_mean_pooling=mean_pooling)
    enc = from_hf_videomae(model)
    video, theirs = clips()
    out, want = enc(video), model(theirs).last_hidden_state
    torch.testing.assert_close(out.last_hidden_state, want, **CLOSE)
    torch.testing.assert_close(out.pooled, want.mean(1), **CLOSE)
    assert enc.config.final_norm is not mean_pooling and not enc.config.class_token
    assert not enc.embed.pos.requires_grad and enc.embed.weight.requires_grad
    assert all(not block.attn.qkv.bias.chunk(3)[1].any() for block in enc.blocks)
    keep = torch.tensor([[0, 3, 17, 30], [1, 2, 8, 31]])
    mask = torch.ones(2, 32, dtype=torch.bool).scatter(1, keep, False)
    want = model(theirs, bool_masked_pos=mask).last_hidden_state
    torch.testing.assert_close(enc(video, keep=keep).last_hidden_state, want, **CLOSE)


@torch.no_grad()
def test_videomae_with_heads_in_every_layout(tmp_path):
    video, theirs = clips()
    model = hf_videomae("VideoMAEForVideoClassification")
    enc = from_hf_videomae(model)
    logits = model.classifier(model.fc_norm(enc(video).pooled))
    torch.testing.assert_close(logits, model(theirs).logits, **CLOSE)
    assert set(enc.imported.left_out) == {"fc_norm.weight", "fc_norm.bias", "classifier.weight", "classifier.bias"}
    training = hf_videomae("VideoMAEForPreTraining")
    enc = from_hf_videomae(training)
    assert "mask_token" in enc.imported.left_out and enc.imported.prefix == "videomae."
    training.save_pretrained(tmp_path)
    state = training.state_dict()
    old = {name.replace("query.bias", "q_bias").replace("value.bias", "v_bias"): v for name, v in state.items()}
    new = {name.replace("q_bias", "query.bias").replace("v_bias", "value.bias"): v for name, v in state.items()}
    for source in (tmp_path, old, new):
        again = from_hf_videomae(source, config=None if source is tmp_path else training.config)
        assert tensors_equal(again.state_dict(), enc.state_dict())


def test_an_image_processor_in_the_folder_says_mean_and_std(tmp_path):
    model = hf_vivit()
    model.save_pretrained(tmp_path)
    assert from_hf_vivit(tmp_path).config.mean == (0.5,) * 3
    # What ViViT's published processors do with a byte: b / 127.5 - 1, then (x - 0.5) / 0.5.
    options = {"do_rescale": True, "rescale_factor": 1 / 127.5, "offset": True, "do_normalize": True}
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(options | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    enc = from_hf_vivit(tmp_path)
    video = torch.randint(256, (1, 3, 4, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        want = model(((video / 127.5 - 1) - 0.5).div(0.5).transpose(1, 2)).last_hidden_state
        torch.testing.assert_close(enc(video).last_hidden_state, want, rtol=1e-4, atol=2e-5)
    assert from_hf_vivit(tmp_path, mean=0.1, std=(0.2, 0.3, 0.4)).config.std == (0.2, 0.3, 0.4)
    assert from_hf_vivit(tmp_path, mean=0.1).config.mean == (0.1,) * 3
    file.write_text(json.dumps({"do_normalize": False, "rescale_factor": 1 / 255}))
    assert from_hf_vivit(tmp_path).config.std == (1.0,) * 3
    # Version 5 writes another file beside.
    beside = file.with_name("video_preprocessor_config.json")
    beside.write_text(json.dumps({"image_mean": [0.1] * 3, "image_std": [0.2] * 3}))
    assert from_hf_vivit(tmp_path).config.mean == (0.1,) * 3


def test_a_model_of_another_kind_is_an_error():
    vivit, videomae, vit = hf_vivit(), hf_videomae(), hf_vit()
    for read, source, message in (
        (from_hf_vivit, videomae, "wanted the tensors of a transformers ViViT"),
        (from_hf_vivit, vit, "from_image_vit reads image models"),
        (from_hf_videomae, vivit, "wanted the tensors of a transformers VideoMAE"),
        (from_hf_videomae, vit, "wanted the tensors of a transformers VideoMAE"),
        (from_hf_vivit, {}, "got none"),
    ):
        with pytest.raises(ValueError, match=message):
            read(source)
    for read, model in ((from_hf_vivit, vivit), (from_hf_videomae, videomae)):
        state = model.state_dict()
        with pytest.raises(ValueError, match="config: wanted the model's transformers config"):
            read(state)
        with pytest.raises(ValueError, match="got 1 more: odd"):
            read(state | {"odd": torch.zeros(1)}, config=model.config)
        assert "odd" in read(state | {"odd": torch.zeros(1)}, config=model.config, waive=("odd",)).imported.left_out
    with pytest.raises(ValueError, match=r"wanted embed.pos of shape \(48, 32\).*got \(32, 32\)"):
        from_hf_vivit(vivit.state_dict(), config=vivit.config.to_dict() | {"num_frames": 6})


def test_a_vivit_s_image_twin_reads_the_same_names():
    """ViT and ViViT share their names; only the kernel tells them apart."""
    with pytest.raises(ValueError, match="from_hf_vivit and from_hf_videomae read video models"):
        from_image_vit(hf_vivit(), fv.ViViTConfig(frames=4, size=32, tubelet=(2, 8, 8)))
