"""The k best frames in the order of time, whatever scores them."""

import pytest
import torch

import fastvivit as fv
from fastvivit.modular import FrameSelector, ModelScorer
from tests.tiny_captioner import make_dual


def clip(frames, seed=0):
    return torch.randint(256, (3, frames, 32, 32), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.mark.parametrize("seed", range(5))
def test_any_scorer_s_k_best_in_the_order_of_time(seed):
    scores = torch.randn(30, generator=torch.Generator().manual_seed(seed))
    asked = []

    def scorer(frames, query):
        asked.append((tuple(frames.shape), query))
        return scores

    video = clip(30)
    found = FrameSelector(scorer, 7)(video, "a cup")
    # Straight from the definition: how many frames are better than this one.
    best = [i for i in range(30) if sum(other > scores[i] for other in scores) < 7]
    assert found.indices.tolist() == best and asked == [((30, 3, 32, 32), "a cup")]
    assert torch.equal(found.video, torch.stack([video[:, i] for i in best], 1))
    assert torch.equal(found.scores, scores)


def test_of_equal_frames_the_earlier_ones_and_all_of_a_short_clip():
    video = clip(40)
    flat = FrameSelector(lambda frames, query: torch.zeros(len(frames)), 6)
    assert flat(video, "").indices.tolist() == [0, 1, 2, 3, 4, 5]
    steps = FrameSelector(lambda frames, query: [0, 1, 1, 0, 1, 2, 1], 3)
    assert steps(clip(7), "").indices.tolist() == [1, 2, 5]
    short = FrameSelector(lambda frames, query: torch.rand(len(frames)), 16)(clip(5), "")
    assert short.indices.tolist() == [0, 1, 2, 3, 4] and torch.equal(short.video, clip(5))


def test_several_clips_with_queries_of_their_own():
    def scorer(frames, query):
        return frames.float().mean((1, 2, 3)) * (1 if query == "bright" else -1)

    selector, clips = FrameSelector(scorer, 2), [clip(9, 1), clip(4, 2)]
    both = selector(clips, ["bright", "dark"])
    for found, video, query in zip(both, clips, ["bright", "dark"], strict=True):
        assert torch.equal(found.indices, selector(video, query).indices)
    assert not torch.equal(both[0].indices, selector(clips[0], "dark").indices)
    stacked = selector(torch.stack([clips[0], clips[0]]), "dark")
    assert torch.equal(stacked[1].video, selector(clips[0], "dark").video)


@pytest.mark.parametrize("images", [False, True])
def test_a_model_scores_by_the_cosine_of_single_frames(images):
    model, video = make_dual(images), clip(11)
    model.train()
    scorer = ModelScorer(model, batch_size=4)
    found = scorer(video.transpose(0, 1), "the digit moves up")
    assert model.training
    model.eval()
    with torch.no_grad():
        text = model.encode_text(["the digit moves up"])[0]
        for place in range(11):
            frame = video[:, place]
            still = frame[None] if images else torch.stack([frame, frame], 1)[None]
            alone = model.video_proj(model.video(still).pooled)[0]
            wanted = (alone / alone.norm() * text).sum()
            torch.testing.assert_close(found[place], wanted, rtol=1e-4, atol=1e-5)
    assert found.unique().numel() == 11
    selector = FrameSelector.from_model(model, 3, batch_size=5)
    assert selector(video, "the digit moves up").indices.tolist() == sorted(found.topk(3).indices.tolist())


def test_mistakes_are_named():
    ok = FrameSelector(lambda frames, query: torch.zeros(len(frames)), 2)
    with pytest.raises(ValueError, match="scorer: wanted a callable"):
        FrameSelector("siglip")
    with pytest.raises(ValueError, match="k: wanted an int of at least 1, got 0"):
        FrameSelector(ok.scorer, 0)
    with pytest.raises(ValueError, match="query: wanted one string or 2, one a clip, got 3"):
        ok([clip(2), clip(2)], ["a", "b", "c"])
    with pytest.raises(ValueError, match="query: wanted a string for one clip"):
        ok(clip(2), ["a"])
    with pytest.raises(ValueError, match="video: wanted"):
        ok(clip(2)[0], "a")
    with pytest.raises(ValueError, match=r"scorer: wanted scores \(3,\), got shape \(2,\)"):
        FrameSelector(lambda frames, query: torch.zeros(2))(clip(3), "a")
    with pytest.raises(ValueError, match="scorer: wanted a score for each frame, got NaN for 1"):
        FrameSelector(lambda frames, query: [0.0, float("nan")])(clip(2), "a")
    with pytest.raises(ValueError, match="model: wanted a VideoTextModel, got ViViT"):
        ModelScorer(fv.ViViT(fv.ViViTConfig(frames=2, size=32, width=32, depth=1, heads=2)))
