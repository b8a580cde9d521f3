"""Cross-attention and pooling over packed tokens, against PyTorch's own multi-head attention."""

import pytest
import torch
from torch import nn
from torch.nn import functional as nnf

from fastvivit.modules.cross import AttentionPool, CrossAttention
from tests.numerics import check

LENGTHS = [5, 0, 9, 1]


def lengths(*values):
    return torch.tensor([0, *values]).cumsum(0).int()


def randomised(module):
    """Every parameter away from its special start: norms off 1, biases off 0."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, parameter.detach().mean().item(), 0.2)
    return module


def clip_by_clip(module, x, media, queries):
    """CrossAttention's equation, a clip at a time with whole matrices; clips without media get the bias."""
    outs = []
    for q_rows, rows in zip(x.split(queries), media.split(LENGTHS), strict=True):
        q = module.q_norm(module.q(q_rows).unflatten(1, (module.heads, -1))).transpose(0, 1)
        k, v = (t.unflatten(1, (module.kv_heads, -1)).transpose(0, 1) for t in module.kv(rows).chunk(2, 1))
        k, v = (t.repeat_interleave(module.heads // module.kv_heads, 0) for t in (k, v))
        scores = q @ module.k_norm(k).transpose(1, 2) / module.head_dim**0.5
        seen = scores.softmax(-1) @ v if len(rows) else torch.zeros_like(q)
        outs.append(module.proj(seen.transpose(0, 1).flatten(1)))
    return torch.cat(outs)


@pytest.mark.parametrize(("options"), [{}, {"head_dim": 16}, {"qk_norm": True}, {"kv_heads": 1}])
def test_cross_attention_is_dense_attention_clip_by_clip(options):
    module = randomised(CrossAttention(24, 40, 3, **options))
    queries = [2, 3, 0, 4]
    x, media = torch.randn(9, 24, requires_grad=True), torch.randn(15, 40, requires_grad=True)
    out = module(x, media, lengths(*queries), lengths(*LENGTHS), 4, 9)
    want = clip_by_clip(module, x, media, queries)
    torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out[2:5], module.proj.bias.expand(3, -1))
    inputs, up = [x, media, *module.parameters()], torch.randn_like(out)
    got, wanted = (torch.autograd.grad(o, inputs, up, retain_graph=True) for o in (out, want))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def mha_pool(pool, x, cu_seqlens):
    """Multi-head attention of PyTorch on padded, masked tokens, with the pool's weights."""
    sizes = cu_seqlens.diff()
    padded = nn.utils.rnn.pad_sequence(pool.norm_k(x).split(sizes.tolist()), batch_first=True)
    query = pool.norm_q(pool.query).unsqueeze(0).expand(len(sizes), -1, -1)
    out, _ = nnf.multi_head_attention_forward(
        query.transpose(0, 1), padded.transpose(0, 1), padded.transpose(0, 1), x.shape[1], pool.attn.heads,
        torch.cat((pool.attn.q.weight, pool.attn.kv.weight)), torch.cat((pool.attn.q.bias, pool.attn.kv.bias)),
        None, None, False, 0.0, pool.attn.proj.weight, pool.attn.proj.bias, need_weights=False,
        key_padding_mask=torch.arange(padded.shape[1]) >= sizes.unsqueeze(1),
    )  # fmt: skip
    return out.transpose(0, 1)


@pytest.mark.parametrize("queries", [1, 3])
def test_attention_pool_is_multi_head_attention_of_learned_queries(queries):
    pool = randomised(AttentionPool(32, 8, queries))
    cu_seqlens = lengths(5, 9, 1)
    x = torch.randn(15, 32, requires_grad=True)

    def plain(x):
        return mha_pool(pool.to(x.dtype), x, cu_seqlens).squeeze(1)

    def packed(x):
        return pool.to(x.dtype)(x, cu_seqlens, 9)

    assert packed(x).shape == ((3, 32) if queries == 1 else (3, 3, 32))
    check(packed, plain, [x], torch.float32)
    # Queries learn: their gradient is that of the dense formula too.
    up = torch.randn_like(packed(x))
    parameters = list(pool.parameters())
    for a, b in zip(*(torch.autograd.grad(f(x), parameters, up) for f in (packed, plain)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_clip_without_tokens_pools_to_the_bias_with_finite_gradients():
    pool = randomised(AttentionPool(32, 4))
    x = torch.randn(6, 32, requires_grad=True)
    out = pool(x, lengths(2, 0, 4))
    torch.testing.assert_close(out[1], pool.attn.proj.bias)
    out.square().sum().backward()
    assert all(t.grad.isfinite().all() for t in (x, *pool.parameters()))
    torch.testing.assert_close(pool(x[2:], lengths(4))[0], out[2], rtol=1e-5, atol=1e-6)
    assert pool(x[:0], lengths()).shape == (0, 32)


def test_pool_compiles_whole_with_dynamic_lengths():
    torch._dynamo.reset()
    pool = AttentionPool(32, 4, 2)
    fast = torch.compile(pool, fullgraph=True, backend="aot_eager", dynamic=True)
    for sizes in ((3, 4), (5, 0, 2)):
        x = torch.randn(sum(sizes), 32)
        torch.testing.assert_close(fast(x, lengths(*sizes), max(sizes)), pool(x, lengths(*sizes), max(sizes)))
    with pytest.raises(ValueError, match="cu_seqlens: wanted values that never fall"):
        fast(torch.randn(7, 32), torch.tensor([0, 5, 3, 7], dtype=torch.int32), 5)


def test_bad_input_is_named():
    pool, x = AttentionPool(32, 4), torch.randn(6, 32)
    for call, message in (
        (lambda: AttentionPool(30, 4), "heads: wanted a divisor of width 30, got 4"),
        (lambda: AttentionPool(32, 4, 0), "queries: wanted a whole number of at least 1, got 0"),
        (lambda: CrossAttention(32, 32, 4, head_dim=-8), "head_dim: wanted a whole number of at least 1, got -8"),
        (lambda: pool(x[:, :8], lengths(6)), r"x: wanted \(M, 32\), got shape \(6, 8\)"),
        (lambda: pool(x.unsqueeze(0), lengths(6)), "x: wanted 2 dimensions"),
        (lambda: pool(x, lengths(6).long()), "cu_seqlens: wanted int32, got int64"),
        (lambda: pool(x, lengths()[:0]), r"cu_seqlens: wanted at least one value \(0\)"),
        (lambda: pool(x, lengths(7)), "cu_seqlens: wanted a last value of at most 6"),
        (lambda: pool(x, lengths(6), 5), "max_seqlen: wanted at least 6, got 5"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
