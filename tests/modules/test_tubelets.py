"""Tubelets against the whole clips they were cut from, and cut by hand."""

import copy
import pickle

import pytest
import torch

import fastvivit as fv
import fastvivit.functional as F
from tests.modules.test_dual import dual
from tests.numerics import assert_close

CFG = fv.ViViTConfig(frames=8, size=(64, 48), width=48, depth=2, heads=3, ff=96, pos_std=0.2)
ENCODERS = {
    "joint": {},
    "joint-cls": {"pool": "cls"},
    "frame": {"attention": "frame"},
    "frame-cls": {"attention": "frame", "cls": True},
    "factorised": {"attention": "factorised"},
    "factorised-cls": {"attention": "factorised", "pool": "cls", "positions": "factorised"},
}


def clips(count=3, frames=8, height=64, width=48):
    video = torch.randint(256, (count, frames, height, width, 3), dtype=torch.uint8)
    return video.permute(0, 4, 1, 2, 3)


def encoder(**changes):
    torch.manual_seed(1)
    return fv.ViViT(CFG.replace(**changes))


def by_hand(video, keep, kernel):
    """Each kept tubelet by slicing."""
    t, h, w = kernel
    grid = [length // part for length, part in zip(video.shape[2:], kernel, strict=True)]
    found = []
    for clip, ids in zip(video, keep, strict=True):
        for i in ids.tolist():
            a, b, c = i // (grid[1] * grid[2]) * t, i // grid[2] % grid[1] * h, i % grid[2] * w
            found.append(clip[:, a : a + t, b : b + h, c : c + w])
    return torch.stack(found)


def gradients(enc, *args, head, dtype=None, **options):
    enc = copy.deepcopy(enc) if dtype is None else copy.deepcopy(enc).to(dtype)
    out = enc(*args, **options)
    parts = [out.tokens, out.pooled]
    sum((part * weight.to(part.dtype)).sum() for part, weight in zip(parts, head, strict=True)).backward()
    grads = {name: p.grad for name, p in enc.named_parameters() if p.grad is not None}
    return out, grads


@pytest.mark.parametrize("kernel", [(2, 16, 16), (4, 32, 16), (1, 8, 24)])
def test_cut_is_slicing(kernel):
    video = clips()
    total = (8 // kernel[0]) * (64 // kernel[1]) * (48 // kernel[2])
    keep = F.random_keep(3, total, 0.5)
    got = fv.Tubelets.from_clips(video, keep, kernel)
    assert torch.equal(got.pixels, by_hand(video, keep, kernel))
    assert got.pixels.movedim(1, -1).is_contiguous() and torch.equal(got.keep, keep)
    assert got.size == (8, 64, 48) and got.kernel == kernel and len(got) == 3
    planar = fv.Tubelets.from_clips(list(video.contiguous()), [*keep], kernel)
    assert torch.equal(planar.pixels, got.pixels) and isinstance(planar.keep, list)


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("ragged", [False, True])
def test_encoder_sees_the_same_bits_as_with_keep(kind, ragged):
    enc, video = encoder(**ENCODERS[kind]), clips()
    keep = F.random_keep(3, 48, 0.6)
    if ragged:
        keep = [keep[0], keep[1][:7], keep[2][5:]]
    tubelets = fv.Tubelets.from_clips(video, keep, (2, 16, 16))
    with torch.no_grad():
        shape = enc(video, keep=keep)
    head = [torch.randn_like(shape.tokens), torch.randn_like(shape.pooled)]
    want, want_grads = gradients(enc, video, keep=keep, head=head)
    got, got_grads = gradients(enc, tubelets, head=head)
    assert got.grid == want.grid and torch.equal(got.cu_seqlens, want.cu_seqlens)
    assert torch.equal(got.place, want.place)
    for a, b in zip(got.keep, want.keep, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(got.tokens, want.tokens) and torch.equal(got.pooled, want.pooled)
    assert got_grads.keys() == want_grads.keys()
    for name, grad in want_grads.items():
        assert torch.equal(got_grads[name], grad), name
    # The slow way round, in float64 by the reference: the two may not be wrong together.
    real = (video.double() / 255 - 0.5) / 0.5
    golden, golden_grads = gradients(enc, real, keep=keep, head=head, dtype=torch.float64)
    own, own_grads = gradients(enc, real.float(), keep=keep, head=head)
    assert_close("tokens", got.tokens, golden.tokens, own.tokens, torch.float32)
    for name, grad in golden_grads.items():
        if name.startswith("embed."):
            assert_close(name, got_grads[name], grad, own_grads[name], torch.float32)


def test_float_pixels_and_their_gradient():
    enc, keep = encoder(), F.random_keep(2, 48, 0.5)
    video = torch.randn(2, 3, 8, 64, 48, requires_grad=True)
    head = torch.randn(2, 48)
    (want,) = torch.autograd.grad((enc(video, keep=keep).pooled * head).sum(), video)
    (got,) = torch.autograd.grad((enc(fv.Tubelets.from_clips(video, keep, (2, 16, 16))).pooled * head).sum(), video)
    assert torch.equal(got, want) and got.any()


@pytest.mark.parametrize("layout", ["planar", "stepped", "backwards"])
def test_any_strides(layout):
    enc, keep = encoder().eval(), F.random_keep(2, 48, 0.5)
    tubelets = fv.Tubelets.from_clips(clips(2), keep, (2, 16, 16))
    pixels = {
        "planar": lambda p: p.contiguous(),
        "stepped": lambda p: torch.stack([p, p], 1)[:, 0],
        "backwards": lambda p: p.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0),
    }[layout](tubelets.pixels)
    assert pixels.stride() != tubelets.pixels.stride()
    assert torch.equal(enc(fv.Tubelets(pixels, keep, (8, 64, 48))).tokens, enc(tubelets).tokens)


def test_pixels_standing_together_are_not_copied(monkeypatch):
    enc, keep = encoder().eval(), F.random_keep(2, 48, 0.5)
    tubelets, seen = fv.Tubelets.from_clips(clips(2), keep, (2, 16, 16)), []
    real = F.tubelet_embed
    monkeypatch.setattr(F, "tubelet_embed", lambda v, *a, **k: seen.append(v.data_ptr()) or real(v, *a, **k))
    enc(tubelets[1:])
    assert seen == [tubelets.pixels[24:].data_ptr()]


def test_other_sizes_than_the_positions():
    enc, video = encoder().eval(), clips(2, 4, 32, 80)
    keep = F.random_keep(2, 20, 0.5)
    tubelets = fv.Tubelets.from_clips(video, keep, (2, 16, 16))
    assert torch.equal(enc(tubelets).tokens, enc(video, keep=keep).tokens)
    with pytest.raises(ValueError, match="video: wanted at most 4 time slots"):
        enc(fv.Tubelets.from_clips(clips(1, 16), None, (2, 16, 16)))


def test_images_take_the_image_path():
    enc = encoder().eval()
    images, keep = clips()[:, :, 0], F.random_keep(3, 12, 0.5)
    patches = fv.Tubelets.from_clips(images, keep, (16, 16))
    assert patches.size == (64, 48) and patches.pixels.shape == (18, 3, 16, 16)
    assert torch.equal(enc(patches).tokens, enc(images, keep=keep).tokens)
    assert enc(patches).grid == enc(images, keep=keep).grid
    with pytest.raises(ValueError, match="images=False"):
        encoder(images=False)(patches)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_weights_and_autocast(dtype):
    enc, video, keep = encoder().eval(), clips(2), F.random_keep(2, 48, 0.5)
    tubelets = fv.Tubelets.from_clips(video, keep, (2, 16, 16))
    with torch.autocast("cpu", dtype):
        assert torch.equal(enc(tubelets).tokens, enc(video, keep=keep).tokens)
    enc = enc.to(dtype)
    assert torch.equal(enc(tubelets).tokens, enc(video, keep=keep).tokens)


def test_compiled_whole():
    enc, keep = encoder().eval(), F.random_keep(2, 48, 0.5)
    tubelets = fv.Tubelets.from_clips(clips(2), keep, (2, 16, 16))
    compiled = torch.compile(enc, fullgraph=True, backend="eager")
    assert torch.equal(compiled(tubelets).tokens, enc(tubelets).tokens)


def test_slices_stack_and_travel():
    keep = [ids[: 5 + i] for i, ids in enumerate(F.random_keep(4, 48, 0.5))]
    whole = fv.Tubelets.from_clips(clips(4), keep, (2, 16, 16))
    assert [whole[i].counts for i in (0, -1)] == [(5,), (8,)]
    part = whole[1:3]
    assert part.counts == (6, 7) and torch.equal(part.pixels, whole.pixels[5:18])
    assert part.pixels.data_ptr() == whole.pixels[5:].data_ptr()
    for again in (
        fv.Tubelets.stack([whole[0], part, whole[3]]),
        pickle.loads(pickle.dumps(whole)),
        whole.to("cpu", non_blocking=True),
    ):
        assert again.counts == whole.counts and again.size == whole.size
        assert torch.equal(again.pixels, whole.pixels) and torch.equal(again.ids, whole.ids)
    stacked = fv.Tubelets.stack([whole[0], whole[0]])
    assert stacked.counts == (5, 5) and isinstance(stacked.keep, list)
    assert stacked.pixels.movedim(1, -1).is_contiguous()
    with pytest.raises(IndexError):
        whole[4]
    assert len(list(whole)) == 4
    with pytest.raises(ValueError, match="clip: wanted a range of at least one clip"):
        whole[2:2]
    with pytest.raises(ValueError, match="parts: wanted one size"):
        fv.Tubelets.stack([whole, fv.Tubelets.from_clips(clips(1, 4), None, (2, 16, 16))])


def test_loaders_pin_both_parts_in_the_same_layout(monkeypatch):
    from torch.utils.data._utils.pin_memory import pin_memory

    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: pinned.append(tensor) or tensor.clone())
    tubelets = fv.Tubelets.from_clips(clips(2), F.random_keep(2, 48, 0.5), (2, 16, 16))
    found = pin_memory({"video": tubelets, "caption": ["a", "b"]})["video"]
    assert pinned[0] is tubelets.pixels and pinned[1] is tubelets.ids and len(pinned) == 2
    assert torch.equal(found.pixels, tubelets.pixels) and found.pixels.movedim(1, -1).is_contiguous()
    assert torch.equal(found.keep, tubelets.keep)


def test_whole_model_takes_them():
    model = dual()
    config = model.video.config
    video = torch.randint(256, (3, 3, config.frames, *config.size), dtype=torch.uint8)
    keep = F.random_keep(3, config.tokens, 0.5)
    tubelets = fv.Tubelets.from_clips(video, keep, config.tubelet)
    assert torch.equal(model.encode_video(tubelets), model.encode_video(video, keep=keep))
    texts = ["a", "b", "c"]
    assert torch.equal(model.losses(tubelets, texts)["loss"], model.losses(video, texts, keep=keep)["loss"])


PIXELS = torch.zeros(4, 3, 2, 16, 16, dtype=torch.uint8)
IDS = torch.tensor([[0, 3], [1, 2]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((PIXELS[0], IDS, (8, 64, 48)), "keep: wanted 3 ids|size: wanted 2"),
        ((PIXELS.long(), IDS, (8, 64, 48)), "pixels: wanted uint8"),
        ((PIXELS, IDS, (64, 48)), "size: wanted 3 whole numbers"),
        ((PIXELS, IDS, (8, 63, 48)), "size: wanted H a multiple of the tubelet's 16, got 63"),
        ((PIXELS, IDS.int(), (8, 64, 48)), "keep: wanted int64"),
        ((PIXELS, IDS[:1], (8, 64, 48)), "keep: wanted 4 ids, one a tubelet of pixels, got 2"),
        ((PIXELS, torch.tensor([[0, 48], [1, 2]]), (8, 64, 48)), r"keep: wanted ids in 0..47, got 48"),
        ((PIXELS, torch.tensor([[0, -1], [1, 2]]), (8, 64, 48)), r"keep: wanted ids in 0..47, got -1"),
        ((PIXELS, torch.tensor([[0, 1], [2, 2]]), (8, 64, 48)), r"ascend in each clip, got \[2, 2\] in clip 1"),
        ((PIXELS, torch.tensor([[1, 0], [2, 3]]), (8, 64, 48)), r"ascend in each clip, got \[1, 0\] in clip 0"),
        ((PIXELS, [], (8, 64, 48)), "keep: wanted"),
        ((PIXELS, None, (8, 64, 48)), "keep: wanted .* got NoneType"),
        ((PIXELS[:0], [IDS[0, :0]], (8, 64, 48)), "keep: wanted at least one tubelet"),
    ],
)
def test_bad_tubelets(arguments, message):
    with pytest.raises(ValueError, match=message):
        fv.Tubelets(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((clips(2), IDS, (2, 16, 32)), "video: wanted W a multiple of the tubelet's 32, got 48"),
        ((clips(2), IDS, (16, 16)), "kernel: wanted 3 whole numbers"),
        ((clips(3), IDS, (2, 16, 16)), "keep: wanted ids of 3 clips like video, got of 2"),
        ((clips(2), IDS + 46, (2, 16, 16)), "keep: wanted ids in 0..47"),
        (([clips(1)[0], clips(1, 4)[0]], IDS, (2, 16, 16)), "video: wanted clips of one shape"),
    ],
)
def test_bad_clips(arguments, message):
    with pytest.raises(ValueError, match=message):
        fv.Tubelets.from_clips(*arguments)


def test_what_encoders_refuse():
    enc, tubelets = encoder(), fv.Tubelets(PIXELS, IDS, (8, 64, 48))
    with pytest.raises(ValueError, match="mask_ratio: wanted 0 beside Tubelets, got 0.5"):
        enc(tubelets, mask_ratio=0.5)
    with pytest.raises(ValueError, match="keep: wanted None beside Tubelets"):
        enc(tubelets, keep=IDS)
    with pytest.raises(ValueError, match=r"Tubelets of shape \(3, 4, 16, 16\) like the encoder's weight"):
        encoder(tubelet=(4, 16, 16))(tubelets)
    tubes = fv.ViViTConfig(
        frames=8,
        size=32,
        width=48,
        depth=1,
        heads=3,
        attention="tubes",
        tubes=[fv.Tube(kernel=(2, 16, 16), stride=(2, 16, 16))],
    )
    with pytest.raises(ValueError, match="attention='tubes'"):
        fv.ViViT(tubes)(tubelets)
