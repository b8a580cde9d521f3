"""The gated layer against dense attention, clip by clip, and what it must not see."""

import pytest
import torch
from torch.nn import functional as nnf

from fastvivit.caption.gated import GatedCrossAttention
from fastvivit.caption.media import Media
from tests.caption import tiny

LENGTHS = [4, 0, 7]


def media_of(lengths=LENGTHS, past=2, kept=False, width=20):
    torch.manual_seed(2)
    ends = torch.tensor([0, *lengths]).cumsum(0).int()
    tokens = torch.randn(sum(lengths) + past, width, requires_grad=not kept)
    return Media(tokens=tokens, cu_seqlens=ends, max_seqlen=max(lengths), kept=kept)


def layer_of(ff=0, opened=True):
    torch.manual_seed(1)
    layer = GatedCrossAttention(24, 20, 3, head_dim=8, ff=ff)
    if opened:
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, parameter.detach().mean().item(), 0.3)
    return layer


def dense(layer, x, media):
    """Texts (n, width) of one clip with media (S, media_width)."""
    attn = layer.attn
    q = attn.q(layer.norm(x)).unflatten(-1, (3, 8)).transpose(-3, -2)
    k, v = (t.unflatten(-1, (3, 8)).transpose(-3, -2) for t in attn.kv(media).chunk(2, -1))
    seen = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1) @ v if len(media) else torch.zeros_like(q)
    x = x + layer.gate.tanh() * attn.proj(seen.transpose(-3, -2).flatten(-2))
    if layer.mlp is not None:
        x = x + layer.gate_ff.tanh() * layer.mlp.fc2(nnf.gelu(layer.mlp.fc1(layer.norm_ff(x))))
    return x


@pytest.mark.parametrize("ff", [0, 4])
@pytest.mark.parametrize(("lengths", "kept"), [(LENGTHS, False), (LENGTHS, True), ([5, 5, 5], True)])
@pytest.mark.parametrize("rows", [3, 6])
def test_the_layer_is_dense_attention_clip_by_clip(ff, lengths, kept, rows):
    layer, media = layer_of(ff), media_of(lengths, past=0 if lengths != LENGTHS else 2, kept=kept)
    x = torch.randn(rows, 2, 24, requires_grad=True)
    parts = media.tokens.split([*lengths, len(media.tokens) - sum(lengths)])
    want = torch.cat([dense(layer, x[i : i + 1], parts[i // (rows // 3)]) for i in range(rows)])
    out = layer(x, media)
    torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-5)
    inputs, up = [x, *layer.parameters()] + ([] if kept else [media.tokens]), torch.randn_like(want)
    for a, b in zip(torch.autograd.grad(out, inputs, up), torch.autograd.grad(want, inputs, up), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer(x, media), want, rtol=1e-4, atol=1e-5)  # from kept keys


def test_shut_gates_change_nothing_whatever_the_media():
    for ff in (0, 2):
        layer = layer_of(ff, opened=False)
        x = torch.randn(6, 2, 24)
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            assert torch.equal(layer(x.to(dtype), media_of()), x.to(dtype))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(layer(x, media_of()), x)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("rows", [2, 6])
def test_a_clip_never_sees_another(kept, rows):
    layer, x = layer_of(), torch.randn(rows, 3, 24)
    outs = []
    for shift in (0.0, 5.0):
        media = media_of([5, 5], past=0, kept=kept)
        media.tokens = torch.cat((media.tokens[:5], media.tokens[5:] + shift)).detach()
        outs.append(layer(x, media))
    half = rows // 2
    assert torch.equal(outs[0][:half], outs[1][:half])
    assert (outs[0][half:] != outs[1][half:]).any()


def test_texts_that_do_not_divide_among_clips_are_refused():
    with pytest.raises(ValueError, match="input_ids: wanted as many texts for each of 3 clips, got 4"):
        layer_of()(torch.randn(4, 1, 24), media_of())


def test_the_layer_compiles():
    torch._dynamo.reset()
    layer = layer_of(2)
    fast = torch.compile(layer, backend="aot_eager")
    x = torch.randn(3, 2, 24)
    for _ in range(2):
        torch.testing.assert_close(fast(x, media_of()), layer(x, media_of()), rtol=1e-5, atol=1e-6)


# PyTorch's own, of a tensor that an object brings into the graph.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_layer_can_take_the_place_of_its_own():
    torch._dynamo.reset()
    cap = tiny.captioner()
    want = cap(tiny.vision(), ["a red cup", "cat", "dog"])
    calls = []

    def backend(graph, inputs):
        calls.append(graph)
        return graph.forward

    cap.layers[0] = torch.compile(cap.layers[0], backend=backend)
    torch.testing.assert_close(cap(tiny.vision(), ["a red cup", "cat", "dog"]), want, rtol=1e-5, atol=1e-6)
    assert calls
