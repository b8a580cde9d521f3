"""The encoder: packed, masked, ragged, compiled; and against a dense ViT written here."""

import pytest
import torch
from torch.nn import functional as nnf

import fastvivit as fv
import fastvivit.functional as F

CFG = fv.ViViTConfig(frames=8, size=64, width=48, depth=2, heads=3, ff=96, pos_std=0.2)


def clips(count=2, frames=8, height=64, width=64):
    return torch.randint(256, (count, 3, frames, height, width), dtype=torch.uint8)


def encoder(**changes):
    torch.manual_seed(1)
    return fv.ViViT(CFG.replace(**changes)).eval()


def dense(enc, video, keep=None, per_frame=False):
    """A plain padded ViT on the encoder's weights: Conv3d, positions, then standard blocks on (B, N, D)."""
    x = (video / 255 - 0.5) / 0.5
    e = enc.embed
    x = nnf.conv3d(x, e.weight, e.bias, e.weight.shape[2:]).flatten(2).transpose(1, 2)
    slots = x.shape[1] // 16
    x = x + (e.pos.repeat(slots, 1) if per_frame else e.pos[: x.shape[1]])
    if keep is not None:
        x = x.gather(1, keep.unsqueeze(2).expand(-1, -1, x.shape[2]))
    if per_frame:
        x = x.unflatten(1, (slots, -1)).flatten(0, 1)
    for block in enc.blocks:
        h = block.norm1(x)
        q, k, v = (t.unflatten(-1, (3, -1)).transpose(1, 2) for t in block.attn.qkv(h).chunk(3, -1))
        x = x + block.attn.proj(nnf.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    x = enc.norm(x)
    return x.unflatten(0, (len(video), -1)).flatten(1, 2) if per_frame else x


def test_joint_attention_is_a_dense_vit():
    enc, video = encoder(), clips()
    keep = F.random_keep(2, 64, 0.75)
    for ids in (None, keep):
        out = enc(video, keep=ids)
        want = dense(enc, video, ids)
        torch.testing.assert_close(out.last_hidden_state, want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(out.pooled, want.mean(1), rtol=1e-4, atol=1e-5)
        assert out.grid == (4, 4, 4) and out.keep is ids


def test_frame_attention_is_an_image_vit_per_frame_and_blind_to_order():
    enc, video = encoder(attention="frame", tubelet=(1, 16, 16)), clips()
    torch.testing.assert_close(enc(video).last_hidden_state, dense(enc, video, per_frame=True), rtol=1e-4, atol=1e-5)
    shuffled = enc(video[:, :, torch.randperm(8)]).pooled
    torch.testing.assert_close(enc(video).pooled, shuffled, rtol=1e-5, atol=1e-6)
    assert (encoder()(video).pooled - encoder()(video.flip(2)).pooled).abs().max() > 1e-3


def test_masked_frames_attend_within_their_own_frame():
    enc, video = encoder(attention="frame", tubelet=(1, 16, 16)), clips(1)
    keep = torch.tensor([[0, 5, 17, 18, 19, 100]])
    out = enc(video, keep=keep)
    alone = [enc(video, keep=keep[:, a:b]).tokens for a, b in ((0, 2), (2, 5), (5, 6))]
    torch.testing.assert_close(out.tokens, torch.cat(alone), rtol=1e-4, atol=1e-5)
    mixed = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(enc(video, keep=keep[:, mixed]).tokens, out.tokens[mixed], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ["joint", "frame"])
def test_clips_of_different_shape_are_each_as_if_alone(attention):
    enc = encoder(attention=attention)
    video = [clips(1)[0], clips(1, 4)[0], clips(1, 8, 32, 96)[0], clips(1, 4)[0], clips(1)[0]]
    out = enc(video, mask_ratio=0.5, layers=(0, 1))
    assert out.cu_seqlens.tolist() == [0, 32, 48, 72, 88, 120] and len(out.keep) == 5
    for i, clip in enumerate(video):
        alone = enc(clip.unsqueeze(0), keep=out.keep[i].unsqueeze(0), layers=(0, 1))
        mine = slice(out.cu_seqlens[i], out.cu_seqlens[i + 1])
        torch.testing.assert_close(out.tokens[mine], alone.tokens, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(out.pooled[i], alone.pooled[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(out.layers[1][mine], alone.layers[1], rtol=1e-4, atol=1e-5)
        assert out.grid[i] == alone.grid
    with pytest.raises(ValueError, match="last_hidden_state: wanted clips with equally many tokens"):
        _ = out.last_hidden_state


def test_one_embedding_a_shape_and_at_most_one_row_move(monkeypatch):
    from fastvivit.modules import vivit as module

    calls = []
    for name in ("tubelet_embed", "gather_tokens", "scatter_tokens"):
        real = getattr(F, name)
        monkeypatch.setattr(F, name, lambda *a, name=name, real=real, **k: calls.append(name) or real(*a, **k))
    assert module.F is F
    enc = encoder()
    enc([clips(1)[0], clips(1, 4)[0], clips(1)[0]], mask_ratio=0.5)
    assert sorted(calls) == ["gather_tokens", "tubelet_embed", "tubelet_embed"]
    calls.clear()
    enc([clips(1)[0], clips(1)[0], clips(1, 4)[0]], mask_ratio=0.5)
    assert calls == ["tubelet_embed"] * 2


def test_uneven_keep_for_a_batch():
    enc, video = encoder(), clips()
    keep = [torch.tensor([3, 60, 7]), torch.tensor([0])]
    out = enc(video, keep=keep)
    assert out.cu_seqlens.tolist() == [0, 3, 4]
    for i in range(2):
        alone = enc(video[i : i + 1], keep=keep[i].unsqueeze(0)).tokens
        torch.testing.assert_close(out.tokens[out.cu_seqlens[i] : out.cu_seqlens[i + 1]], alone, rtol=1e-4, atol=1e-5)


def test_masking_follows_its_generator_and_drops_in_eval_too():
    enc, video = encoder(), clips()
    outs = [enc(video, mask_ratio=0.75, generator=torch.Generator().manual_seed(s)) for s in (3, 3, 4)]
    assert outs[0].keep.shape == (2, 16) and torch.equal(outs[0].tokens, outs[1].tokens)
    assert not torch.equal(outs[0].keep, outs[2].keep)
    assert (enc(video, mask_ratio=0.5, strategy="tube").keep[0].view(4, -1) % 16).unique(dim=0).shape[0] == 1


def test_fewer_frames_use_the_first_positions_and_more_need_extend_frames():
    enc, video = encoder(), clips()
    short = enc(video[:, :, :4])
    torch.testing.assert_close(short.last_hidden_state, dense(enc, video[:, :, :4]), rtol=1e-4, atol=1e-5)
    long = clips(1, 16)
    with pytest.raises(ValueError, match="wanted at most 4 time slots .* got 8; extend_frames makes room"):
        enc(long)
    before = enc.embed.pos.detach().clone()
    enc.extend_frames(16, how="repeat")
    assert enc.config.frames == 16 and enc(long).grid == (8, 4, 4)
    assert torch.equal(enc.embed.pos.view(8, 16, -1)[::2], before.view(4, 16, -1))
    frames = encoder(attention="frame", tubelet=(1, 16, 16))
    frames.extend_frames(16)
    assert frames.embed.pos.shape[0] == 16 and frames(long).grid == (16, 4, 4)


def test_images_have_a_path_of_their_own():
    enc = encoder()
    images = clips()[:, :, 0]
    out = enc(images, mask_ratio=0.5)
    assert out.grid == (1, 4, 4) and out.tokens.shape == (16, 48)
    enc.train()
    enc(images).pooled.sum().backward()
    assert enc.image.weight.grad is not None and enc.embed.weight.grad is None
    with pytest.raises(ValueError, match="images=False"):
        encoder(images=False)(images)


def test_floating_pixels_are_taken_as_they_are():
    enc, video = encoder(), clips()
    torch.testing.assert_close(enc((video / 255 - 0.5) / 0.5).tokens, enc(video).tokens, rtol=1e-4, atol=1e-5)


def test_checkpointing_changes_nothing():
    enc, video = encoder().train(), clips()
    keep = F.random_keep(2, 64, 0.5)
    grads = []
    for enable in (False, True):
        enc.set_grad_checkpointing(enable)
        enc.zero_grad()
        enc(video, keep=keep).pooled.square().sum().backward()
        grads.append({n: p.grad.clone() for n, p in enc.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() and all(torch.equal(grads[0][n], grads[1][n]) for n in grads[0])


def test_drop_path_drops_whole_clips_in_training_only():
    enc, video = encoder(drop_path=0.9), clips(1).repeat(8, 1, 1, 1, 1)
    spread = [(out - out[0]).abs().max() for out in (enc(video).pooled, enc.train()(video).pooled)]
    assert spread[0] < 1e-5 and spread[1] > 1e-2
    block = enc.blocks[-1].drop_path
    kept = block(torch.ones(4000, 1), torch.arange(4000), 4000)
    torch.testing.assert_close(kept.unique(), torch.tensor([0.0, 10.0]))
    assert 0.07 < (kept > 0).float().mean() < 0.13


@pytest.mark.parametrize("attention", ["joint", "frame"])
def test_compiles_whole(attention):
    torch._dynamo.reset()
    enc, video = encoder(attention=attention).train(), clips()
    compiled = torch.compile(enc, fullgraph=True, backend="aot_eager")
    for keep in (None, F.random_keep(2, 64, 0.75), [torch.arange(5), torch.arange(9)]):
        got, want = compiled(video, keep=keep), enc(video, keep=keep)
        torch.testing.assert_close(got.pooled, want.pooled)
        torch.testing.assert_close(got.tokens, want.tokens)
        grads = [torch.autograd.grad(o.pooled.sum(), enc.embed.weight)[0] for o in (got, want)]
        torch.testing.assert_close(*grads)


def test_bad_input_is_an_error_that_names_it():
    enc, video = encoder(), clips()
    ids = torch.zeros(2, 1, dtype=torch.int64)
    for call, message in (
        (lambda: enc(video[0]), "video: wanted 3 channels, got 8"),
        (lambda: enc(video[0, 0]), "video: wanted (B, C, T, H, W) or (B, C, H, W)"),
        (lambda: enc(video[:0]), "video: wanted (B, C, T, H, W) or (B, C, H, W) with B > 0"),
        (lambda: enc([]), "video: wanted at least one clip, got an empty list"),
        (lambda: enc([video]), "video: wanted clips (C, T, H, W) in the list"),
        (lambda: enc(video[:, :, :1]), "video: wanted T a multiple of the tubelet's 2, got 1"),
        (lambda: enc(video[..., :40]), "video: wanted W a multiple of the tubelet's 16, got 40"),
        (lambda: enc(video[:, :2]), "video: wanted 3 channels, got 2"),
        (lambda: enc(video, keep=ids, mask_ratio=0.5), "mask_ratio: wanted 0 beside keep"),
        (lambda: enc(video, keep=ids[:1]), "keep: wanted (B, K) with B = 2"),
        (lambda: enc(video, keep=ids + 64), "keep: wanted ids in 0..63, got 64 at [0, 0]"),
        (lambda: enc(video, keep=[ids[0]]), "keep: wanted a list of 2 tensors, one a clip, got 1 tensors"),
        (lambda: enc(video, keep=[ids[0], ids[0].int()]), "keep: wanted (K,) int64 ids in the list"),
        (lambda: enc(video, keep=[ids[0], ids[0] + 64]), "keep: wanted ids in 0..63, got 64 at [0]"),
        (lambda: enc(video, mask_ratio=1.0), "mask_ratio: wanted 0 <= ratio < 1"),
        (lambda: enc(video, layers=(2,)), "layers: wanted blocks in 0..1, got 2"),
        (lambda: enc.extend_frames(9), "frames: wanted a multiple of the tubelet's t = 2, got 9"),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        assert message in str(caught.value)


def test_bad_configurations_are_errors_that_name_them():
    for changes, message in (
        ({"size": 250}, "size: wanted a multiple of the tubelet's h = 16, got 250"),
        ({"frames": 7}, "frames: wanted a multiple of the tubelet's t = 2, got 7"),
        ({"heads": 5}, "heads: wanted a divisor of width 48, got 5"),
        ({"attention": "divided"}, "attention: wanted one of 'joint', 'factorised', 'frame', 'tubes', got 'divided'"),
        ({"pool": "max"}, "pool: wanted one of 'mean', 'attention', 'cls', None, got 'max'"),
        ({"act": "relu"}, "act: wanted one of 'gelu'"),
        ({"depth": 0}, "depth: wanted a whole number of at least 1, got 0"),
        ({"tubelet": (2, 16)}, "tubelet: wanted 3 whole numbers"),
        ({"std": 0.0}, "std: wanted values above 0"),
        ({"mean": (0.5, 0.5)}, "mean: wanted a number or 3 (one a channel)"),
        ({"drop_path": 1.0}, "drop_path: wanted 0 <= rate < 1"),
        ({"head": 4}, "head: no such field of ViViTConfig (did you mean 'heads'?)"),
    ):
        with pytest.raises(ValueError) as caught:
            CFG.replace(**changes)
        assert message in str(caught.value)


def test_presets_are_those_of_the_paper():
    sizes = {"tiny": 5, "small": 22, "base": 87, "large": 305}
    for name, millions in sizes.items():
        with torch.device("meta"):
            enc = fv.ViViT(getattr(fv.ViViTConfig, name)(images=False, pool=None))
        blocks = sum(p.numel() for n, p in enc.named_parameters() if not n.endswith("pos"))
        assert round(blocks / 1e6) == pytest.approx(millions, abs=2), (name, blocks)
    cfg = fv.ViViTConfig.base(frames=256)
    assert cfg.tokens == 32768 and fv.ViViTConfig.from_dict(cfg.to_dict()) == cfg


def test_no_weight_decay_and_features():
    enc = encoder()
    assert enc.no_weight_decay() == {"embed.pos", "image.pos"} and enc.num_features == 48


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: looks for device synchronisations")
@pytest.mark.parametrize("attention", ["joint", "frame", "factorised"])
@pytest.mark.parametrize("pool", ["mean", "attention", "cls"])
def test_no_step_waits_for_the_device(attention, pool):
    enc = encoder(attention=attention, pool=pool).cuda().train()
    video, keep = clips().cuda(), F.random_keep(2, 64, 0.5, device="cuda")
    ragged = [video[0], video[1][:, :4], video[0]]
    enc(video, keep=keep).pooled.sum().backward()  # compiles the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        enc(video, keep=keep).pooled.sum().backward()
        enc(video, mask_ratio=0.5, generator=torch.Generator("cuda")).pooled.sum().backward()
        enc(ragged, mask_ratio=0.5).pooled.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "changes",
    [{}, {"pool": "cls"}, {"attention": "factorised"}, {"attention": "frame", "cls": True}, {"pre_norm": True}],
    ids=["joint", "class token", "factorised", "frames with class tokens", "pre-norm"],
)
def test_begin_and_finish_are_the_forward_to_the_bit(changes):
    enc, video = encoder(depth=3, **changes), clips()
    keep = [torch.randperm(64)[:count] for count in (9, 5)]
    whole = enc(video, keep=keep, layers=(2, 1))
    for upto in range(4):
        begun = enc.begin(video, keep=keep, upto=upto)
        assert begun.blocks == upto
        out = enc.finish(begun, layers=[layer for layer in (2, 1) if layer >= upto])
        for name in ("tokens", "place", "cu_seqlens", "pooled"):
            assert torch.equal(getattr(out, name), getattr(whole, name))
        assert out.keep is keep and out.grid == whole.grid and out.counts == whole.counts
        assert all(map(torch.equal, out.layers, whole.layers))
    drawn = [enc.begin(video, mask_ratio=0.5, generator=torch.Generator().manual_seed(1), upto=2) for _ in range(2)]
    assert torch.equal(drawn[0].x, drawn[1].x) and drawn[0].keep.shape == (2, 32)
    for call, message in (
        (lambda: enc.begin(video, upto=4), r"upto: wanted 0\.\.3 blocks, got 4"),
        (lambda: enc.begin(video, keep=keep, mask_ratio=0.5), "mask_ratio: wanted 0 beside keep"),
        (lambda: enc.finish(drawn[0], layers=(1,)), r"layers: wanted blocks in 2\.\.2, got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_frozen_blocks_are_those_before_anything_trained():
    enc = encoder(depth=3, pool="cls")
    assert enc.frozen_blocks() == 0
    enc.requires_grad_(False)
    assert enc.frozen_blocks() == enc.frozen_blocks(images=True) == 3
    enc.blocks[1].norm1.weight.requires_grad_(True)
    assert enc.frozen_blocks() == 1
    enc.embed.bias.requires_grad_(True)
    assert (enc.frozen_blocks(), enc.frozen_blocks(images=True)) == (0, 1)
    enc.cls_pos.requires_grad_(True)
    assert enc.frozen_blocks(images=True) == 0
