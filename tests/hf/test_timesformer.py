"""TimeSformer accelerated, against transformers' own and against dense attention with masked keys."""

import copy
import io
import pickle
import threading

import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from transformers import TimesformerConfig, TimesformerForVideoClassification, TimesformerModel
from transformers.models.timesformer.modeling_timesformer import TimesformerLayer

import fastvivit as fv
import fastvivit.functional as F

KINDS = ("divided_space_time", "space_only", "joint_space_time")
GRID = (4, 3, 3)
SLOTS, PLACES = 4, 9
MEAN, STD = (0.45, 0.4, 0.5), (0.2, 0.25, 0.3)


def config(kind="divided_space_time", **changes):
    sizes = {"image_size": 24, "patch_size": 8, "num_frames": SLOTS, "hidden_size": 32, "intermediate_size": 48}
    depth = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_labels": 3}
    return TimesformerConfig(**{**sizes, **depth, "attention_type": kind, **changes})


def made(kind="divided_space_time", cls=TimesformerModel, **changes):
    """A model whose every parameter matters: positions and biases start at zero otherwise."""
    torch.manual_seed(0)
    model = cls(config(kind, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    return model


def clips(frames=SLOTS, height=24, width=24, batch=2):
    return torch.randn(batch, frames, 3, height, width, generator=torch.Generator().manual_seed(1))


def ragged_keep():
    """(2, 12) ids in no order: one clip keeps nothing of frame 1 and all of frame 0, the other is random."""
    generator = torch.Generator().manual_seed(2)
    first = torch.cat([torch.arange(9), torch.tensor([18, 20, 35])])
    second = F.random_keep(1, 36, 24 / 36, generator=generator)[0]
    return torch.stack([ids[torch.randperm(12, generator=generator)] for ids in (first, second)])


def close(found, wanted, tolerance=1e-5):
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=tolerance)


def masked_attention(attention, x, visible):
    """TimeSformer's attention, written out, over (S, L, D) where only keys ``visible`` (S, L) are seen."""
    inner = attention.attention
    q, k, v = inner.qkv(x).unflatten(-1, (3, inner.num_heads, -1)).permute(2, 0, 3, 1, 4)
    scores = (q @ k.transpose(-2, -1)) * inner.scale
    scores = scores.masked_fill(~visible[:, None, None, :], -torch.inf)
    # A row of nothing but masked keys (a place where nothing was kept) is dropped anyway.
    probabilities = scores.softmax(-1).nan_to_num()
    return attention.output((probabilities @ v).transpose(1, 2).flatten(2))


def dense_divided(model, video, keep):
    """The original over every token, dropped ones masked as keys, all frames' CLS copies averaged: (B, 1 + K, D)."""
    batch = video.shape[0]
    visible = torch.zeros(batch, SLOTS * PLACES, dtype=torch.bool).scatter(1, keep, True)
    visible = visible.view(batch, SLOTS, PLACES)
    x = model.embeddings(video)  # tokens by place, then by time
    for layer in model.encoder.layer:
        cls, grid = x[:, :1], x[:, 1:].unflatten(1, (PLACES, SLOTS))
        by_time = layer.temporal_layernorm(grid).flatten(0, 1)
        by_time = masked_attention(layer.temporal_attention, by_time, visible.transpose(1, 2).flatten(0, 1))
        grid = grid + layer.temporal_dense(by_time).view_as(grid)
        frames = grid.transpose(1, 2).flatten(0, 1)
        frames = torch.cat([cls.repeat_interleave(SLOTS, 0), frames], 1)
        seen = torch.cat([torch.ones(batch * SLOTS, 1, dtype=torch.bool), visible.flatten(0, 1)], 1)
        frames = masked_attention(layer.attention, layer.layernorm_before(frames), seen).unflatten(0, (batch, SLOTS))
        cls = cls + frames[:, :, 0].mean(1, keepdim=True)
        grid = grid + frames[:, :, 1:].transpose(1, 2)
        x = torch.cat([cls, grid.flatten(1, 2)], 1)
        x = x + layer.output(layer.intermediate(layer.layernorm_after(x)))
    x = model.layernorm(x)
    rows = 1 + keep % PLACES * SLOTS + keep // PLACES
    rows = torch.cat([torch.zeros_like(rows[:, :1]), rows], 1)
    return x.gather(1, rows.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


@pytest.mark.parametrize("kind", KINDS)
def test_same_outputs_and_gradients(kind):
    model = made(kind, TimesformerForVideoClassification)
    fast = fv.accelerate(copy.deepcopy(model))
    labels = torch.arange(2 * SLOTS if kind == "space_only" else 2) % 3
    found, wanted = (m.train()(clips(), labels=labels, output_hidden_states=True) for m in (fast, model))
    assert type(found) is type(wanted)
    close(found.logits, wanted.logits)
    close(found.hidden_states, wanted.hidden_states)
    found.loss.backward()
    wanted.loss.backward()
    for (name, ours), theirs in zip(fast.named_parameters(), model.parameters(), strict=True):
        assert theirs.grad.abs().max() > 0, name
        close(ours.grad, theirs.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_are_the_originals(kind):
    model = made(kind)
    wanted = model(clips(), output_attentions=True)
    found = fv.accelerate(model)(clips(), output_attentions=True)
    close(found.attentions, wanted.attentions)
    close(found.last_hidden_state, wanted.last_hidden_state)


def test_divided_attention_over_kept_tokens_is_dense_attention_with_masked_keys():
    model, keep = made(), ragged_keep()
    fast = fv.accelerate(copy.deepcopy(model))
    found = fast(clips(), keep=keep).last_hidden_state
    wanted = dense_divided(model, clips(), keep)
    close(found, wanted)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(3))
    (found * weights).sum().backward()
    (wanted * weights).sum().backward()
    for ours, theirs in zip(fast.parameters(), model.parameters(), strict=True):
        close(ours.grad, theirs.grad, 1e-4)


def test_hidden_states_come_in_the_order_of_keep():
    fast, keep = fv.accelerate(made()), ragged_keep()
    found = fast(clips(), keep=keep, output_hidden_states=True).hidden_states
    order = torch.arange(12).flip(0)
    flipped = fast(clips(), keep=keep[:, order], output_hidden_states=True, return_dict=False)[1]
    for x, y in zip(found, flipped, strict=True):
        close(y[:, 1:], x[:, 1:][:, order])
    close(found[0][:, 1:].sum(1), dense_embeddings(keep).sum(1), 1e-4)


def dense_embeddings(keep):
    x = made().embeddings(clips())[:, 1:].unflatten(1, (PLACES, SLOTS)).transpose(1, 2).flatten(1, 2)
    return x.gather(1, keep.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def test_joint_attention_over_kept_tokens():
    model, keep = made("joint_space_time"), ragged_keep()
    x = model.embeddings(clips())
    rows = 1 + keep % PLACES * SLOTS + keep // PLACES
    rows = torch.cat([torch.zeros_like(rows[:, :1]), rows], 1)
    x = x.gather(1, rows.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
    wanted = model.layernorm(model.encoder(x)[0])
    close(fv.accelerate(model)(clips(), keep=keep).last_hidden_state, wanted)


def test_space_only_keeps_equally_many_of_each_frame():
    model = made("space_only")
    x = model.embeddings(clips())
    rows = F.random_keep(2 * SLOTS, PLACES, 0.5, generator=torch.Generator().manual_seed(2))
    kept = torch.cat([x[:, :1], x.gather(1, 1 + rows.unsqueeze(-1).expand(-1, -1, 32))], 1)
    wanted = model.layernorm(model.encoder(kept)[0])
    keep = (rows.view(2, SLOTS, -1) + torch.arange(SLOTS).view(1, -1, 1) * PLACES).transpose(1, 2).flatten(1)
    fv.accelerate(model)
    close(model(clips(), keep=keep).last_hidden_state, wanted)
    drawn = model(clips(), mask_ratio=0.5, generator=torch.Generator().manual_seed(2)).last_hidden_state
    close(drawn, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_keeping_all_is_dropping_nothing(kind):
    fast = fv.accelerate(made(kind, TimesformerForVideoClassification))
    everything = torch.arange(36).repeat(2, 1)
    close(fast(clips(), keep=everything).logits, fast(clips()).logits)
    ratio = fast(clips(), mask_ratio=0.5, generator=torch.Generator().manual_seed(4)).logits
    assert not torch.allclose(ratio, fast(clips()).logits, atol=1e-3)


def test_mask_ratio_draws_what_random_keep_draws():
    fast = fv.accelerate(made())
    keep = F.random_keep(2, 36, 0.5, generator=torch.Generator().manual_seed(5))
    drawn = fast(clips(), mask_ratio=0.5, generator=torch.Generator().manual_seed(5)).last_hidden_state
    torch.testing.assert_close(drawn, fast(clips(), keep=keep).last_hidden_state)
    torch.testing.assert_close(drawn, fast(clips(), keep=list(keep)).last_hidden_state)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_floats_normalised(kind):
    fast = fv.accelerate(made(kind), mean=MEAN, std=STD)
    video = torch.randint(256, (2, SLOTS, 24, 24, 3), generator=torch.Generator().manual_seed(6), dtype=torch.uint8)
    video = video.permute(0, 1, 4, 2, 3)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    wanted = fast((video / 255 - mean) / std).last_hidden_state
    close(fast(video).last_hidden_state, wanted)
    with pytest.raises(ValueError, match="uint8"):
        fv.accelerate(fast)(video)


def resized(model, frames, height, width):
    """A fresh original for clips of another size, its tables taken nearest by hand on the true axes."""
    kind = model.config.attention_type
    fresh = TimesformerModel(config(kind, num_frames=frames, image_size=8 * max(width, 1))).eval()
    state = model.state_dict()
    rows, columns = (torch.arange(n) * 3 // n for n in (height, width))
    table = state["embeddings.position_embeddings"][0]
    places = (rows.view(-1, 1) * 3 + columns).flatten()
    state["embeddings.position_embeddings"] = torch.cat([table[:1], table[1:][places]]).unsqueeze(0)
    if kind != "space_only":
        times = torch.arange(frames) * SLOTS // frames
        state["embeddings.time_embeddings"] = state["embeddings.time_embeddings"][:, times]
    fresh.embeddings.position_embeddings = torch.nn.Parameter(state["embeddings.position_embeddings"])
    fresh.load_state_dict(state)
    return fresh


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(8, 3, 3), (2, 3, 3), (4, 5, 2), (6, 1, 9), (3, 6, 6), (1, 4, 1)])
def test_other_sizes_and_lengths(kind, size):
    model = made(kind)
    frames, height, width = size
    video = clips(frames, 8 * height, 8 * width)
    wanted = resized(model, *size)(video).last_hidden_state
    close(fv.accelerate(model)(video).last_hidden_state, wanted)


def test_keep_of_another_size():
    model = made()
    video = clips(3, 16, 32)
    fast = fv.accelerate(copy.deepcopy(model))
    everything = torch.arange(24).flip(0).repeat(2, 1)
    full = fast(video).last_hidden_state
    found = fast(video, keep=everything).last_hidden_state
    close(found[:, 0], full[:, 0])
    by_place = full[:, 1:].unflatten(1, (8, 3)).transpose(1, 2).flatten(1, 2)
    close(found[:, 1:], by_place.flip(1))


def test_probabilities_of_more_frames_than_the_configuration_has():
    fast = fv.accelerate(made())
    found = fast(clips(8), output_attentions=True)
    assert found.attentions[0].shape == (2 * 8, 4, 10, 10)
    close(found.last_hidden_state, fast(clips(8)).last_hidden_state)


@pytest.mark.parametrize("kind", KINDS)
def test_restore_leaves_nothing(kind):
    model = made(kind)
    before = [dict(vars(module)) for module in model.modules()]
    wanted = model(clips()).last_hidden_state
    fv.restore(fv.accelerate(fv.accelerate(model)))
    assert [list(vars(module)) for module in model.modules()] == [list(attributes) for attributes in before]
    assert torch.equal(model(clips()).last_hidden_state, wanted)
    with pytest.raises(TypeError):
        fv.restore(model).embeddings(clips(), keep=ragged_keep())


def test_copies_are_models_of_their_own():
    fast, keep = fv.accelerate(made()), ragged_keep()
    wanted = fast(clips(), keep=keep).last_hidden_state
    twin = copy.deepcopy(fast)
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    copies = (twin, torch.load(file, weights_only=False), pickle.loads(pickle.dumps(fast)))
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter.zero_()
    fv.restore(fast)
    for one in copies:
        torch.testing.assert_close(one(clips(), keep=keep).last_hidden_state, wanted)


def test_saved_as_transformers_saves(tmp_path):
    fast = fv.accelerate(made(cls=TimesformerForVideoClassification))
    fast.save_pretrained(tmp_path)
    again = TimesformerForVideoClassification.from_pretrained(tmp_path).eval()
    assert again.config.architectures == ["TimesformerForVideoClassification"]
    close(again(clips()).logits, fast(clips()).logits)


@pytest.mark.parametrize("how", ["reentrant", "not reentrant", "torch, before", "torch, after"])
@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_with_two_forwards_before_the_backward(kind, how):
    def losses(model):
        keep = torch.arange(36).view(SLOTS, PLACES)[:, ::2].flatten().repeat(2, 1)
        first = model(clips(), keep=keep, output_hidden_states=True)
        second = model(clips(2, 16, 40))
        return (first.last_hidden_state.square().mean() + second.last_hidden_state.square().mean()) / 2

    plain = fv.accelerate(made(kind)).train()
    losses(plain).backward()
    saving = made(kind).train()
    if how == "torch, before":
        apply_activation_checkpointing(saving, check_fn=lambda module: isinstance(module, TimesformerLayer))
    fv.accelerate(saving)
    if how == "torch, after":
        apply_activation_checkpointing(saving, check_fn=lambda module: isinstance(module, TimesformerLayer))
    elif how != "torch, before":
        saving.gradient_checkpointing_enable({"use_reentrant": how == "reentrant"})
    calls = []
    saving.encoder.layer[1].layernorm_before.register_forward_hook(lambda *_: calls.append(1))
    losses(saving).backward()
    assert len(calls) == 4  # each forward, and again in the backward
    for ours, theirs in zip(saving.parameters(), plain.parameters(), strict=True):
        close(ours.grad, theirs.grad, 1e-6)


@pytest.mark.skipif("__call__" in vars(TimesformerLayer.__bases__[0]), reason="transformers 4 does so by itself")
def test_checkpointing_around_the_call_as_transformers_4_does():
    class Around(TimesformerLayer):
        def __call__(self, *args, **kwargs):
            if self.gradient_checkpointing and self.training:
                return self._gradient_checkpointing_func(super().__call__, *args, **kwargs)
            return super().__call__(*args, **kwargs)

    model = made().train()
    for layer in model.encoder.layer:
        layer.__class__ = Around
    # Reentrant, because nested checkpoints of the other kind stop early and hide that they are nested.
    fv.accelerate(model).gradient_checkpointing_enable({"use_reentrant": True})
    calls = []
    model.encoder.layer[0].temporal_layernorm.register_forward_hook(lambda *_: calls.append(1))
    model(clips(), keep=ragged_keep()).last_hidden_state.sum().backward()
    assert len(calls) == 2


@pytest.mark.parametrize("kind", ["divided_space_time", "space_only"])
def test_compiled_whole(kind):
    torch._dynamo.reset()
    fast = fv.accelerate(made(kind))
    keep = torch.arange(36).view(SLOTS, PLACES)[:, ::2].flatten().repeat(2, 1)
    compiled = torch.compile(fast, fullgraph=True, backend="eager")
    with torch.no_grad():
        close(compiled(clips()).last_hidden_state, fast(clips()).last_hidden_state)
        close(compiled(clips(), keep=keep).last_hidden_state, fast(clips(), keep=keep).last_hidden_state)


@pytest.mark.parametrize("rates", [{"drop_path_rate": 1}, {"attention_probs_dropout_prob": 0.5}])
def test_randomness_in_training_is_the_originals(rates):
    # A rate of 1 drops everything in the last layer only; made 0.5 there, half of its sequences.
    model = made(**rates)
    for layer in model.encoder.layer:
        if hasattr(layer.drop_path, "drop_prob"):
            layer.drop_path.drop_prob = 0.5
    fast = fv.accelerate(copy.deepcopy(model))
    quiet = model(clips()).last_hidden_state
    found = []
    for one in (fast, model):
        torch.manual_seed(7)
        found.append(one.train()(clips()).last_hidden_state)
    close(*found)
    assert not torch.allclose(found[0], quiet, atol=1e-3)


def test_dropped_paths_of_kept_tokens_drop_whole_sequences():
    model = made(drop_path_rate=1).train()
    model.encoder.layer = model.encoder.layer[1:]
    layer = model.encoder.layer[0]
    layer.drop_path.drop_prob = 1 - 1e-7  # the last bit: nothing survives
    found = fv.accelerate(model)(clips(), keep=ragged_keep()).last_hidden_state
    assert found.isfinite().all()
    x = dense_embeddings(ragged_keep())
    close(found[:, 1:], model.layernorm(x + layer.temporal_dense.bias))


def test_dropout_between_the_positions():
    model = made("joint_space_time", hidden_dropout_prob=0.5).train()
    with torch.no_grad():
        model.embeddings.time_embeddings.fill_(100.0)
    fv.accelerate(model)
    x = model.embeddings(clips())[:, 1:]
    # Twice the sum, or nothing, of which the time's half is 100: twice (twice e or 0) + 100, or 0.
    assert 0.4 < (x == 0).float().mean() < 0.6
    assert ((x - 200).abs() < 1e-6).float().mean() > 0.15


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype):
    fast = fv.accelerate(made()).to(dtype)
    found = fast(clips().to(dtype), keep=ragged_keep()).last_hidden_state
    assert found.dtype == dtype
    wanted = dense_divided(made(), clips(), ragged_keep())
    close(found.float(), wanted, {torch.bfloat16: 0.1, torch.float16: 0.02}.get(dtype, 1e-5))


def test_autocast():
    model = made()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wanted = model(clips()).last_hidden_state
        found = fv.accelerate(model)(clips()).last_hidden_state
    assert found.dtype == wanted.dtype
    close(found, wanted, 0.1)


def test_a_module_alone_is_the_original():
    model = made()
    x = model.embeddings(clips())
    wanted = model.encoder(x)[0]
    fv.accelerate(model)
    torch.testing.assert_close(model.encoder(x)[0], wanted)
    torch.testing.assert_close(model.encoder.layer[0](x)[0], fv.restore(model).encoder.layer[0](x)[0])


@pytest.mark.parametrize(
    ("video", "changes", "message"),
    [
        (clips(4, 20, 24), {}, "H a multiple of the tubelet's 8, got 20"),
        (clips()[0], {}, r"wanted \(B, T, C, H, W\)"),
        (clips()[:, :, :2], {}, "wanted 3 channels"),
        (clips(), {"keep": torch.zeros(2, 3, dtype=torch.int64)}, "keep"),
        (clips(), {"keep": torch.full((2, 1), 36)}, "keep"),
        (clips(), {"keep": torch.zeros(3, 1, dtype=torch.int64)}, "keep: wanted 2 rows"),
        (clips(), {"keep": [torch.arange(3), torch.arange(4)]}, "fv.ViViT"),
        (clips(), {"mask_ratio": 1.0}, "mask_ratio"),
        (clips(), {"mask_ratio": 0.5, "output_attentions": True}, "output_attentions: wanted False"),
    ],
)
def test_errors(video, changes, message):
    with pytest.raises(ValueError, match=message):
        fv.accelerate(made())(video, **changes)


def test_errors_of_one_kind():
    with pytest.raises(ValueError, match="equally many ids in each frame"):
        fv.accelerate(made("space_only"))(clips(), keep=ragged_keep())
    with pytest.raises(ValueError, match="equally many ids in each frame"):
        fv.accelerate(made("space_only"))(clips(), keep=torch.arange(5).repeat(2, 1))
    dropping = fv.accelerate(made(attention_probs_dropout_prob=0.1)).train()
    with pytest.raises(ValueError, match="attention_probs_dropout_prob: wanted 0 in training"):
        dropping(clips(), keep=ragged_keep())
    assert dropping.eval()(clips(), keep=ragged_keep()).last_hidden_state.shape == (2, 13, 32)


def test_compiled_before_anything_has_run_for_sizes_that_vary():
    torch._dynamo.reset()
    compiled = torch.compile(fv.accelerate(made()), fullgraph=True, backend="eager", dynamic=True)
    found = []

    def once():
        # A new thread has run nothing, and its own variables are fresh.
        with torch.no_grad():
            found.extend(compiled(clips(4, size, size), mask_ratio=0.5).last_hidden_state.shape for size in (24, 32))

    thread = threading.Thread(target=once)
    thread.start()
    thread.join()
    assert found == [(2, 19, 32), (2, 33, 32)]
