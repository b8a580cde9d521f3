"""What is kept of a clip."""

import pytest
import torch

import fastvivit as fv
import fastvivit.functional as F
from tests.caption import tiny


def test_the_mean_over_time_of_each_place():
    cap = tiny.captioner()
    out = cap.video(tiny.clips())
    seen = cap.encode_video(tiny.clips())
    want = out.last_hidden_state.unflatten(1, (2, 16)).mean(1)
    torch.testing.assert_close(seen.tokens, want, rtol=1e-5, atol=1e-6)
    assert seen.mask.all() and not seen.tokens.requires_grad
    every = tiny.captioner(over_time=False).encode_video(tiny.clips())
    torch.testing.assert_close(every.tokens, out.last_hidden_state.detach())


def test_clips_of_unequal_counts_are_padded():
    cap = tiny.captioner(over_time=False)
    seen = cap.encode_video([tiny.clips()[0], tiny.clips()[1, :, :2]])
    assert seen.mask.sum(1).tolist() == [32, 16] and not seen.tokens[1, 16:].any()
    torch.testing.assert_close(seen.tokens[1:, :16], cap.encode_video(tiny.clips()[1:2, :, :2]).tokens)


def test_a_batch_is_taken_apart_and_put_together():
    seen = tiny.vision()
    assert len(seen) == 3 and len(list(seen)) == 3
    again = fv.Vision.stack([fv.Vision(seen[0].tokens, seen[0].mask), seen[1:]])
    assert torch.equal(again.tokens, seen.tokens) and torch.equal(again.mask, seen.mask)
    assert torch.equal(seen[-1].tokens, seen.tokens[2:]) and len(seen[:2]) == 2
    short = fv.Vision(torch.ones(1, 3, 24), torch.ones(1, 3, dtype=torch.bool))
    both = fv.Vision.stack([short, seen])
    assert both.tokens.shape == (4, 16, 24) and both.mask[0].sum() == 3 and not both.tokens[0, 3:].any()
    assert seen.to("cpu", non_blocking=True).tokens.device.type == "cpu"
    for clip in (3, -4):
        with pytest.raises(IndexError, match="clip: wanted one of 3"):
            seen[clip]


@pytest.mark.parametrize(
    ("tokens", "mask", "name"),
    [
        (torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool), "tokens"),
        (torch.zeros(2, 3, 4), torch.ones(2, 3), "mask"),
        (torch.zeros(2, 3, 4), torch.ones(2, 4, dtype=torch.bool), "mask"),
        (torch.zeros(0, 3, 4), torch.ones(0, 3, dtype=torch.bool), "mask"),
    ],
)
def test_what_does_not_fit_is_refused(tokens, mask, name):
    with pytest.raises(ValueError, match=f"{name}: wanted"):
        fv.Vision(tokens, mask)
    with pytest.raises(ValueError, match="parts: wanted at least one"):
        fv.Vision.stack([])


def test_tubelets_are_the_clips_under_their_mask():
    cap = tiny.captioner()
    keep = F.random_keep(3, 32, 0.5)
    tubelets = fv.Tubelets.from_clips(tiny.clips(), keep, cap.video.config.tubelet)
    seen, want = cap.encode_video(tubelets), cap.encode_video(tiny.clips(), keep=keep)
    assert torch.equal(seen.tokens, want.tokens) and torch.equal(seen.mask, want.mask)
    texts = ["a red cup", "a cup", "red"]
    assert torch.equal(cap(tubelets, texts), cap(tiny.clips(), texts, keep=keep))
