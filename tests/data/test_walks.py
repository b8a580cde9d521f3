"""Long clips of walking digits: what they show, and what can't be seen in a quarter of their frames."""

import itertools
import json

import pytest
import torch

from fastvivit.data import ClipDataset, DigitsConfig, write_walks
from fastvivit.data.walks import WALKS, walk_caption

SMALL = DigitsConfig(frames=32, size=32, digit=16, step=16 // 2)


def test_walks_are_counted():
    # Closed walks of four moves without a repeat are the proper colourings of a ring of four with four colours.
    assert len(WALKS) == 3**4 + 3 - 4 * 3
    assert {moves[2:] + moves[:2] for moves in WALKS} == set(WALKS)


def test_a_clip_and_its_twin_are_the_same_frames_in_another_order(tmp_path):
    pytest.importorskip("av")
    manifest = write_walks(tmp_path / "walks", 6, seed=3, split="heldout")
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    data = ClipDataset(manifest, frames=64, fps=8, size=64)
    assert data.twin_indices() == [1, 0, 3, 2, 5, 4]
    for index in range(0, 6, 2):
        row, clip, twin = rows[index], data[index]["video"], data[index + 1]["video"]
        assert row["caption"] == walk_caption(row["first"], tuple(row["motions"]))
        assert rows[index + 1]["motions"] == row["motions"][2:] + row["motions"][:2]
        moved = torch.cat([clip[:, 32:], clip[:, :32]], 1).int()
        assert (moved - twin.int()).abs().float().mean() < 0.5 and not torch.equal(clip, twin)


def test_every_fourth_frame_stands_still(tmp_path):
    pytest.importorskip("av")
    manifest = write_walks(tmp_path / "walks", 4, seed=0)
    thin = ClipDataset(manifest, frames=16, fps=2, size=64)
    full = ClipDataset(manifest, frames=64, fps=8, size=64)
    for index in range(4):
        still, moving = (data[index]["video"].float() for data in (thin, full))
        assert (still - still[:, :1]).abs().mean() < 0.5
        assert all((a - b).abs().mean() > 5 for a, b in itertools.pairwise(moving.unbind(1)))


def test_captions_are_used_once_each_and_files_are_the_same_for_a_seed(tmp_path):
    pytest.importorskip("av")
    folders = [write_walks(tmp_path / str(n), 8, seed=seed, config=SMALL).parent for n, seed in enumerate((1, 1, 2))]
    contents = [[path.read_bytes() for path in sorted(folder.iterdir())] for folder in folders]
    assert contents[0] == contents[1] != contents[2]
    captions = [json.loads(line)["caption"] for line in (folders[0] / "manifest.jsonl").read_text().splitlines()]
    assert len(set(captions)) == 8


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"clips": 3}, "clips: wanted an even number .*, got 3"),
        ({"split": "test"}, r"split: wanted one of \['train', 'heldout'\], got 'test'"),
        ({"config": DigitsConfig(frames=32, every=3)}, "config: wanted frames that are 4 times a way around"),
        ({"config": DigitsConfig(frames=66)}, "config: wanted frames that are 4 times a way around"),
    ],
)
def test_mistakes(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        write_walks(tmp_path / "walks", **{"clips": 2, "seed": 0} | changes)
    assert not (tmp_path / "walks").exists()
