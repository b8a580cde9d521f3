"""VideoMAE of transformers, accelerated: encoder, classifier and pre-training, with masks that do not leak."""

import pytest
import torch
from torch import nn

import fastvivit as fv
import fastvivit.functional as F
from tests.hf.test_vivit import SHAPES, by_hand
from tests.hf.tiny import (
    bare,
    clips,
    clone,
    gradients,
    layers,
    near,
    run,
    same_gradients,
    videomae,
)

NORM = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def boolean(keep, tokens=32):
    """True where a token is dropped."""
    return torch.stack([~torch.isin(torch.arange(tokens), ids) for ids in keep])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("pooling", [True, False])
def test_outputs_and_gradients_are_those_of_the_original(attention, pooling):
    model, video = videomae(attn_implementation=attention, use_mean_pooling=pooling), clips()
    labels = torch.tensor([1, 3])
    want = model(video, labels=labels)
    wanted = gradients(model, want.loss)
    got = fv.accelerate(model)(video, labels=labels)
    near(got.logits, want.logits)
    same_gradients(gradients(model, got.loss), wanted)


def test_masked_is_the_original_on_the_kept_tokens():
    model, video = videomae("VideoMAEModel"), clips()
    keep = torch.stack([torch.randperm(32)[:9], torch.randperm(32)[:9]])
    x = model.embeddings(video, None).gather(1, keep.unsqueeze(2).expand(-1, -1, 48))
    want = run(layers(model), x)
    want = want if model.layernorm is None else model.layernorm(want)
    wanted = gradients(model, want.square().sum())
    ascending = model(video, bool_masked_pos=boolean(keep)).last_hidden_state
    fv.accelerate(model)
    got = model(video, keep=keep).last_hidden_state
    near(got, want)
    same_gradients(gradients(model, got.square().sum()), wanted)
    near(model(video, bool_masked_pos=boolean(keep)).last_hidden_state, ascending)
    near(model(video, keep=keep.sort(1).values).last_hidden_state, ascending)
    assert model(video, mask_ratio=0.75).last_hidden_state.shape == (2, 8, 48)


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_pretraining_loss_and_gradients_are_those_of_the_original(norm_pix_loss):
    model, video = videomae("VideoMAEForPreTraining", norm_pix_loss=norm_pix_loss), clips()
    keep = F.random_keep(2, 32, 0.75)
    want = model(video, bool_masked_pos=boolean(keep))
    wanted = gradients(model, want.loss)
    fv.accelerate(model, **NORM)
    for arguments in ({"bool_masked_pos": boolean(keep)}, {"keep": keep.flip(1)}):
        got = model(video, **arguments)
        assert type(got) is type(want)
        near(got.loss, want.loss)
        near(got.logits, want.logits)
        same_gradients(gradients(model, got.loss), wanted)
    pixels = torch.randint(256, video.shape, dtype=torch.uint8)
    mean, std = (torch.tensor(NORM[name]).view(3, 1, 1) for name in ("mean", "std"))
    near(model(pixels, keep=keep).loss, model((pixels / 255 - mean) / std, keep=keep).loss)
    assert model(video, mask_ratio=0.75).logits.shape == want.logits.shape


@pytest.mark.parametrize(("size", "interpolate"), [shape for shape in SHAPES if not shape[1]])
def test_other_sizes_are_a_model_of_that_size_with_a_resized_table(size, interpolate):
    model, video = videomae("VideoMAEModel", num_frames=6), clips(2, *size)
    grid = (size[0] // 2, size[1] // 8, size[2] // 8)
    fresh = videomae("VideoMAEModel", image_size=list(size[1:]), num_frames=size[0])
    fresh.embeddings.position_embeddings = by_hand(
        model.embeddings.position_embeddings[0], *grid, interpolate
    ).unsqueeze(0)
    want = fresh(video).last_hidden_state
    near(fv.accelerate(model)(video).last_hidden_state, want)


def test_biases_beside_their_layers_as_transformers_4_has_them():
    model, video = fv.accelerate(videomae("VideoMAEModel")), clips()
    if any(hasattr(module, "q_bias") for module in model.modules()):
        pytest.skip("this version of transformers has them there itself")
    want = model(video).last_hidden_state
    old = clone(model)
    for module in old.modules():
        if type(module).__name__ == "VideoMAESelfAttention":
            module.q_bias, module.query.bias = nn.Parameter(module.query.bias.detach() + 1), None
            module.v_bias, module.value.bias = nn.Parameter(module.value.bias.detach()), None
    assert (old(video).last_hidden_state - want).abs().max() > 1e-3
    for module in old.modules():
        if hasattr(module, "q_bias"):
            module.q_bias.data -= 1
    near(old(video).last_hidden_state, want)


def test_attentions_are_recorded():
    model, video = videomae(), clips()
    want = model(video, output_attentions=True, output_hidden_states=True)
    fv.accelerate(model)
    got = model(video, output_attentions=True, output_hidden_states=True)
    for one, other in zip(got.attentions + got.hidden_states, want.attentions + want.hidden_states, strict=True):
        near(one, other)
    assert model(video, output_attentions=True, mask_ratio=0.75).attentions[0].shape == (2, 3, 8, 8)


def test_a_mask_never_mixes_clips():
    model, video = fv.accelerate(videomae("VideoMAEModel")), clips()
    mask = boolean(F.random_keep(2, 32, 0.5))
    before = model(video, bool_masked_pos=mask).last_hidden_state[1]
    changed = torch.cat((clips(1), video[1:]))
    assert torch.equal(model(changed, bool_masked_pos=mask).last_hidden_state[1], before)
    mask[0, :8], mask[1, :8] = True, False
    mask[:, 8:] = boolean(F.random_keep(2, 24, 0.5), 24)
    with pytest.raises(ValueError, match=r"bool_masked_pos: wanted equally many visible tokens .*, got \[12, 20\]"):
        model(video, bool_masked_pos=mask)


def test_attention_dropout_in_training_is_that_of_the_original():
    model, video = videomae(attention_probs_dropout_prob=0.5).train(), clips()
    results = []
    for accelerated in (False, True):
        if accelerated:
            fv.accelerate(model)
        torch.manual_seed(5)
        results.append(model(video).logits)
    near(*results)


def test_compiles_whole_where_the_original_does():
    model, video, keep = videomae(attn_implementation="sdpa"), clips(), F.random_keep(2, 32, 0.5)
    want = model(video).logits
    fv.accelerate(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    near(compiled(video).logits, want)
    near(compiled(video, keep=keep).logits, model(video, keep=keep).logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits(dtype):
    model, video = videomae(), clips()
    want = model(video).logits
    fv.accelerate(model)
    model.to(dtype)
    got = model(video.to(dtype)).logits
    assert got.dtype == dtype and (got - want).abs().max() < 0.05 * want.abs().max()


IDS = torch.zeros(2, 1).long()


@pytest.mark.parametrize(
    ("name", "video", "arguments", "message"),
    [
        ("Model", clips(), {"bool_masked_pos": boolean(IDS), "keep": IDS}, "bool_masked_pos: wanted None beside keep"),
        ("Model", clips(), {"bool_masked_pos": boolean(IDS)[:1]}, r"bool_masked_pos: wanted bool \(2, 32\), got"),
        ("Model", clips(), {"bool_masked_pos": IDS.expand(2, 32)}, r"bool_masked_pos: wanted bool .* torch.int64"),
        ("ForPreTraining", clips(), {"bool_masked_pos": boolean(IDS), "keep": IDS}, "bool_masked_pos: wanted None"),
        ("ForPreTraining", clips(), {"keep": IDS + 32}, "keep: wanted ids in 0..31, got 32..32"),
        ("ForPreTraining", clips(), {"keep": IDS.expand(2, 2)}, "keep: wanted distinct ids, got one twice"),
        (
            "ForPreTraining",
            clips(frames=8),
            {"keep": IDS},
            r"pixel_values: wanted \(T, H, W\) = \(4, 32, 32\)",
        ),
        ("ForPreTraining", clips(width=20), {"keep": IDS}, "pixel_values: wanted W a multiple"),
    ],
)
def test_bad_input_is_named(name, video, arguments, message):
    model = fv.accelerate(videomae(f"VideoMAE{name}"))
    with pytest.raises(ValueError, match=message):
        model(video, **arguments)


def test_a_pretraining_model_within_takes_no_second_mask():
    model, video, keep = fv.accelerate(videomae("VideoMAEForPreTraining")), clips(), F.random_keep(2, 32, 0.5)
    assert bare(model)(video, keep=keep).last_hidden_state.shape == (2, 16, 48)
    with pytest.raises(ValueError, match="One must provided a boolean mask"):
        model(video)
