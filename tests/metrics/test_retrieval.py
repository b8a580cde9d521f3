"""Retrieval scores against a sort."""

from importlib import import_module

import pytest
import torch

import fastvivit as fv


def by_sorting(similarity, groups):
    """Rank of each text's video, by sorting: no ties here."""
    order = similarity.argsort(1, descending=True)
    return [(order[i] == g).nonzero().item() + 1 for i, g in enumerate(groups)]


def test_recall_and_median_rank():
    similarity = torch.randn(37, 37, dtype=torch.float64)
    got = fv.metrics.retrieval(similarity)
    for prefix, matrix in (("t2v", similarity), ("v2t", similarity.T)):
        ranks = torch.tensor(by_sorting(matrix, range(37)))
        for k in (1, 5, 10):
            assert got[f"{prefix}_r{k}"] == pytest.approx(100 * (ranks <= k).double().mean().item())
        assert got[f"{prefix}_medr"] == ranks.double().quantile(0.5).item()


def test_several_captions_a_video():
    groups = torch.tensor([0, 0, 1, 2, 2, 2])
    similarity = torch.randn(6, 3)
    got = fv.metrics.retrieval(similarity, groups)
    ranks = by_sorting(similarity, groups.tolist())
    assert got["t2v_r1"] == pytest.approx(100 * sum(r == 1 for r in ranks) / 6)
    # A video is found when any of its captions is first.
    assert got["v2t_r1"] == pytest.approx(
        100 * sum(groups[similarity[:, v].argmax()].item() == v for v in range(3)) / 3
    )


def test_one_caption_of_every_video_at_a_time():
    """Against the definition: each draw a square matrix, in any order of the texts."""
    groups = torch.arange(9).repeat(4)[torch.randperm(36)]
    similarity = torch.randn(36, 9)
    got = fv.metrics.retrieval(similarity, groups, per_caption=True)
    draws = []
    for draw in range(4):
        rows = [[i for i in range(36) if groups[i] == video][draw] for video in range(9)]
        draws.append(fv.metrics.retrieval(similarity[rows]))
    assert got == {name: pytest.approx(sum(one[name] for one in draws) / 4) for name in got}
    whole = fv.metrics.retrieval(similarity, groups.tolist())
    assert got["t2v_r1"] == pytest.approx(whole["t2v_r1"]) and got["v2t_r1"] != whole["v2t_r1"]
    assert fv.metrics.retrieval(similarity[:9], range(9), per_caption=True) == fv.metrics.retrieval(similarity[:9])


def test_ties_and_nan_count_against():
    flat = fv.metrics.retrieval(torch.zeros(20, 20))
    assert flat["t2v_r10"] == 0 and flat["t2v_medr"] == 20 and flat["v2t_r1"] == 0
    assert fv.metrics.retrieval(torch.full((4, 4), float("nan")))["t2v_r1"] == 0
    assert fv.metrics.retrieval(torch.eye(4))["t2v_r1"] == 100


def test_chunks_change_nothing(monkeypatch):
    similarity = torch.randn(23, 23)
    whole = fv.metrics.retrieval(similarity)
    monkeypatch.setattr(import_module("fastvivit.metrics.retrieval"), "_CHUNK", 4)
    assert fv.metrics.retrieval(similarity) == whole


def test_refuses():
    for args, message in (
        ((torch.zeros(3),), "similarity: wanted 2 dimensions"),
        (([[0.0]],), "similarity: wanted a tensor, got list"),
        ((torch.eye(3, dtype=torch.int64),), "similarity: wanted float32"),
        ((torch.zeros(2, 2), [0]), "groups: wanted one for each of 2 texts, got shape (1,)"),
        ((torch.zeros(2, 2), [0.0, 1.0]), "groups: wanted integers, got float32"),
        ((torch.zeros(0, 3),), "similarity: wanted (texts, videos)"),
        ((torch.zeros(4, 3),), "groups: wanted the video of each text, as there are 4 texts and 3 videos"),
        ((torch.zeros(2, 2), [0, 2]), "groups: wanted videos in 0..1, got 0 to 2"),
        ((torch.zeros(2, 2), [0, 0]), "groups: wanted a text for each of 2 videos"),
    ):
        with pytest.raises(ValueError) as caught:
            fv.metrics.retrieval(*args)
        assert message in str(caught.value)
    with pytest.raises(ValueError, match="groups: per_caption wants as many texts for each video, got 1 to 2"):
        fv.metrics.retrieval(torch.zeros(3, 2), [0, 0, 1], per_caption=True)
