"""transformers' image models as video encoders: against the models themselves."""

import copy

import pytest
import torch
from torch.nn import functional as nnf

import fastvivit as fv
import fastvivit.functional as F
from fastvivit.convert import clip, dinov2, from_image_vit, hf_videomae
from fastvivit.convert import hf_vit as hf_vit_layout
from fastvivit.convert import hf_vivit as hf_vivit_layout
from tests.convert.foreign import IMAGE_MODELS, hf_clip, hf_dinov2, hf_tokens, hf_vit, tensors_equal, transformers

CFG = fv.ViViTConfig(frames=4, size=32, tubelet=(2, 8, 8), mean=0.45, std=0.25)
CLOSE = {"rtol": 1e-4, "atol": 2e-5}


@pytest.fixture(params=IMAGE_MODELS)
def model(request):
    return IMAGE_MODELS[request.param]()


def slots_of(frames):
    """(B, T', C, H, W) → a clip whose slots of two frames are still: (B, C, 2T', H, W)."""
    return frames.repeat_interleave(2, 1).transpose(1, 2)


@torch.no_grad()
def test_frame_attention_on_slots_that_are_still_is_the_image_model_frame_by_frame(model):
    enc = from_image_vit(model, CFG.replace(attention="frame", pool="cls"))
    frames = torch.randn(2, 2, 3, 32, 32)
    out = enc(slots_of(frames))
    want = hf_tokens(model, frames.flatten(0, 1))
    torch.testing.assert_close(out.last_hidden_state, want.view(2, 34, 32), **CLOSE)
    torch.testing.assert_close(out.pooled, want[:, 0].view(2, 2, 32).mean(1), **CLOSE)
    assert enc.config.class_token and not enc.training


@torch.no_grad()
def test_one_slot_of_joint_attention_and_the_image_path_are_the_image_model(model):
    enc = from_image_vit(model, CFG.replace(frames=1, tubelet=(1, 8, 8)))
    images = torch.randn(2, 3, 32, 32)
    want = hf_tokens(model, images)
    torch.testing.assert_close(enc(images.unsqueeze(2)).last_hidden_state, want, **CLOSE)
    out = enc(images)
    torch.testing.assert_close(out.last_hidden_state, want, **CLOSE)
    torch.testing.assert_close(out.pooled, want[:, 1:].mean(1), **CLOSE)


@torch.no_grad()
def test_bytes_are_normalised_as_asked(model):
    enc = from_image_vit(model, CFG)
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(enc(images).last_hidden_state, hf_tokens(model, (images / 255 - 0.45) / 0.25), **CLOSE)


@torch.no_grad()
def test_other_image_sizes_are_the_model_s_own_interpolation(model):
    enc = from_image_vit(model, CFG.replace(size=(48, 40), attention="frame"))
    frames = torch.randn(1, 2, 3, 48, 40)
    want = hf_tokens(model, frames[0])
    torch.testing.assert_close(enc(slots_of(frames)).last_hidden_state, want.view(1, 62, 32), **CLOSE)
    torch.testing.assert_close(enc(frames[0]).last_hidden_state, want, **CLOSE)
    assert enc.imported.reshaped["image.pos"] == ((16, 32), (30, 32))


@torch.no_grad()
def test_central_inflation_looks_at_one_frame(model):
    enc = from_image_vit(model, CFG.replace(attention="frame"), inflate="central")
    video = torch.randn(1, 3, 4, 32, 32)
    want = hf_tokens(model, video[0, :, 1::2].transpose(0, 1))
    torch.testing.assert_close(enc(video).last_hidden_state, want.view(1, 34, 32), **CLOSE)


def test_embedding_alone_is_the_image_s_and_weights_are_copied_exactly():
    model = hf_vit()
    enc = from_image_vit(model, CFG.replace(tubelet=(4, 8, 8), pool=None))
    projection = model.embeddings.patch_embeddings.projection
    assert torch.equal(enc.image.weight, projection.weight) and torch.equal(enc.image.bias, projection.bias)
    assert torch.equal(enc.embed.weight, (projection.weight / 4).unsqueeze(2).expand(-1, -1, 4, -1, -1))
    assert torch.equal(enc.image.pos, model.embeddings.position_embeddings[0, 1:])
    assert torch.equal(enc.cls, model.embeddings.cls_token[0])
    assert torch.equal(enc.cls_pos, model.embeddings.position_embeddings[0, :1])
    q, k, v = enc.blocks[1].attn.qkv.weight.chunk(3)
    inner = transformers.ViTModel(model.config).state_dict()
    theirs = [n for n in inner if ".1." in n and n.endswith(("q_proj.weight", "query.weight"))]
    state = model.state_dict()
    assert torch.equal(q, state[theirs[0]])
    assert torch.equal(v, state[theirs[0].replace("q_proj", "v_proj").replace("query", "value")])


def test_layer_scale_is_folded_into_the_last_matrix():
    model = hf_dinov2()
    enc = from_image_vit(model, CFG)
    layer, block = model.encoder.layer[1], enc.blocks[1]
    scale = layer.layer_scale2.lambda1
    assert torch.equal(block.mlp.fc2.weight, scale.unsqueeze(1) * layer.mlp.fc2.weight)
    assert torch.equal(block.mlp.fc2.bias, scale * layer.mlp.fc2.bias)
    assert "encoder.layer.1.layer_scale1.lambda1" in enc.imported.used


def test_what_comes_from_the_source_and_what_from_the_configuration():
    enc = from_image_vit(hf_clip(), CFG.replace(drop_path=0.1, pool="attention", pool_heads=4, images=False))
    got = enc.config
    assert (got.width, got.depth, got.heads, got.ff, got.eps, got.act) == (32, 2, 4, 48, 1e-5, "quick_gelu")
    assert got.pre_norm and got.final_norm and got.cls and got.pool == "attention" and got.drop_path == 0.1
    assert got.frames == 4 and got.mean == (0.45,) * 3 and enc.image is None
    assert enc.embed.bias.abs().max() == 0  # CLIP's patches have none
    assert "embed.bias" in enc.imported.missing and "pool.query" in enc.imported.missing
    vit = from_image_vit(hf_vit(qkv_bias=False, hidden_act="gelu_new"), CFG).config
    assert (vit.eps, vit.act, vit.qkv_bias, vit.pre_norm) == (1e-12, "gelu_tanh", False, False)


@torch.no_grad()
def test_a_cls_is_left_out_on_request():
    model = hf_vit()
    enc = from_image_vit(model, CFG.replace(cls=False))
    assert enc.cls is None and "embeddings.cls_token" in enc.imported.left_out
    assert enc(torch.randn(1, 3, 4, 32, 32)).tokens.shape == (32, 32)


@torch.no_grad()
def test_factorised_attention_starts_as_frame_attention_with_a_copied_branch():
    model = hf_vit()
    base = CFG.replace(positions="factorised")
    enc = from_image_vit(model, base.replace(attention="factorised", gate="vector"))
    frame = from_image_vit(model, CFG.replace(attention="frame"))
    video = torch.randn(1, 3, 4, 32, 32)
    torch.testing.assert_close(enc(video).tokens, frame(video).tokens, **CLOSE)
    for block in enc.blocks:
        assert block.extra.gate.shape == (32,) and not block.extra.gate.any()
        assert tensors_equal(block.extra.attn.state_dict(), block.attn.state_dict())
        assert tensors_equal(block.extra.norm.state_dict(), block.norm1.state_dict())
    assert torch.equal(enc.embed.pos, enc.image.pos) and not enc.embed.pos_time.any()
    assert not enc.imported.missing or set(enc.imported.missing) == {"embed.pos_time"}


def test_repeated_positions_and_the_offset_that_breaks_the_tie():
    model = hf_vit()
    for positions in ("repeat", "interpolate", "tile"):
        pos = from_image_vit(model, CFG.replace(frames=8), positions=positions).embed.pos.view(4, 16, 32)
        assert torch.allclose(pos, pos[:1].expand(4, -1, -1), atol=1e-6)
    enc = from_image_vit(model, CFG.replace(frames=128), time_std=0.2)
    offset = (enc.embed.pos - enc.image.pos.repeat(64, 1)).view(64, 16, 32)
    torch.testing.assert_close(offset, offset[:, :1].expand(-1, 16, -1), rtol=0, atol=1e-6)
    assert abs(offset[:, 0].std() - 0.2) < 0.02
    split = from_image_vit(model, CFG.replace(frames=128, positions="factorised"), time_std=0.2)
    assert torch.equal(split.embed.pos, enc.image.pos) and abs(split.embed.pos_time.std() - 0.2) < 0.02


def test_other_patch_sizes_resize_the_kernel_first():
    model = hf_vit()
    enc = from_image_vit(model, CFG.replace(size=64, tubelet=(2, 16, 16)))
    kernel = model.embeddings.patch_embeddings.projection.weight
    wide = nnf.interpolate(kernel, size=(16, 16), mode="bilinear", antialias=True) / 4
    torch.testing.assert_close(enc.image.weight, wide)
    torch.testing.assert_close(enc.embed.weight, (wide / 2).unsqueeze(2).expand(-1, -1, 2, -1, -1))
    assert enc.imported.reshaped["embed.weight"] == ((32, 3, 8, 8), (32, 3, 2, 16, 16))
    # The same number of places: nothing else changes.
    assert torch.equal(enc.image.pos, model.embeddings.position_embeddings[0, 1:])


@torch.no_grad()
def test_every_tube_has_a_kernel_and_positions_of_its_own():
    model = hf_vit()
    tubes = (
        fv.Tube(kernel=(4, 8, 8), stride=(4, 8, 8)),
        fv.Tube(kernel=(1, 4, 4), stride=(2, 16, 16), offset=(0, 4, 4)),
    )
    cfg = CFG.replace(attention="tubes", tubes=tubes, cross_view=True)
    enc = from_image_vit(model, cfg)
    kernel, pos = model.embeddings.patch_embeddings.projection.weight, model.embeddings.position_embeddings[0, 1:]
    first, second = enc.embed.tubes
    assert torch.equal(first.weight, F.inflate(kernel, 4)) and torch.equal(first.pos, pos)
    assert torch.equal(second.weight, F.inflate(kernel, 1, size=(4, 4)))
    assert torch.equal(second.pos, F.resize_positions(pos, (1, 4, 4), (1, 2, 2)).repeat(2, 1))
    # A still clip through the first tube is the image; attention stays within a tube while the gate is shut.
    image = torch.randn(1, 3, 32, 32)
    out = enc(image.unsqueeze(2).expand(-1, -1, 4, -1, -1))
    torch.testing.assert_close(out.tokens[:17], hf_tokens(model, image)[0], **CLOSE)
    for block in enc.blocks:
        assert tensors_equal(block.extra.attn.state_dict(), block.attn.state_dict()) and not block.extra.gate.any()
    assert {"embed.tubes.0.weight", "embed.tubes.1.pos"} <= enc.imported.reshaped.keys()
    moved = from_image_vit(model, cfg, time_std=0.2).embed.tubes[1].pos.view(2, 4, 32) - second.pos.view(2, 4, 32)
    torch.testing.assert_close(moved, moved[:, :1].expand(-1, 4, -1), rtol=0, atol=1e-6)
    assert (moved[0] - moved[1]).abs().max() > 0.05


def test_models_state_dicts_and_folders_in_either_layout_are_the_same(model, tmp_path):
    want = from_image_vit(model, CFG)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "config.json").write_bytes((tmp_path / "whole" / "config.json").read_bytes())
    torch.save(model.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    for folder in ("whole", "shards", "bin"):
        assert tensors_equal(from_image_vit(tmp_path / folder, CFG).state_dict(), want.state_dict())
    for config in (model.config, model.config.to_dict()):
        enc = from_image_vit(model.state_dict(), CFG, config=config)
        assert enc.config == want.config and tensors_equal(enc.state_dict(), want.state_dict())


def test_names_of_version_4_in_memory():
    """Files of transformers keep them, and so did models in memory."""
    for model, before, after in (
        (hf_vit(), "encoder.layer.{}.attention.attention.query", "layers.{}.attention.q_proj"),
        (hf_dinov2(), "encoder.layer.{}.attention.attention.query", "encoder.layer.{}.attention.q_proj"),
    ):
        renamed = {
            "q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value",
            "o_proj": "output.dense",
        }  # fmt: skip
        state = {}
        for name, value in model.state_dict().items():
            for new, old in renamed.items():
                name = name.replace(f"attention.{new}", f"attention.{old}")
            if isinstance(model, transformers.ViTModel):
                name = name.replace("mlp.fc1", "intermediate.dense").replace("mlp.fc2", "output.dense")
                name = f"encoder.layer.{name.removeprefix('layers.')}" if name.startswith("layers.") else name
            state[name] = value
        assert before.format(1) + ".weight" in state and after.format(1) + ".weight" not in state
        enc = from_image_vit(state, CFG, config=model.config)
        assert tensors_equal(enc.state_dict(), from_image_vit(model, CFG).state_dict())
    clip = hf_clip()
    prefixed = {f"vision_model.{name.removeprefix('vision_model.')}": v for name, v in clip.state_dict().items()}
    prefixed["vision_model.embeddings.position_ids"] = torch.arange(17).unsqueeze(0)
    enc = from_image_vit(prefixed, CFG, config=clip.config)
    assert tensors_equal(enc.state_dict(), from_image_vit(clip, CFG).state_dict())


def test_heads_and_other_towers_are_left_out_and_listed(tmp_path):
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    vision = small | {"image_size": 32, "patch_size": 8}
    ids = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    clip = transformers.CLIPModel(transformers.CLIPConfig(vision_config=vision, text_config=small | ids))
    enc = from_image_vit(clip, CFG)
    assert {"logit_scale", "visual_projection.weight"} <= set(enc.imported.left_out)
    clip.save_pretrained(tmp_path)
    assert tensors_equal(from_image_vit(tmp_path, CFG).state_dict(), enc.state_dict())
    vit = transformers.ViTForImageClassification(transformers.ViTConfig(**vision))
    report = from_image_vit(vit, CFG).imported
    assert report.left_out == ("classifier.weight", "classifier.bias") and report.prefix == "vit."
    assert report.source == "transformers ViT" and not report.missing and len(report.used) == 22
    said = str(report)
    assert "22 tensors used" in said and "classifier.weight" in said and "embed.weight (32, 3, 8, 8) -> (" in said


def test_a_report_stays_out_of_copies_and_files(tmp_path):
    enc = from_image_vit(hf_vit(), CFG)
    twin = copy.deepcopy(enc)
    assert twin.imported.used == enc.imported.used and tensors_equal(twin.state_dict(), enc.state_dict())
    back = fv.load_pretrained(fv.save_pretrained(enc, tmp_path / "enc"))
    assert back.imported is None and back.config == enc.config and tensors_equal(back.state_dict(), enc.state_dict())


def test_a_folder_whose_pixels_are_normalised_otherwise_gets_a_note(tmp_path):
    hf_vit().save_pretrained(tmp_path)
    assert from_image_vit(tmp_path, CFG).imported.notes == ()
    file = tmp_path / "preprocessor_config.json"
    file.write_text('{"rescale_factor": 0.00392156862745098, "image_mean": [0.45, 0.45, 0.45], "image_std": 0.25}')
    assert from_image_vit(tmp_path, CFG).imported.notes == ()
    said = str(from_image_vit(tmp_path, CFG.replace(mean=0.5)).imported)
    assert "note: the source's bytes become pixels by mean [0.45" in said and "(0.5, 0.5, 0.5)" in said


def test_defaults_are_those_of_transformers_own_configurations():
    """Its files leave out what is at its default."""
    for module, kind in (
        (hf_vit_layout, transformers.ViTConfig),
        (dinov2, transformers.Dinov2Config),
        (clip, transformers.CLIPVisionConfig),
        (hf_vivit_layout, transformers.VivitConfig),
        (hf_videomae, transformers.VideoMAEConfig),
    ):
        theirs = kind().to_dict()
        assert {name: theirs[name] for name in module._DEFAULTS} == module._DEFAULTS


def test_half_precision_files_become_float32():
    model = hf_dinov2()
    enc = from_image_vit(model.half().state_dict(), CFG, config=model.config)
    assert {p.dtype for p in enc.parameters()} == {torch.float32}
    assert torch.equal(enc.image.weight, model.embeddings.patch_embeddings.projection.weight.float())


def with_name(state, name):
    return state | {name: torch.zeros(1)}


def test_what_can_not_be_read_is_an_error(tmp_path):
    model = hf_vit()
    state, config = model.state_dict(), model.config

    def refuses(message, source=model, cfg=CFG, **options):
        with pytest.raises(ValueError, match=message):
            from_image_vit(source, cfg, **options)

    refuses("cfg: wanted a ViViTConfig", cfg={})
    refuses("inflate: wanted one of 'average'", inflate="sum")
    refuses("positions: wanted one of 'repeat'", positions="zero")
    refuses("time_std: wanted at least 0", time_std=-1.0)
    refuses("time_std: wanted 0 with attention='frame'", cfg=CFG.replace(attention="frame"), time_std=0.1)
    refuses("waive: wanted a tuple", waive="head.*")
    refuses("cfg.channels: wanted 3", cfg=CFG.replace(channels=1, mean=0.5, std=0.5))
    refuses("config: wanted the model's transformers config", state)
    refuses("config: wanted a transformers config with num_attention_heads", state, config={"heads": 4})
    refuses("config: wanted a transformers config or a dict, got int", state, config=4)
    refuses("config: wanted an activation", state, config=config.to_dict() | {"hidden_act": "relu"})
    refuses(
        "config: wanted an image_size whose grid has 16 places", state, config=config.to_dict() | {"image_size": 64}
    )
    refuses("got 2 more: odd, strange", with_name(with_name(state, "odd"), "strange"), config=config)
    refuses("got 1 more: odd", with_name(with_name(state, "odd"), "strange"), config=config, waive=("str*",))
    gone = {name: value for name, value in state.items() if "1.layernorm_before.bias" not in name}
    refuses("wanted a tensor 'layers.1.layernorm_before.bias' or", gone, config=config)
    wrong = state | {"layernorm.weight": torch.zeros(31)}
    refuses(r"wanted norm.weight of shape \(32,\).*got \(31,\)", wrong, config=config)
    refuses("wanted tensors named like those of open_clip", {"a": torch.zeros(1)})
    refuses("wanted tensors in the state dict, got int at 'a'", {"a": 1})
    refuses("wanted a model, a state dict or the path", 7)
    refuses(r"wanted a local folder.*nothing is downloaded", tmp_path / "nowhere")
    refuses("wanted a local folder", "google/vit-base-patch16-224")
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
    registers = transformers.Dinov2WithRegistersConfig(**small)
    refuses("without register tokens", transformers.Dinov2WithRegistersModel(registers))
    swiglu = transformers.Dinov2Model(transformers.Dinov2Config(**small, use_swiglu_ffn=True))
    refuses("plain feed-forward layer, got SwiGLU", swiglu)
    video = small | {"num_frames": 4, "tubelet_size": [2, 8, 8]}
    del video["patch_size"]
    refuses("wanted an image model", transformers.VivitModel(transformers.VivitConfig(**video)))


def test_waived_tensors_are_listed():
    model = hf_vit()
    enc = from_image_vit(with_name(model.state_dict(), "odd"), CFG, config=model.config, waive=("o?d",))
    assert "odd" in enc.imported.left_out
