"""Temporal mean pooling against a loop over tokens."""

import pytest
import torch

import fastvivit as fv

CFG = fv.ViViTConfig(frames=8, size=32, tubelet=(2, 8, 8), width=32, depth=1, heads=2, ff=64)


def clips(*shapes):
    return [torch.randint(256, (3, *shape), dtype=torch.uint8) for shape in shapes]


def by_hand(out, grids, places):
    mean, mask = torch.zeros(len(grids), places, 32), torch.zeros(len(grids), places, dtype=torch.bool)
    ends = out.cu_seqlens.tolist()
    for b, (_, h, w) in enumerate(grids):
        rows = {}
        for row in range(ends[b], ends[b + 1]):
            if out.place[row] >= 0:
                rows.setdefault(int(out.place[row]) % (h * w), []).append(out.tokens[row])
        for place, found in rows.items():
            mean[b, place], mask[b, place] = torch.stack(found).mean(0), True
    return mean, mask


@pytest.mark.parametrize("cls", [False, True])
@pytest.mark.parametrize("attention", ["joint", "frame", "factorised"])
@pytest.mark.parametrize("ratio", [0.0, 0.7])
def test_a_place_is_the_mean_of_the_slots_in_which_it_was_kept(attention, cls, ratio):
    enc = fv.ViViT(CFG.replace(attention=attention, cls=cls)).eval()
    same = torch.stack(clips((8, 32, 32), (8, 32, 32)))
    ragged = clips((8, 32, 32), (4, 16, 32), (2, 32, 32))
    for video, grids in ((same, [(4, 4, 4)] * 2), (ragged, [(4, 4, 4), (2, 2, 4), (1, 4, 4)])):
        out = enc(video, mask_ratio=ratio)
        mean, mask = fv.temporal_mean(out)
        wanted, kept = by_hand(out, grids, 16)
        torch.testing.assert_close(mean, wanted)
        assert torch.equal(mask, kept) and (ratio == 0 or not mask.all())


def test_gradients_reach_kept_tokens_alone():
    enc = fv.ViViT(CFG.replace(cls=True)).eval()
    out = enc(torch.stack(clips((8, 32, 32))), mask_ratio=0.5)
    (grad,) = torch.autograd.grad(fv.temporal_mean(out)[0].sum(), out.tokens)
    times = torch.bincount(out.place[1:] % 16, minlength=16)
    torch.testing.assert_close(grad[1:], (1 / times[out.place[1:] % 16]).unsqueeze(1).expand(-1, 32))
    assert not grad[0].any()


def test_it_feeds_the_resampler_and_tubes_are_refused():
    enc = fv.ViViT(CFG).eval()
    resampler = fv.PerceiverResampler(32, 32, depth=1, heads=2, latents=4, ff=64)
    mean, mask = fv.temporal_mean(enc(torch.stack(clips((8, 32, 32), (8, 32, 32))), mask_ratio=0.8))
    assert resampler(mean, mask).shape == (2, 4, 32)
    tubes = fv.ViViT(CFG.replace(attention="tubes", tubes=(fv.Tube(kernel=(4, 8, 8), stride=(4, 8, 8)),) * 2))
    with pytest.raises(ValueError, match="out: wanted clips with one grid each, got an encoding by tubes"):
        fv.temporal_mean(tubes(torch.stack(clips((8, 32, 32)))))
