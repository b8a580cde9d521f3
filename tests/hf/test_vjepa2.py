"""V-JEPA 2 accelerated, against transformers' own at the places its own ids can name."""

import copy
import io
import pickle

import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from transformers import VJEPA2Config, VJEPA2ForVideoClassification, VJEPA2Model
from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2Layer, VJEPA2RopeAttention

import fastvivit as fv
import fastvivit.functional as F
from fastvivit.hf.rotary import Places, rotate

GRID, TOKENS = (3, 3, 3), 27
MEAN, STD = (0.45, 0.4, 0.5), (0.2, 0.25, 0.3)


def config(**changes):
    sizes = {"crop_size": 24, "patch_size": 8, "frames_per_clip": 6, "hidden_size": 40, "mlp_ratio": 2}
    depth = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_pooler_layers": 1, "num_labels": 3}
    predictor = {"pred_hidden_size": 28, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 2}
    return VJEPA2Config(**{**sizes, **depth, **predictor, "pred_mlp_ratio": 2, **changes})


def made(cls=VJEPA2Model, attention="sdpa", **changes):
    """A model whose every parameter matters: mask tokens and biases start at zero otherwise."""
    torch.manual_seed(0)
    settings = config(**changes)
    settings._attn_implementation = attention
    model = cls(settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    return model


def clips(frames=6, height=24, width=24, batch=2):
    return torch.randn(batch, frames, 3, height, width, generator=torch.Generator().manual_seed(1))


def ids(count, seed=2, tokens=TOKENS):
    """(2, count) ids in no order."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(tokens, generator=generator)[:count] for _ in range(2)])


def close(found, wanted, tolerance=1e-5):
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=tolerance)


def rows(x, keep):
    return x.gather(1, keep.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def encoded(model, video, keep, named=None):
    """The original's own layers over kept tokens; ``named`` are their ids as its configuration counts them."""
    x = rows(model.encoder.embeddings(video), keep)
    for layer in model.encoder.layer:
        x = layer(x, keep if named is None else named)[0]
    return model.encoder.layernorm(x)


def predicted(model, states, keep, target, tokens):
    """The original predictor, given kept states at their places of a whole clip."""
    whole = torch.zeros(2, tokens, states.shape[-1]).scatter(1, keep.unsqueeze(-1).expand_as(states), states)
    return model.predictor(whole, [keep], [target]).last_hidden_state


def test_same_outputs_and_gradients():
    model = made(VJEPA2ForVideoClassification)
    fast = fv.accelerate(copy.deepcopy(model))
    labels = torch.tensor([0, 2])
    found, wanted = (m.train()(clips(), labels=labels, output_hidden_states=True) for m in (fast, model))
    assert type(found) is type(wanted)
    close(found.logits, wanted.logits)
    close(found.hidden_states, wanted.hidden_states)
    found.loss.backward()
    wanted.loss.backward()
    for (name, ours), theirs in zip(fast.named_parameters(), model.parameters(), strict=True):
        if ".predictor." in name:
            assert ours.grad is None
        else:
            assert theirs.grad.abs().max() > 0, name
            close(ours.grad, theirs.grad)


@pytest.mark.parametrize("masks", [{}, {"context_mask": [ids(11, 3)], "target_mask": [ids(7, 4)]}])
def test_same_predictions_and_gradients(masks):
    model = made()
    fast = fv.accelerate(copy.deepcopy(model))
    found, wanted = (m(clips(), **masks, output_hidden_states=True) for m in (fast, model))
    assert type(found.predictor_output) is type(wanted.predictor_output)
    assert list(found) == list(wanted)
    assert list(found.predictor_output) == list(wanted.predictor_output)
    for name in ("last_hidden_state", "masked_hidden_state"):
        close(found[name], wanted[name])
    for name in ("last_hidden_state", "target_hidden_state"):
        close(found.predictor_output[name], wanted.predictor_output[name])
    for out in (found, wanted):
        out.predictor_output.last_hidden_state.square().sum().backward()
    for ours, theirs in zip(fast.parameters(), model.parameters(), strict=True):
        close(ours.grad, theirs.grad, 1e-4)


def test_kept_tokens_turn_by_their_places():
    model, keep = made(), ids(10)
    fast = fv.accelerate(copy.deepcopy(model))
    found = fast(clips(), keep=keep, skip_predictor=True).last_hidden_state
    wanted = encoded(model, clips(), keep)
    close(found, wanted)
    found.square().sum().backward()
    wanted.square().sum().backward()
    for (name, ours), theirs in zip(fast.named_parameters(), model.parameters(), strict=True):
        if name.startswith("encoder."):
            close(ours.grad, theirs.grad, 1e-4)


@pytest.mark.parametrize("target", [None, ids(6, 5)])
def test_prediction_from_kept_tokens(target):
    model, keep = made(), ids(10)
    every = torch.arange(TOKENS).repeat(2, 1)
    states = encoded(model, clips(), keep)
    wanted = predicted(model, states, keep, every if target is None else target, TOKENS)
    fv.accelerate(model)
    out = model(clips(), keep=keep, target_mask=None if target is None else [target])
    close(out.predictor_output.last_hidden_state, wanted)
    assert out.predictor_output.target_hidden_state is None
    close(out.masked_hidden_state, states)
    close(model(clips(), keep=keep, return_dict=False)[0], states)


def test_mask_ratio_draws_what_random_keep_draws():
    fast = fv.accelerate(made(VJEPA2ForVideoClassification))
    keep = F.random_keep(2, TOKENS, 0.5, generator=torch.Generator().manual_seed(5))
    drawn = fast(clips(), mask_ratio=0.5, generator=torch.Generator().manual_seed(5)).logits
    torch.testing.assert_close(drawn, fast(clips(), keep=keep).logits)
    torch.testing.assert_close(drawn, fast(clips(), keep=list(keep)).logits)
    assert not torch.allclose(drawn, fast(clips()).logits, atol=1e-3)


def test_classification_pools_kept_tokens():
    model, keep = made(VJEPA2ForVideoClassification), ids(10)
    wanted = model.classifier(model.pooler(encoded(model.vjepa2, clips(), keep)))
    close(fv.accelerate(model)(clips(), keep=keep).logits, wanted)


def of_size(model, size):
    """The original with the same weights, for a square that holds ``size``, and the ids it gives that grid's tokens."""
    slots, height, width = size
    side = max(height, width)
    fresh = VJEPA2Model(config(crop_size=8 * side, frames_per_clip=2 * slots)).eval()
    fresh.load_state_dict(model.state_dict())
    t, h, w = torch.meshgrid(*(torch.arange(n) for n in size), indexing="ij")
    return fresh, (t * side * side + h * side + w).flatten().repeat(2, 1)


@pytest.mark.parametrize("size", [(3, 5, 5), (5, 3, 3), (2, 2, 5), (1, 4, 2), (4, 1, 6)])
def test_other_sizes_and_lengths(size):
    model = made()
    slots, height, width = size
    tokens = slots * height * width
    video = clips(2 * slots, 8 * height, 8 * width)
    fresh, named = of_size(model, size)
    every = torch.arange(tokens).repeat(2, 1)
    wanted = encoded(fresh, video, every, named)
    fast = fv.accelerate(model)
    found = fast(video, context_mask=[every[:, ::2]], target_mask=[every[:, 1::3]])
    close(found.last_hidden_state, wanted)
    side = max(height, width)
    whole = torch.zeros(2, slots * side * side, 40).scatter(1, named.unsqueeze(-1).expand_as(wanted), wanted)
    prediction = fresh.predictor(whole, [named[:, ::2]], [named[:, 1::3]]).last_hidden_state
    close(found.predictor_output.last_hidden_state, prediction)
    keep = ids(tokens // 2, tokens=tokens)
    wanted = encoded(fresh, video, keep, named.gather(1, keep))
    close(fast(video, keep=keep).last_hidden_state, wanted)


@pytest.mark.parametrize("frames", [1, 4])
def test_pictures_and_short_clips_are_as_before(frames):
    model = made()
    wanted = model(clips(frames))
    found = fv.accelerate(model)(clips(frames))
    close(found.last_hidden_state, wanted.last_hidden_state)
    close(found.predictor_output.last_hidden_state, wanted.predictor_output.last_hidden_state)


def test_probabilities_are_the_originals():
    model = made(attention="eager")
    wanted = model(clips(), output_attentions=True, skip_predictor=True)
    found = fv.accelerate(model)(clips(), output_attentions=True, skip_predictor=True)
    assert len(wanted.attentions) == 2
    close(found.attentions, wanted.attentions)


@pytest.mark.parametrize("size", [(3, 3, 3), (2, 2, 5), (1, 4, 2)])
def test_probabilities_on_any_grid_and_of_kept_tokens(size):
    slots, height, width = size
    video = clips(2 * slots, 8 * height, 8 * width)
    keep = ids(8, tokens=slots * height * width)
    fast = fv.accelerate(made(attention="eager"))
    found = fast(video, keep=keep, output_attentions=True)
    plain = fast(video, keep=keep)
    assert found.attentions[1].shape == (2, 2, 8, 8)
    close(found.last_hidden_state, plain.last_hidden_state)
    close(found.predictor_output.last_hidden_state, plain.predictor_output.last_hidden_state)
    full = fast(video, output_attentions=True)
    close(full.last_hidden_state, fast(video).last_hidden_state)


def test_dropout_in_training_is_the_originals():
    model = made(VJEPA2ForVideoClassification, "eager", attention_probs_dropout_prob=0.5, attention_dropout=0.5)
    fast = fv.accelerate(copy.deepcopy(model))
    quiet, found = model(clips()).logits, []
    for one in (fast, model):
        torch.manual_seed(7)
        found.append(one.train()(clips()).logits)
    close(*found)
    assert not torch.allclose(found[0], quiet, atol=1e-3)


def test_bytes_are_floats_normalised():
    fast = fv.accelerate(made(), mean=MEAN, std=STD)
    video = torch.randint(256, (2, 6, 24, 24, 3), generator=torch.Generator().manual_seed(6), dtype=torch.uint8)
    video = video.permute(0, 1, 4, 2, 3)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    wanted = fast((video / 255 - mean) / std, skip_predictor=True).last_hidden_state
    close(fast(video, skip_predictor=True).last_hidden_state, wanted)
    with pytest.raises(ValueError, match="uint8"):
        fv.accelerate(fast)(video)


def test_restore_leaves_nothing():
    model = made(VJEPA2ForVideoClassification)
    before = [list(vars(module)) for module in model.modules()]
    wanted = model(clips()).logits
    fv.restore(fv.accelerate(fv.accelerate(model)))
    assert [list(vars(module)) for module in model.modules()] == before
    assert torch.equal(model(clips()).logits, wanted)


def test_copies_are_models_of_their_own():
    fast, keep = fv.accelerate(made(VJEPA2ForVideoClassification)), ids(10)
    wanted = fast(clips(), keep=keep).logits
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    copies = (copy.deepcopy(fast), torch.load(file, weights_only=False), pickle.loads(pickle.dumps(fast)))
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter.zero_()
    fv.restore(fast)
    for one in copies:
        torch.testing.assert_close(one(clips(), keep=keep).logits, wanted)


def test_saved_as_transformers_saves(tmp_path):
    fast = fv.accelerate(made())
    fast.save_pretrained(tmp_path)
    again = VJEPA2Model.from_pretrained(tmp_path).eval()
    assert again.config.architectures == ["VJEPA2Model"]
    close(again(clips()).last_hidden_state, fast(clips()).last_hidden_state)


def two_losses(model):
    first = model(clips(), keep=ids(10)).predictor_output.last_hidden_state
    second = model(clips(4, 16, 40), target_mask=[ids(5, tokens=20)], context_mask=[ids(9, tokens=20)])
    return (first.square().mean() + second.predictor_output.last_hidden_state.square().mean()) / 2


@pytest.mark.parametrize("how", ["reentrant", "not reentrant", "torch, before", "torch, after"])
def test_checkpointing_with_two_forwards_before_the_backward(how):
    plain = fv.accelerate(made()).train()
    two_losses(plain).backward()
    saving = made().train()
    if how == "torch, before":
        apply_activation_checkpointing(saving, check_fn=lambda module: isinstance(module, VJEPA2Layer))
    fv.accelerate(saving)
    if how == "torch, after":
        apply_activation_checkpointing(saving, check_fn=lambda module: isinstance(module, VJEPA2Layer))
    elif how != "torch, before":
        saving.gradient_checkpointing_enable({"use_reentrant": how == "reentrant"})
    calls = []
    saving.encoder.layer[1].norm1.register_forward_hook(lambda *_: calls.append(1))
    two_losses(saving).backward()
    assert len(calls) == 4  # each forward, and again in the backward
    for ours, theirs in zip(saving.parameters(), plain.parameters(), strict=True):
        close(ours.grad, theirs.grad, 1e-6)


def test_compiled_whole():
    torch._dynamo.reset()
    fast = fv.accelerate(made())
    compiled = torch.compile(fast, fullgraph=True, backend="eager")
    with torch.no_grad():
        for asked in ({"keep": ids(10)}, {}):
            found, wanted = compiled(clips(), **asked), fast(clips(), **asked)
            close(found.last_hidden_state, wanted.last_hidden_state)
            close(found.predictor_output.last_hidden_state, wanted.predictor_output.last_hidden_state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype):
    found = fv.accelerate(made()).to(dtype)(clips().to(dtype), keep=ids(10), skip_predictor=True).last_hidden_state
    assert found.dtype == dtype
    tolerance = {torch.bfloat16: 0.15, torch.float16: 0.02}.get(dtype, 1e-5)
    close(found.float(), encoded(made(), clips(), ids(10)), tolerance)


def test_autocast():
    model = made()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wanted = model(clips()).last_hidden_state
        found = fv.accelerate(model)(clips()).last_hidden_state
    assert found.dtype == wanted.dtype
    close(found, wanted, 0.15)


@pytest.mark.parametrize("head", [4, 15, 20, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotation_is_the_originals_in_its_dtype(head, dtype):
    attention = VJEPA2RopeAttention(config(), 2 * head, 2)
    x = torch.randn(2, 10, 2, head, dtype=dtype)
    wanted = attention.apply_rotary_embeddings(x.transpose(1, 2), attention.get_position_ids(x, masks=ids(10)))
    dims = (attention.d_dim, attention.h_dim, attention.w_dim)
    found = rotate(x, *Places(GRID, ids(10), x.device, False).table(dims, head, dtype))
    close(found.transpose(1, 2), wanted, 1e-6 if dtype == torch.float32 else 0.02)


def test_a_module_alone_is_the_original():
    model = made()
    x = model.encoder.embeddings(clips())
    wanted = model.encoder(clips()).last_hidden_state, model.encoder.layer[0](x, ids(TOKENS))[0]
    fv.accelerate(model)
    torch.testing.assert_close(model.encoder(clips()).last_hidden_state, wanted[0])
    torch.testing.assert_close(model.encoder.layer[0](x, ids(TOKENS))[0], wanted[1])
    close(model.get_vision_features(clips()), wanted[0])


@pytest.mark.parametrize(
    ("video", "changes", "message"),
    [
        (clips(6, 20, 24), {}, "H a multiple of the tubelet's 8, got 20"),
        (clips(5), {}, "pixel_values_videos: wanted T a multiple of the tubelet's 2, got 5"),
        (clips()[0], {}, r"wanted \(B, T, C, H, W\)"),
        (clips(), {"keep": torch.zeros(2, 3, dtype=torch.int64)}, "keep"),
        (clips(), {"keep": [torch.arange(3), torch.arange(4)]}, "fv.ViViT"),
        (clips(), {"mask_ratio": 1.0}, "mask_ratio"),
        (clips(), {"mask_ratio": 0.5, "context_mask": [ids(3)]}, "context_mask: wanted None beside keep"),
        (clips(), {"mask_ratio": 0.5, "target_mask": [ids(3)] * 2}, "target_mask: wanted a list of one"),
        (clips(), {"mask_ratio": 0.5, "target_mask": ids(3)}, "target_mask: wanted a list of one"),
    ],
)
def test_errors(video, changes, message):
    with pytest.raises(ValueError, match=message):
        fv.accelerate(made())(video, **changes)


def test_masks_by_position_beside_keep():
    with pytest.raises(ValueError, match="wanted by name"):
        fv.accelerate(made())(clips(), None, [ids(3)], keep=ids(3))
