"""ViViT of transformers, accelerated: the same model, and what it could not do before."""

import inspect

import pytest
import torch
from torch.nn import functional as nnf

import fastvivit as fv
import fastvivit.functional as F
from tests.hf.tiny import (
    bare,
    clips,
    clone,
    gradients,
    layers,
    near,
    run,
    same_gradients,
    transformers,
    vivit,
)  # fmt: skip

NORM = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}


def slow(model, video, keep):
    """Logits of an original model on kept tokens only: embed everything, index, run its own layers."""
    base = bare(model)
    x = base.embeddings(video)
    x = torch.cat((x[:, :1], x[:, 1:].gather(1, keep.unsqueeze(2).expand(-1, -1, x.shape[2]))), 1)
    return model.classifier(base.layernorm(run(layers(model), x))[:, 0])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_outputs_and_gradients_are_those_of_the_original(attention, qkv_bias):
    model, video = vivit(attn_implementation=attention, qkv_bias=qkv_bias), clips().requires_grad_()
    labels = torch.tensor([1, 3])
    want = model(video, labels=labels)
    wanted, pixels = gradients(model, want.loss), torch.autograd.grad(model(video, labels=labels).loss, video)[0]
    fv.accelerate(model)
    got = model(video, labels=labels)
    near(got.logits, want.logits)
    same_gradients(gradients(model, got.loss), wanted)
    near(torch.autograd.grad(model(video, labels=labels).loss, video)[0], pixels)


def test_bare_model_with_its_pooler():
    model, video = vivit("VivitModel"), clips()
    want = model(video)
    got = fv.accelerate(model)(video)
    assert type(got) is type(want)
    near(got.last_hidden_state, want.last_hidden_state)
    near(got.pooler_output, want.pooler_output)


def test_masked_is_the_original_on_the_kept_tokens():
    model, video = vivit(), clips()
    keep = torch.stack([torch.randperm(32)[:9], torch.randperm(32)[:9]])
    want = slow(model, video, keep)
    wanted = gradients(model, want.square().sum())
    fv.accelerate(model)
    for ids in (keep, list(keep)):
        got = model(video, keep=ids).logits
        near(got, want)
        same_gradients(gradients(model, got.square().sum()), wanted)


def test_mask_ratio_draws_as_random_keep_does_in_training_and_in_eval():
    model, video = fv.accelerate(vivit()), clips()
    for training in (False, True):
        model.train(training)
        keep = F.random_keep(2, 32, 0.75, generator=torch.Generator().manual_seed(3))
        got = model(video, mask_ratio=0.75, generator=torch.Generator().manual_seed(3)).logits
        assert torch.equal(got, model(video, keep=keep).logits)
    assert not torch.equal(model(video, mask_ratio=0.75).logits, model(video, mask_ratio=0.75).logits)


def test_dropped_tubelets_are_never_read():
    model, video = fv.accelerate(vivit()), clips(1)
    keep = torch.tensor([[0, 5, 17, 31]])
    want = model(video, keep=keep).logits
    slots = video.clone().unflatten(1, (2, 2)).unflatten(4, (4, 8)).unflatten(6, (4, 8))
    dropped = torch.ones(32, dtype=torch.bool)
    dropped[keep[0]] = False
    for place in dropped.nonzero().flatten().tolist():
        slots[0, place // 16, :, :, place // 4 % 4, :, place % 4] = float("nan")
    ruined = slots.flatten(6, 7).flatten(4, 5).flatten(1, 2)
    assert ruined.isnan().float().mean() == 28 / 32
    assert torch.equal(model(ruined, keep=keep).logits, want)


def test_uint8_is_the_normalised_float():
    model, video = vivit(), torch.randint(256, (2, 4, 3, 32, 32), dtype=torch.uint8)
    mean, std = (torch.tensor(NORM[name]).view(3, 1, 1) for name in ("mean", "std"))
    floats = (video / 255 - mean) / std
    want, keep = model(floats).logits, F.random_keep(2, 32, 0.5)
    fv.accelerate(model, **NORM)
    near(model(video).logits, want)
    near(model(floats).logits, want)
    near(model(video, keep=keep).logits, model(floats, keep=keep).logits)
    fv.accelerate(model)
    with pytest.raises(ValueError, match=r"pixel_values: wanted floats, or mean= and std= .*, got uint8"):
        model(video)


def by_hand(table, slots, height, width, interpolate):
    """(N, D) positions of grid (3, 4, 4) on another, slot by slot: bicubic in space, between two slots in time."""
    frames = nnf.interpolate(table.view(3, 4, 4, -1).permute(0, 3, 1, 2), size=(height, width), mode="bicubic")
    frames = frames.permute(0, 2, 3, 1).flatten(1, 2)
    if slots < 3 and not interpolate:
        return frames[:slots].flatten(0, 1)
    rows = []
    for i in range(slots):
        time = 2 * i / (slots - 1) if slots > 1 else 0
        early = min(int(time), 1)
        rows.append((1 - time + early) * frames[early] + (time - early) * frames[early + 1])
    return torch.cat(rows)


SHAPES = [
    ((2, 32, 32), False), ((4, 32, 32), False), ((4, 32, 32), True), ((10, 32, 32), False), ((6, 48, 16), False),
    ((4, 48, 16), True), ((8, 16, 40), False),
]  # fmt: skip


@pytest.mark.parametrize(("size", "interpolate"), SHAPES)
def test_other_sizes_are_the_original_layers_on_a_resized_table(size, interpolate):
    model, video = vivit(num_frames=6), clips(2, *size)
    base, grid = bare(model), (size[0] // 2, size[1] // 8, size[2] // 8)
    table, projection = base.embeddings.position_embeddings[0], base.embeddings.patch_embeddings.projection
    tokens = projection(video.transpose(1, 2)).flatten(2).transpose(1, 2)
    tokens = tokens + by_hand(table[1:], *grid, interpolate)
    x = torch.cat(((base.embeddings.cls_token + table[0]).expand(2, -1, -1), tokens), 1)
    want = model.classifier(base.layernorm(run(layers(model), x))[:, 0])
    wanted = gradients(model, want.square().sum())
    got = fv.accelerate(model)(video, interpolate_pos_encoding=interpolate).logits
    near(got, want)
    same_gradients(gradients(model, got.square().sum()), wanted)


def test_own_size_takes_the_table_itself_and_may_floor():
    model, video = vivit(image_size=34, num_frames=5), clips(1, 5, 34, 34)
    want = model(video).logits
    fv.accelerate(model)
    near(model(video).logits, want)
    assert torch.equal(model(video, interpolate_pos_encoding=True).logits, model(video).logits)


def test_hidden_states_and_attentions_are_recorded():
    model, video = vivit(), clips()
    ask = {"output_hidden_states": True, "output_attentions": True}
    want = model(video, **ask)
    fv.accelerate(model)
    got = model(video, **ask)
    assert len(got.hidden_states) == len(want.hidden_states) == 3 and len(got.attentions) == 2
    for one, other in zip(got.hidden_states + got.attentions, want.hidden_states + want.attentions, strict=True):
        near(one, other)
    masked = model(video, mask_ratio=0.75, **ask)
    assert masked.hidden_states[0].shape == (2, 9, 48) and masked.attentions[1].shape == (2, 3, 9, 9)
    model.config.output_attentions = True
    near(model(video).attentions[1], want.attentions[1])
    assert isinstance(model(video, return_dict=False), tuple)


def test_masks_and_unheard_of_arguments_go_to_the_original_attention():
    model = vivit("VivitModel")
    attention = next(module for module in model.modules() if hasattr(module, "q_proj") or hasattr(module, "query"))
    x = torch.randn(2, 7, 48)
    mask = torch.zeros(2, 1, 7, 7).masked_fill(torch.rand(2, 1, 7, 7) < 0.3, -1e4)
    want, plain = attention(x, mask)[0], attention(x)[0]
    fv.accelerate(model)
    assert (want - plain).abs().max() > 1e-3
    assert torch.equal(attention(x, mask)[0], want)
    near(attention(x)[0], plain)
    assert attention(x)[1] is None
    attention.is_causal = True
    assert attention(x)[1] is not None


@pytest.mark.parametrize("rates", [(0.5, 0.0), (0.0, 0.5)])
def test_dropout_in_training_is_that_of_the_original(rates):
    model, video = vivit(attention_probs_dropout_prob=rates[0], hidden_dropout_prob=rates[1]), clips()
    model.train()
    results = []
    for accelerated in (False, True):
        if accelerated:
            fv.accelerate(model)
        torch.manual_seed(5)
        results.append(model(video).logits)
    near(*results)
    assert (model(video).logits - results[0]).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_and_autocast(dtype):
    model, video = vivit(), clips()
    want = model(video).logits
    fv.accelerate(model)
    with torch.autocast("cpu", dtype):
        assert (model(video).logits - want).abs().max() < 0.05 * want.abs().max()
        model(video, mask_ratio=0.5).logits.sum().backward()
    half = clone(model).to(dtype)
    got = half(video.to(dtype), output_hidden_states=True)
    assert got.logits.dtype == got.hidden_states[0].dtype == dtype
    assert (got.logits - want).abs().max() < 0.05 * want.abs().max()


def test_patch_convolution_that_someone_changed_is_called():
    model, video = vivit(), clips()
    projection = bare(model).embeddings.patch_embeddings.projection
    projection.register_forward_hook(lambda module, args, out: out * 2)
    keep = F.random_keep(2, 32, 0.5)
    want, masked = model(video).logits, slow(model, video, keep)
    fv.accelerate(model, mean=[0.5] * 3, std=[0.5] * 3)
    near(model(video).logits, want)
    near(model(video, keep=keep).logits, masked)
    pixels = torch.randint(256, video.shape, dtype=torch.uint8)
    near(model(pixels).logits, model((pixels / 255 - 0.5) / 0.5).logits)


def test_compiles_whole_where_the_original_does():
    model, video, keep = vivit(attn_implementation="sdpa"), clips(), F.random_keep(2, 32, 0.5)
    want = model(video).logits
    fv.accelerate(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    near(compiled(video).logits, want)
    near(compiled(video, keep=keep).logits, model(video, keep=keep).logits)
    assert compiled(video, mask_ratio=0.5).logits.shape == (2, 5)


@pytest.mark.parametrize(
    ("video", "arguments", "message"),
    [
        (clips()[0], {}, r"pixel_values: wanted \(B, T, C, H, W\), got \(4, 3, 32, 32\)"),
        (clips()[:, :, :2], {}, r"pixel_values: wanted 3 channels in \(B, T, C, H, W\), got shape \(2, 4, 2, 32, 32\)"),
        (clips(frames=3), {}, "pixel_values: wanted T a multiple of the tubelet's 2, got 3"),
        (clips(width=36), {}, "pixel_values: wanted W a multiple of the tubelet's 8, got 36"),
        (clips().int(), {}, "pixel_values: wanted uint8 or floats, got int32"),
        (clips(), {"mask_ratio": 1.0}, "mask_ratio: wanted 0 <= ratio < 1, got 1.0"),
        (clips(), {"mask_ratio": 0.5, "keep": torch.zeros(2, 1).long()}, "mask_ratio: wanted 0 beside keep, got 0.5"),
        (clips(), {"keep": torch.zeros(3, 1).long()}, r"keep: wanted 2 rows, one a clip, got shape \(3, 1\)"),
        (clips(), {"keep": torch.zeros(2, 1)}, r"keep: wanted \(B, K\) int64 ids, .*, got torch.float32 \(2, 1\)"),
        (clips(), {"keep": [torch.arange(2), torch.arange(3)]}, r"keep: .* each clip, got \[2, 3\].*fv.ViViT packs"),
        (clips(), {"keep": torch.tensor([[0], [32]])}, r"keep: wanted ids in 0..31, got 32 at \[1, 0\]"),
        (clips(), {"keep": torch.tensor([[0, 1], [7, 7]])}, r"keep: wanted distinct ids, got 7 again"),
    ],
)
def test_bad_input_is_named(video, arguments, message):
    model = fv.accelerate(vivit())
    with pytest.raises(ValueError, match=message):
        model(video, **arguments)


def test_attention_mask_of_the_model():
    model, video = vivit("VivitModel"), clips()
    if "attention_mask" not in inspect.signature(transformers.VivitModel.forward).parameters:
        pytest.skip("this version of transformers has no attention_mask here")
    mask = torch.ones(2, 33, dtype=torch.long)
    mask[0, 20:] = 0
    want = model(video, attention_mask=mask).last_hidden_state
    assert (want - model(video).last_hidden_state).abs().max() > 1e-3
    near(fv.accelerate(model)(video, attention_mask=mask).last_hidden_state, want)
