"""Every encoder against one dense ViT written here: all tokens of a clip, and a mask that says who sees whom."""

import itertools

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as nnf

import fastvivit as fv
import fastvivit.functional as F

CFG = fv.ViViTConfig(frames=8, size=32, tubelet=(2, 8, 8), width=48, depth=2, heads=3, ff=96, pos_std=0.2)
TUBES = (
    fv.Tube(kernel=(4, 4, 4), stride=(4, 8, 16)),
    fv.Tube(kernel=(6, 8, 8), stride=(2, 16, 8), offset=(0, 2, 4)),
    fv.Tube(kernel=(1, 8, 8), stride=(8, 8, 8)),
)
KINDS = {
    "joint": {},
    "frame": {"attention": "frame", "tubelet": (1, 8, 8)},
    "space_time": {"attention": "factorised", "positions": "factorised"},
    "time_space": {"attention": "factorised", "order": "time_space", "gate": "vector"},
    "tubes": {"attention": "tubes", "tubes": TUBES},
    "cross_view": {"attention": "tubes", "tubes": TUBES, "cross_view": True},
    "coarse": {"tubelet": (4, 16, 16)},
}


def clips(count=2, frames=8, height=32, width=32):
    return torch.randint(256, (count, 3, frames, height, width), dtype=torch.uint8)


def encoder(kind, **changes):
    """An encoder in which nothing is zero by construction: gates open, time and CLS positions drawn."""
    torch.manual_seed(1)
    enc = fv.ViViT(CFG.replace(**KINDS[kind] | changes)).eval()
    with torch.no_grad():
        for name, parameter in enc.named_parameters():
            if name.endswith(("gate", "pos_time", "cls", "cls_pos", "bias")):
                parameter.normal_(0, 0.3)
            if ".extra." in name and parameter.dim() == 2:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return enc


def embedded(enc, clip):
    """(N, D) all tokens of one clip, and for each its (view, slot, place)."""
    x = ((clip / 255 - 0.5) / 0.5).unsqueeze(0)
    c, rows, labels = enc.config, [], []
    tubes = c.tubes if c.attention == "tubes" else [fv.Tube(kernel=c.tubelet, stride=c.tubelet)]
    embeds = enc.embed.tubes if c.attention == "tubes" else [enc.embed]
    for view, (tube, embed) in enumerate(zip(tubes, embeds, strict=True)):
        t, h, w = tube.offset
        conv = nnf.conv3d(x[:, :, t:, h:, w:], embed.weight, embed.bias, tube.stride)[0]
        slots, *size = conv.shape[1:]
        area = size[0] * size[1]
        if c.attention == "frame":
            pos = embed.pos.repeat(slots, 1)
        elif c.positions == "factorised":
            pos = embed.pos.repeat(slots, 1) + embed.pos_time[:slots].repeat_interleave(area, 0)
        else:
            pos = embed.pos[: slots * area]
        rows.append(conv.flatten(1).T + pos)
        labels += [(view, i // area, i % area) for i in range(slots * area)]
    return torch.cat(rows), labels


def msa(attn, x, sees):
    """Attention of (N, D) rows where ``sees`` (N, N) is True."""
    q, k, v = (t.unflatten(-1, (attn.heads, -1)).transpose(0, 1) for t in attn.qkv(x).chunk(3, -1))
    out = nnf.scaled_dot_product_attention(q, k, v, attn_mask=sees)
    return attn.proj(out.transpose(0, 1).flatten(1))


def dense(enc, clip, keep=None):
    """Tokens, pooled and places of one clip (C, T, H, W): kept tokens only, CLS tokens before those they lead."""
    c = enc.config
    x, labels = embedded(enc, clip)
    ids = list(range(len(labels))) if keep is None else keep.tolist()
    axis = {"joint": None, "frame": 1, "factorised": 1, "tubes": 0}[c.attention]

    def of(label):
        return 0 if axis is None else label[axis]

    entries = [(labels[i], i) for i in ids]
    if c.class_token:
        heads = sorted({of(label) for label in labels})
        leads = {"joint": (0, 0, "cls"), "tubes": None}.get(c.attention)
        led = []
        for head in heads:
            label = leads or ((head, 0, "cls") if c.attention == "tubes" else (0, head, "cls"))
            led += [(label, -1)] + [entry for entry in entries if of(entry[0]) == head]
        entries = led
    x = torch.stack([(enc.cls + enc.cls_pos)[0] if i < 0 else x[i] for _, i in entries])
    same = [[of(a) == of(b) for b, _ in entries] for a, _ in entries]
    over = [[c.attention == "tubes" or a[2] == b[2] for b, _ in entries] for a, _ in entries]
    same, over = torch.tensor(same), torch.tensor(over)
    x = enc.pre_norm(x)
    for block in enc.blocks:

        def extra(x, block=block):
            return torch.tanh(block.extra.gate) * msa(block.extra.attn, block.extra.norm(x), over)

        if block.extra is not None and c.order == "time_space":
            x = x + extra(x)
        x = x + msa(block.attn, block.norm1(x), same)
        if block.extra is not None and c.order == "space_time":
            x = x + extra(x)
        x = x + block.mlp(block.norm2(x))
    x = enc.norm(x)
    places = torch.tensor([i for _, i in entries])
    pooled = None
    if c.pool in ("mean", "cls"):
        wanted = (places < 0) == (c.pool == "cls")
        if c.pool == "cls" and c.attention != "joint":
            # Only those that lead a token.
            wanted &= torch.cat([places[1:] >= 0, torch.tensor([False])])
        pooled = x[wanted].mean(0)
    elif c.pool == "attention":
        p = enc.pool
        q, kv = p.attn.q(p.norm_q(p.query)), p.attn.kv(p.norm_k(x))
        q, k, v = (t.unflatten(-1, (c.pool_heads, -1)).transpose(0, 1) for t in (q, *kv.chunk(2, -1)))
        pooled = p.attn.proj(nnf.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1))[0]
    return x, pooled, places


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("cls", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_is_its_dense_definition(kind, cls):
    enc, video = encoder(kind, cls=cls, pre_norm=cls), clips()
    total = enc.config.tokens
    uneven = [torch.randperm(total)[: total // 3].sort().values, torch.randperm(total)[:2].sort().values]
    for keep in (None, F.random_keep(2, total, 0.5), uneven):
        out = enc(video, keep=keep)
        ends = out.cu_seqlens.tolist()
        for i, clip in enumerate(video):
            tokens, pooled, places = dense(enc, clip, None if keep is None else keep[i])
            close(out.tokens[ends[i] : ends[i + 1]], tokens)
            close(out.pooled[i], pooled)
            assert torch.equal(out.place[ends[i] : ends[i + 1]], places)
        assert out.keep is keep


@pytest.mark.parametrize("pool", ["mean", "attention", "cls", None])
@pytest.mark.parametrize("kind", ["joint", "frame", "space_time", "tubes"])
def test_pooling(kind, pool):
    enc, video = encoder(kind, pool=pool), clips()
    assert enc.config.class_token == (pool == "cls")
    some = F.random_keep(2, enc.config.tokens, 0.5)
    for keep in (some, some.sort().values[:, :4]):
        pooled = enc(video, keep=keep).pooled
        if pool is None:
            assert pooled is None
        else:
            close(pooled, torch.stack([dense(enc, clip, ids)[1] for clip, ids in zip(video, keep, strict=True)]))


@pytest.mark.parametrize("kind", KINDS)
def test_masked_tokens_are_the_same_tokens_computed_alone_in_any_order(kind):
    enc, video = encoder(kind), clips(1)
    keep = F.random_keep(1, enc.config.tokens, 0.5)
    mixed = torch.randperm(keep.shape[1])
    out, again = enc(video, keep=keep), enc(video, keep=keep[:, mixed], layers=(0,))
    close(again.tokens, out.tokens[mixed])
    close(again.layers[0], enc(video, keep=keep, layers=(0,)).layers[0][mixed])
    assert torch.equal(again.place, keep[0, mixed])


@pytest.mark.parametrize("kind", KINDS)
def test_clips_of_different_shape_are_each_as_if_alone(kind):
    enc = encoder(kind, cls=True)
    video = [clips(1)[0], clips(1, 8, 32, 48)[0], clips(1)[0]]
    out = enc(video, mask_ratio=0.5)
    for i, clip in enumerate(video):
        mine = slice(out.cu_seqlens[i], out.cu_seqlens[i + 1])
        alone = enc(clip.unsqueeze(0), keep=out.keep[i].unsqueeze(0))
        close(out.tokens[mine], alone.tokens)
        close(out.pooled[i], alone.pooled[0])
        assert torch.equal(out.place[mine], alone.place) and out.grid[i] == alone.grid


@pytest.mark.parametrize("kind", ["space_time", "time_space"])
@pytest.mark.parametrize("cls", [False, True])
def test_a_shut_gate_leaves_the_spatial_model(kind, cls):
    factorised = fv.ViViT(CFG.replace(**KINDS[kind], cls=cls)).eval()
    frame = fv.ViViT(CFG.replace(attention="frame", cls=cls)).eval()
    with torch.no_grad():
        if factorised.embed.pos_time is None:
            factorised.embed.pos.copy_(factorised.embed.pos[:16].repeat(4, 1))
    state = {name: value for name, value in factorised.state_dict().items() if ".extra." not in name}
    state.pop("embed.pos_time", None)
    state["embed.pos"] = state["embed.pos"][:16]
    frame.load_state_dict(state)
    video, keep = clips(), F.random_keep(2, 64, 0.5)
    for ids in (None, keep):
        close(factorised(video, keep=ids).tokens, frame(video, keep=ids).tokens)
    gate = factorised.blocks[0].extra.gate
    factorised(video).pooled.square().sum().backward()
    assert gate.shape == (1 if kind == "space_time" else 48,) and gate.grad.abs().max() > 0


def test_temporal_attention_starts_as_the_spatial_one_with_its_norm():
    block = fv.ViViT(CFG.replace(attention="factorised")).blocks[1]
    assert block.extra.gate.item() == 0
    for mine, spatial in ((block.extra.norm, block.norm1), (block.extra.attn, block.attn)):
        pairs = zip(mine.parameters(), spatial.parameters(), strict=True)
        assert all(torch.equal(a, b) and a is not b for a, b in pairs)


def test_a_shut_gate_between_views_leaves_views_alone():
    enc = fv.ViViT(CFG.replace(**KINDS["cross_view"])).eval()
    plain = fv.ViViT(CFG.replace(**KINDS["tubes"])).eval()
    plain.load_state_dict({n: v for n, v in enc.state_dict().items() if ".extra." not in n})
    video = clips()
    close(enc(video).tokens, plain(video).tokens)
    second = plain(video, keep=torch.arange(16, 28).repeat(2, 1))
    assert plain.config.views == ((2, 4, 2), (2, 2, 3), (1, 4, 4))
    close(plain(video).last_hidden_state[:, 16:28], second.last_hidden_state)
    with torch.no_grad():
        enc.blocks[0].extra.gate.fill_(1)
    assert (enc(video).tokens - plain(video).tokens).abs().max() > 1e-2


def test_factorised_positions_begin_as_positions_repeated_over_time():
    torch.manual_seed(3)
    split = fv.ViViT(CFG.replace(positions="factorised")).eval()
    assert split.embed.pos.shape == (16, 48) and split.embed.pos_time.shape == (4, 48)
    state = split.state_dict()
    state.pop("embed.pos_time")
    state["embed.pos"] = F.resize_positions(state["embed.pos"], (1, 4, 4), (4, 4, 4), how="repeat")
    full = fv.ViViT(CFG).eval()
    full.load_state_dict(state)
    video = clips()
    assert torch.equal(split(video).tokens, full(video).tokens)
    with torch.no_grad():
        split.embed.pos_time.normal_()
        full.embed.pos.copy_(split.embed.table())
    torch.testing.assert_close(split(video).tokens, full(video).tokens)
    other = clips(1, 4, 32, 48)
    close(split(other).tokens, full(other).tokens)
    for enc in (split, full):
        enc.extend_frames(16)
    long = clips(1, 16)
    assert split.embed.pos_time.shape == (8, 48)
    close(split(long).tokens, full(long).tokens)


@pytest.mark.parametrize("changes", [{}, {"positions": "factorised"}, {"attention": "tubes", "tubes": TUBES}])
def test_time_offsets_tell_slots_apart_and_nothing_else(changes):
    enc = fv.ViViT(CFG.replace(**changes))
    for embed in enc.embed.tubes if changes.get("tubes") else [enc.embed]:
        before = embed.table().detach().clone()
        embed.offset_times_(0.5)
        offset = (embed.table().detach() - before).view(embed.grid[0], -1, 48)
        torch.testing.assert_close(offset, offset[:, :1].expand_as(offset))
        assert (offset[1:, 0] - offset[:-1, 0]).norm(dim=-1).gt(1).all() if embed.grid[0] > 1 else not offset.any()


def test_a_tube_without_a_position_says_how_many_frames_it_needs():
    with pytest.raises(ValueError, match=r"frames, size: wanted at least 20 frames for tube 2 of 4 .* got 16"):
        fv.ViViTConfig.base(attention="tubes")
    paper = fv.ViViTConfig.base(attention="tubes", frames=32, size=224)
    assert paper.views == ((2, 7, 7), (3, 7, 7), (2, 7, 7), (1, 14, 14)) and paper.tokens == 539
    enc = encoder("tubes")
    with pytest.raises(ValueError, match=r"video: wanted at least 6 frames for tube 2 of 3 .* got 4"):
        enc(clips(1, 4))
    with pytest.raises(ValueError, match=r"video: wanted at least 10 pixels of height for tube 2 of 3 .* got 8"):
        enc(clips(1, 8, 8, 32))
    with pytest.raises(ValueError, match="strategy: wanted 'random' with tubes"):
        enc(clips(1), mask_ratio=0.5, strategy="tube")


def test_tubes_are_masked_one_by_one_and_grow_with_the_clip():
    enc = encoder("tubes")
    out = enc(clips(3), mask_ratio=0.5)
    shares = torch.bucketize(out.keep, torch.tensor([16, 28]), right=True)
    assert [(shares == view).sum(1).tolist() for view in range(3)] == [[8] * 3, [6] * 3, [8] * 3]
    with pytest.raises(ValueError, match="extend_frames makes room"):
        enc(clips(1, 16))
    enc.extend_frames(16)
    assert enc(clips(1, 16)).grid == ((4, 4, 2), (6, 2, 3), (2, 4, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_images_go_through_any_encoder(kind):
    enc = encoder(kind, tubelet=(KINDS[kind].get("tubelet", (2, 8, 8))[0], 8, 8), cls=True)
    images = clips()[:, :, 0]
    out = enc(images)
    assert out.grid == (1, 4, 4) and out.last_hidden_state.shape == (2, 17, 48)
    keep = F.random_keep(2, 16, 0.5)
    assert enc(images, keep=keep).last_hidden_state.shape == (2, 9, 48)


@pytest.mark.parametrize("cls", [False, True])
@pytest.mark.parametrize("kind", ["joint", "frame", "space_time", "tubes", "cross_view"])
def test_compiles_whole(kind, cls):
    torch._dynamo.reset()
    enc, video = encoder(kind, cls=cls, pool="attention").train(), clips()
    compiled = torch.compile(enc, fullgraph=True, backend="aot_eager")
    for call in ({}, {"mask_ratio": 0.5}):
        torch.manual_seed(5)
        got = compiled(video, **call)
        torch.manual_seed(5)
        want = enc(video, **call)
        torch.testing.assert_close(got.tokens, want.tokens)
        torch.testing.assert_close(got.pooled, want.pooled)
        weight = enc.embed.tubes[0].weight if "tubes" in enc.config.attention else enc.embed.weight
        grads = [torch.autograd.grad(out.pooled.sum(), weight)[0] for out in (got, want)]
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize("kind", ["joint", "frame", "space_time"])
@pytest.mark.parametrize("listed", [False, True])
def test_two_graphs_serve_all_lengths(kind, listed):
    torch._dynamo.reset()
    enc, video = encoder(kind, pool="attention"), clips()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(enc, fullgraph=True, backend=counter)
    for length in (7, 8, 9, 11, 16, 5):
        keep = torch.arange(length).repeat(2, 1)
        close(compiled(video, keep=list(keep) if listed else keep).tokens, enc(video, keep=keep).tokens)
    assert counter.frame_count <= 2


def test_pixels_of_two_dtypes_in_a_list_are_each_their_own():
    enc, (first, second) = encoder("joint"), clips()
    out = enc([first, (second / 255 - 0.5) / 0.5])
    close(out.pooled, enc(torch.stack([first, second])).pooled)


def test_one_tensor_of_ids_serves_a_list_of_clips():
    enc, video = encoder("frame"), clips()
    keep = F.random_keep(2, enc.config.tokens, 0.5)
    out = enc(list(video), keep=keep)
    close(out.tokens, enc(video, keep=keep).tokens)
    assert out.keep is keep


def test_ids_that_were_drawn_are_taken_as_drawn(monkeypatch):
    from fastvivit.modules import vivit
    from fastvivit.modules.clips import draw_keep

    for kind in ("frame", "tubes"):
        enc, video = encoder(kind), clips()
        kept = draw_keep(2, enc.config.views, 0.5)
        wanted = enc(video, keep=kept.ids)
        with monkeypatch.context() as patch:
            patch.setattr(vivit, "in_grid_order", None)
            out = enc(video, keep=kept)
        close(out.tokens, wanted.tokens)
        assert out.keep is kept.ids


def test_a_bad_id_of_a_list_never_becomes_another_clips(monkeypatch):
    from fastvivit.modules import clips as module

    # As on a GPU, where nobody is told of it.
    monkeypatch.setattr(module, "checked_ids", lambda ids, size, name: torch.where(ids < size, ids, -1))
    enc = encoder("joint")
    with pytest.raises(ValueError, match="got -1"):
        enc(clips(), keep=[torch.tensor([0, 1]), torch.tensor([5, 999])])


def test_one_slot_of_positions_serves_no_second_one():
    for changes in ({}, {"positions": "factorised"}, {"attention": "factorised"}):
        enc = fv.ViViT(CFG.replace(frames=2, **changes))
        with pytest.raises(ValueError, match="wanted at most 1 time slots .* got 4; extend_frames"):
            enc(clips())
        enc.extend_frames(8)
        assert enc(clips()).grid == (4, 4, 4)
    frame = fv.ViViT(CFG.replace(frames=2, attention="frame"))
    assert frame(clips()).grid == (4, 4, 4)
    with pytest.raises(ValueError, match="how: wanted"):
        frame.extend_frames(8, how="stretch")


def test_autocast_keeps_rows_narrow_behind_a_gate():
    for kind in ("joint", "space_time", "cross_view"):
        with torch.autocast("cpu", torch.bfloat16):
            assert encoder(kind)(clips(), layers=(0,)).layers[0].dtype == torch.bfloat16


def test_nothing_kept_and_layers_in_the_order_asked_for():
    enc, video = encoder("joint"), clips()
    out = enc(video, keep=torch.empty(2, 0, dtype=torch.int64))
    assert out.last_hidden_state.shape == (2, 0, 48) and not out.pooled.any()
    first, last = enc(video, layers=(0, 1)).layers
    swapped = enc(video, layers=iter((1, 0))).layers
    assert torch.equal(swapped[0], last) and torch.equal(swapped[1], first)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns(kind):
    enc = encoder(kind, cls=True, pool="attention", images=False).train()
    enc(clips(), mask_ratio=0.25).pooled.square().sum().backward()
    assert [n for n, p in enc.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


def test_bad_choices_are_errors_that_name_them():
    for changes, message in (
        ({"pool": "cls", "cls": False}, "cls: wanted True or None with pool='cls', got False"),
        ({"cross_view": True}, "cross_view: wanted attention='tubes' with it, got 'joint'"),
        ({"positions": "factorised", "attention": "frame"}, "positions: wanted 'full' with attention='frame'"),
        ({"pool": "attention", "pool_heads": 7}, "pool_heads: wanted a divisor of width 48, got 7"),
        ({"order": "time"}, "order: wanted one of 'space_time', 'time_space', got 'time'"),
        ({"tubes": ()}, "tubes: wanted at least one, got none"),
        ({"tubes": ("4x4",)}, "tubes: wanted Tube(kernel=, stride=, offset=) each, got '4x4'"),
        ({"tubes": ({"kernel": (2, 2, 2), "strides": 1},)}, "strides: no such field of Tube"),
        ({"tubes": ({"kernel": (2, 0, 2), "stride": (1, 1, 1)},)}, "tubes: wanted kernel of 3 whole numbers"),
    ):
        with pytest.raises(ValueError) as caught:
            CFG.replace(**changes)
        assert message in str(caught.value)
    for config in itertools.chain([CFG.replace(attention="tubes", tubes=TUBES)], [CFG.replace(pool="cls")]):
        assert fv.ViViTConfig.from_dict(config.to_dict()) == config
