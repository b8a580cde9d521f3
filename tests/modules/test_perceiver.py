"""The resampler: padded and packed media, against explicit softmax attention clip by clip."""

import pytest
import torch
from torch import nn
from torch.nn import functional as nnf

from fastvivit.modules.perceiver import PerceiverResampler

SMALL = {"dim": 32, "in_dim": 24, "depth": 2, "heads": 4, "latents": 5, "ff": 48}
LENGTHS = [6, 0, 9, 2]
VARIANTS = [
    {},
    {"concat_latents": False},
    {"qk_norm": True, "out_dim": 20},
    {"in_dim": 32, "head_dim": 16},
]


def lengths(*values):
    return torch.tensor([0, *values]).cumsum(0).int()


def resampler(**changes):
    """With every parameter away from its special start: norms off 1, biases off 0, latents apart."""
    torch.manual_seed(1)
    model = PerceiverResampler(**(SMALL | changes))
    for parameter in model.parameters():
        nn.init.normal_(parameter, parameter.detach().mean().item(), 0.2)
    return model


def dense(model, media):
    """One clip (S, in_dim) → (L, dim): Flamingo's equations with whole score matrices."""
    x, z = model.in_proj(media), model.latents
    for layer in model.layers:
        attn, queries = layer.attn, layer.norm_latents(z)
        keys = layer.norm_media(x)
        if model.concat_latents:
            keys = torch.cat((keys, queries))
        q = attn.q_norm((attn.q(queries)).unflatten(1, (attn.heads, -1))).transpose(0, 1)
        k, v = (t.unflatten(1, (attn.heads, -1)).transpose(0, 1) for t in attn.kv(keys).chunk(2, 1))
        scores = q @ attn.k_norm(k).transpose(1, 2) * q.shape[-1] ** -0.5
        seen = scores.softmax(-1) @ v if len(keys) else torch.zeros_like(q)
        z = z + attn.proj(seen.transpose(0, 1).flatten(1))
        z = z + layer.mlp.fc2(nnf.gelu(layer.mlp.fc1(layer.norm_ff(z))))
    return model.out_proj(model.norm(z))


def masked_batch(in_dim, holes=float("nan")):
    """(B, S, in_dim) media with real places scattered, the rest ``holes``; and their mask."""
    mask = torch.stack([torch.randperm(10) < n for n in LENGTHS])
    media = torch.randn(4, 10, in_dim)
    return media.masked_fill(~mask.unsqueeze(2), holes).requires_grad_(), mask


def assert_same(model, media, out, want):
    torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-5)
    inputs, up = [media, *model.parameters()], torch.randn_like(want)
    got, wanted = (torch.autograd.grad(o, inputs, up) for o in (out, want))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    return got[0]


@pytest.mark.parametrize("options", VARIANTS)
def test_padded_media_are_dense_attention_over_the_real_places(options):
    model = resampler(**options)
    media, mask = masked_batch(model.in_dim)
    want = torch.stack([dense(model, clip[real]) for clip, real in zip(media, mask, strict=True)])
    assert want.shape == (4, 5, model.num_features)
    grad = assert_same(model, media, model(media, mask), want)
    assert torch.equal(grad.ne(0).any(2), mask)
    media = torch.randn(3, 7, model.in_dim, requires_grad=True)
    assert_same(model, media, model(media), torch.stack([dense(model, clip) for clip in media]))


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("past", [0, 3])
def test_packed_media_are_dense_attention_clip_by_clip(options, past):
    model = resampler(**options)
    media = torch.randn(sum(LENGTHS) + past, model.in_dim)
    media[sum(LENGTHS) :] = float("nan")
    media.requires_grad_()
    want = torch.stack([dense(model, clip) for clip in media.split([*LENGTHS, past])[:4]])
    for longest in (None, 9):
        out = model(media, cu_seqlens=lengths(*LENGTHS), max_seqlen=longest)
        grad = assert_same(model, media, out, want) if longest else None
        torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-5)
    assert not grad[sum(LENGTHS) :].any()


@pytest.mark.parametrize("concat", [True, False])
def test_float64_agrees_to_float64(concat):
    model = resampler(concat_latents=concat).double()
    media = torch.randn(17, 24, dtype=torch.float64)
    want = torch.stack([dense(model, clip) for clip in media.split(LENGTHS)])
    torch.testing.assert_close(model(media, cu_seqlens=lengths(*LENGTHS)), want, rtol=1e-11, atol=1e-11)


def test_what_masked_places_hold_does_not_matter_to_the_bit():
    model = resampler()
    torch.manual_seed(0)
    media, mask = masked_batch(24)
    torch.manual_seed(0)
    other, _ = masked_batch(24, 1e30)
    outs = [model(m, mask) for m in (media, other)]
    assert torch.equal(*outs)
    grads = [torch.autograd.grad(out.square().sum(), list(model.parameters())) for out in outs]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_a_clip_in_a_batch_is_the_clip_alone():
    model = resampler()
    media, mask = masked_batch(24)
    out = model(media, mask)
    for i, length in enumerate(LENGTHS):
        alone = media[i][mask[i]]
        torch.testing.assert_close(model(alone.unsqueeze(0))[0], out[i], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model(alone, cu_seqlens=lengths(length))[0], out[i], rtol=1e-5, atol=1e-5)
    shuffled = torch.randperm(10)
    torch.testing.assert_close(model(media[:, shuffled], mask[:, shuffled]), out, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("concat", [True, False])
def test_nothing_to_see_is_finite(concat):
    model = resampler(concat_latents=concat)
    out = model(torch.full((2, 3, 24), float("nan")), torch.zeros(2, 3, dtype=torch.bool))
    torch.testing.assert_close(out[0], dense(model, torch.zeros(0, 24)), rtol=1e-4, atol=1e-5)
    out.square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert model(torch.zeros(2, 0, 24)).shape == (2, 5, 32) and model(torch.zeros(0, 3, 24)).shape == (0, 5, 32)
    assert model(torch.zeros(0, 24), cu_seqlens=lengths()).shape == (0, 5, 32)


@pytest.mark.parametrize("concat", [True, False])
def test_both_forms_compile_whole_with_dynamic_shapes(concat):
    # A graph without breaks reads no length back; one graph a form serves all lengths.
    torch._dynamo.reset()
    model = resampler(concat_latents=concat, depth=1)
    fast = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for sizes in (LENGTHS, [3, 8]):
        media = torch.randn(sum(sizes), 24, requires_grad=True)
        grids = torch.randn(len(sizes), 9, 24, requires_grad=True)
        mask = torch.arange(9) < torch.tensor(sizes).unsqueeze(1)
        for x, call in (
            (media, lambda m, x, sizes=sizes: m(x, cu_seqlens=lengths(*sizes), max_seqlen=max(sizes))),
            (grids, lambda m, x, mask=mask: m(x, mask)),
            (grids, lambda m, x: m(x)),
        ):
            assert_same(model, x, call(fast, x), call(model, x))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs + 3
    bad = torch.tensor([0, 5, 3], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"cu_seqlens: wanted values that never fall, got 5 then 3 at \[2\]"):
        fast(torch.randn(6, 24), cu_seqlens=bad, max_seqlen=6)


def test_checkpointing_changes_nothing_but_memory():
    model = resampler().train()
    media, mask = masked_batch(24)
    plain = model(media, mask)
    saved = []
    model.set_grad_checkpointing(True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        out = model(media, mask)
    assert torch.equal(out, plain) and max(saved) <= 40 * 32
    grads = [torch.autograd.grad(o.square().sum(), list(model.parameters())) for o in (out, plain)]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    torch._dynamo.reset()
    fast = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(fast(media, mask), plain, rtol=1e-5, atol=1e-6)
    model.set_grad_checkpointing(False)
    assert not model.checkpointing


def test_autocast_and_bfloat16():
    for options in ({}, {"qk_norm": True}):
        model = resampler(**options)
        media, mask = masked_batch(24)
        want = model(media, mask)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(media, mask)
        half = model.bfloat16()(media.bfloat16(), mask)
        for got in (mixed, half):
            assert (got.float() - want).abs().mean() < 0.02 * want.abs().mean()


def test_the_size_is_the_papers():
    with torch.device("meta"):
        count = sum(p.numel() for p in PerceiverResampler(in_dim=1024).parameters())
        flamingo = sum(p.numel() for p in PerceiverResampler(in_dim=1024, head_dim=64).parameters())
        default = PerceiverResampler()
    assert round(count / 1e6, 1) == 38.1 and round(flamingo / 1e6, 1) == 31.8
    assert default.latents.shape == (256, 1024) and default.in_proj.weight.shape == (1024, 768)
    assert default.num_features == 1024 and default.no_weight_decay() == {"latents"}
    assert 0.018 < PerceiverResampler(**SMALL).latents.std() < 0.022


def flamingo_state(depth, dim, inner, ff, latents):
    state = {"latents": torch.randn(latents, dim), "norm.weight": torch.randn(dim), "norm.bias": torch.randn(dim)}
    for i in range(depth):
        for name in ("0.norm_media", "0.norm_latents", "1.0"):
            state |= {f"layers.{i}.{name}.{end}": torch.randn(dim) for end in ("weight", "bias")}
        shapes = {"0.to_q": (inner, dim), "0.to_kv": (2 * inner, dim), "0.to_out": (dim, inner)}
        for name, shape in (shapes | {"1.1": (ff, dim), "1.3": (dim, ff)}).items():
            state[f"layers.{i}.{name}.weight"] = torch.randn(shape) * 0.2
    return state


def flamingo(state, x, heads):
    """open_flamingo's resampler, in its own layout; x (S, dim)."""

    def norm(z, name):
        return nnf.layer_norm(z, z.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    z = state["latents"]
    for i in range(2):
        name = f"layers.{i}"
        media, queries = norm(x, f"{name}.0.norm_media"), norm(z, f"{name}.0.norm_latents")
        q = queries @ state[f"{name}.0.to_q.weight"].T
        k, v = (torch.cat((media, queries)) @ state[f"{name}.0.to_kv.weight"].T).chunk(2, 1)
        q, k, v = (t.unflatten(1, (heads, -1)).transpose(0, 1) for t in (q, k, v))
        seen = (q @ k.transpose(1, 2) * q.shape[-1] ** -0.5).softmax(-1) @ v
        z = z + seen.transpose(0, 1).flatten(1) @ state[f"{name}.0.to_out.weight"].T
        z = z + nnf.gelu(norm(z, f"{name}.1.0") @ state[f"{name}.1.1.weight"].T) @ state[f"{name}.1.3.weight"].T
    return norm(z, "norm")


def test_open_flamingos_weights_load_exactly():
    model = resampler(in_dim=32, head_dim=16)
    state = flamingo_state(2, 32, 64, 48, 5)
    model.load_flamingo(state)
    media = torch.randn(2, 7, 32)
    want = torch.stack([flamingo(state, clip, 4) for clip in media])
    torch.testing.assert_close(model(media), want, rtol=1e-4, atol=1e-5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    short = {name: value for name, value in state.items() if name != "layers.1.0.to_q.weight"}
    for bad, message in (
        (state | {"frame_embs": torch.zeros(4, 32)}, "state: wanted the names of an open_flamingo resampler, got fr"),
        (state | {"latents": torch.zeros(6, 32)}, r"state: wanted latents of shape \(5, 32\), got \(6, 32\)"),
        (short, "state: wanted values for layers.1.attn.q.weight too, got none"),
    ):
        with pytest.raises(ValueError, match=message):
            model.load_flamingo(bad)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match=r"state: wanted values for in_proj.weight too"):
        resampler(head_dim=16).load_flamingo(state)


def test_bad_input_is_named():
    model, media, packed = resampler(), torch.randn(2, 3, 24), torch.randn(6, 24)
    for call, message in (
        (lambda: resampler(heads=5), "heads: wanted a divisor of width 32, got 5"),
        (lambda: resampler(depth=0), "depth: wanted a whole number of at least 1, got 0"),
        (lambda: resampler(out_dim=0), "out_dim: wanted a whole number of at least 1, got 0"),
        (lambda: model(media[0, 0]), "media: wanted 2 or 3 dimensions"),
        (lambda: model(media.int()), "media: wanted float32"),
        (lambda: model(media[..., :8]), r"media: wanted a width of in_dim = 24, got shape \(2, 3, 8\)"),
        (lambda: model(media, torch.ones(2, 3)), "mask: wanted bool, got float32"),
        (lambda: model(media, torch.ones(2, 4).bool()), r"mask: wanted shape \(2, 3\) like media, got \(2, 4\)"),
        (lambda: model(media, cu_seqlens=lengths(6)), "cu_seqlens: wanted None beside media"),
        (lambda: model(media, max_seqlen=3), "max_seqlen: wanted None beside media"),
        (lambda: model(packed), r"cu_seqlens: wanted \(B \+ 1,\) int32 beside packed media"),
        (lambda: model(packed, torch.ones(2, 3).bool(), cu_seqlens=lengths(6)), "mask: wanted None beside packed"),
        (lambda: model(packed, cu_seqlens=lengths(6).long()), "cu_seqlens: wanted int32, got int64"),
        (lambda: model(packed, cu_seqlens=lengths(4, 3)), "cu_seqlens: wanted a last value of at most 6"),
        (lambda: model(packed, cu_seqlens=lengths(4, -1, 3)), "cu_seqlens: wanted values that never fall, got 4"),
        (lambda: model(packed, cu_seqlens=lengths(4, 2), max_seqlen=3), "max_seqlen: wanted at least 4, got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: looks for device synchronisations")
def test_a_gpu_agrees_waits_for_nothing_and_shows_bad_lengths():
    model = resampler()
    media, mask = masked_batch(24)
    packed = torch.randn(17, 24)
    want = model(media, mask), model(packed, cu_seqlens=lengths(*LENGTHS))
    model, media, mask, packed, sound = (t.cuda() for t in (model, media, mask, packed, lengths(*LENGTHS)))
    bad = torch.tensor([0, 9, 6, 15, 17], dtype=torch.int32, device="cuda")

    def both():
        outs = model(media, mask), model(packed, cu_seqlens=sound, max_seqlen=9)
        sum(out.square().sum() for out in outs).backward()
        return outs

    both()  # compiles the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        outs, poisoned = both(), model(packed, cu_seqlens=bad, max_seqlen=9)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for a, b in zip(outs, want, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-3, atol=1e-3)
    assert poisoned.isnan().all()
