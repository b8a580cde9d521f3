"""Retrieval over a manifest: what the training's evaluation says, and who was found."""

import json

import pytest
import torch

import fastvivit as fv
from fastvivit.evaluation import Reading, retrieval
from tests.tiny_captioner import make_dual


def test_scores_are_those_of_the_model_s_cosines(manifest, tmp_path):
    model, told = make_dual().train(), []
    captions = [["the digit one", "a digit"], ["moves up"], ["moves down then left", "down"], ["two"]]
    rows = [(str(name), said, {}) for name, said in zip((0, 1, 3, 4), captions, strict=True)]
    path = manifest(rows[0], ("broken", ["nothing"], {}), *rows[1:])
    found = retrieval(
        model, path, reading=Reading(batch_size=2, progress=told.append), predictions=tmp_path / "found.jsonl"
    )
    assert model.training and sum(told) == 5
    model.eval()
    entries = [entry for entry in fv.data.read_manifest(path) if entry.video.stem != "broken"]
    with torch.no_grad():
        videos = torch.cat([model.encode_video(fv.data.read_clip(e.video, 4, size=32)[None]) for e in entries])
        texts = model.encode_text([caption for several in captions for caption in several])
    wanted = fv.metrics.retrieval(texts @ videos.T, [0, 0, 1, 2, 2, 3])
    assert {name: found[name] for name in wanted} == wanted and found["clips"] == 4 and found["broken"] == 1
    lines = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    first = [line for line in lines if "rank" in line]
    assert len(first) == 6 and sum(line["rank"] <= 1 for line in first) == round(6 * found["t2v_r1"] / 100)
    assert all((line["best"] == line["video"]) >= (line["rank"] == 1) for line in first)
    assert lines[-1]["video"].endswith("broken.mp4") and lines[-1]["error"]


def test_scores_averaged_over_draws_of_one_caption_a_video(manifest):
    model = make_dual()
    captions = [["the digit one", "a digit"], ["moves up", "two"], ["moves down then left", "down"]]
    path = manifest(*((str(name), said, {}) for name, said in enumerate(captions)))
    found = retrieval(model, path, per_caption=True)
    draws = [
        retrieval(model, manifest(*((str(name), [said[draw]], {}) for name, said in enumerate(captions))))
        for draw in (0, 1)
    ]
    for name in ("t2v_r1", "v2t_r1", "t2v_medr", "v2t_medr"):
        assert found[name] == pytest.approx((draws[0][name] + draws[1][name]) / 2)
    with pytest.raises(ValueError, match="groups: "):
        retrieval(model, manifest(("0", ["up", "down"], {}), ("1", ["two"], {})), per_caption=True)
    with pytest.raises(ValueError, match="model: wanted a VideoTextModel, got ViViT"):
        retrieval(model.video, path)
