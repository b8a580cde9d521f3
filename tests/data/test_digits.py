"""Moving digits: twins with the same pictures, directions that are what the caption says, real files."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from fastvivit.data import ClipDataset, DigitsConfig, EpochSampler, make_clip, probe, write_clip, write_digits
from fastvivit.data.digits import MOTIONS, SPLITS, WORDS, Half, caption, draw_scenes

CONFIGS = [DigitsConfig(), DigitsConfig(every=2), DigitsConfig(frames=8, size=48, digit=24, step=5)]


def half(**changes):
    return Half(**({"digit": 9, "glyph": 3, "motion": "up", "row": 16, "column": 0} | changes))


@pytest.mark.parametrize("config", CONFIGS)
def test_a_twin_has_exactly_the_same_pictures(config):
    for first, second in draw_scenes(20, seed=1, config=config):
        clip, twin = make_clip(first, second, config), make_clip(second, first, config)
        assert clip.shape == (config.frames, config.size, config.size, 3) and clip.dtype == np.uint8
        pictures, twins = (sorted(picture.tobytes() for picture in x) for x in (clip, twin))
        assert pictures == twins
        assert not np.array_equal(clip, twin) and caption(first, second) != caption(second, first)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("motion", MOTIONS)
def test_the_digit_moves_the_way_the_caption_says(config, motion):
    """Of all four ways to shift a picture, only the named one gives the next."""
    clip = make_clip(half(motion=motion), half(digit=6, motion="down" if motion != "down" else "up"), config)
    steps = clip[: config.frames // 2 : config.every, ..., 0]
    for before, after in zip(steps, steps[1:], strict=False):
        fits = {
            name
            for name, way in MOTIONS.items()
            if np.array_equal(np.roll(before, (way[0] * config.step, way[1] * config.step), (0, 1)), after)
        }
        assert fits == {motion}


def test_a_digit_is_drawn_where_it_says():
    clip = make_clip(half(row=16, column=32, motion="right"), half(digit=1))
    rows, columns = np.nonzero(clip[0, ..., 0])
    assert rows.min() >= 16 and rows.max() < 48 and columns.min() >= 32 and columns.max() < 64
    assert clip[0].max() > 200 and np.array_equal(clip[..., 0], clip[..., 2])


def test_scenes_differ_in_digit_and_motion_and_captions_do_not_repeat():
    scenes = draw_scenes(540, seed=0)
    captions = {caption(*scene) for scene in scenes} | {caption(*reversed(scene)) for scene in scenes}
    assert len(captions) == 1080
    assert all(a.digit != b.digit and a.motion != b.motion for a, b in scenes)
    assert len({a.digit for a, _ in scenes}) == 10 and len({a.motion for a, _ in scenes}) == 4
    wanted = r"first the digit (\w+) moves (up|down|left|right), then the digit (\w+) moves (up|down|left|right)"
    assert all(re.fullmatch(wanted, text) and re.fullmatch(wanted, text)[1] in WORDS for text in captions)


def test_every_digit_is_whole_across_its_way():
    for scene in draw_scenes(100, seed=4):
        for part in scene:
            across = part.column if part.motion in ("up", "down") else part.row
            assert across <= 32 and part.row % 16 == part.column % 16 == 0


def test_train_and_heldout_share_no_handwriting():
    used = {
        split: {(h.digit, h.glyph) for scene in draw_scenes(2000, seed=0, split=split) for h in scene}
        for split in SPLITS
    }
    assert len(used["train"]) == 400 and len(used["heldout"]) == 100
    clips = {
        split: {make_clip(half(digit=d, glyph=g), half())[0].tobytes() for d, g in pairs}
        for split, pairs in used.items()
    }
    assert not clips["train"] & clips["heldout"]


def test_files_say_and_show_what_was_drawn(tmp_path, av):
    manifest = write_digits(tmp_path / "digits", 8, seed=5, split="heldout")
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert [row["video"] for row in rows[:3]] == ["00000a.mp4", "00000b.mp4", "00001a.mp4"]
    assert rows[0]["twin"] == "00000b.mp4" and rows[1]["twin"] == "00000a.mp4"
    scenes = draw_scenes(4, seed=5, split="heldout")
    data = ClipDataset(manifest, frames=16, fps=8, size=64)
    for index, row in enumerate(rows):
        first, second = scenes[index // 2][:: 1 if index % 2 == 0 else -1]
        assert row["caption"] == caption(first, second) == data[index]["caption"]
        assert (row["first"], row["second"]) == (first.digit, second.digit)
        assert row["motions"] == [first.motion, second.motion]
        drawn = torch.from_numpy(make_clip(first, second)).permute(3, 0, 1, 2)
        difference = (data[index]["video"].int() - drawn.int()).abs()
        assert difference.max() <= 8 and difference.float().mean() < 0.5
    info = probe(manifest.parent / "00000a.mp4")
    assert (info.width, info.height, info.fps, info.duration, info.codec) == (64, 64, 8, 2, "h264")
    assert data.twin_indices() == [1, 0, 3, 2, 5, 4, 7, 6]
    assert all(batch[0] ^ 1 == batch[1] for batch in EpochSampler(data, 2, pair_twins=True))


def test_the_same_seed_writes_the_same_bytes(tmp_path, av):
    folders = [write_digits(tmp_path / name, 4, seed=seed).parent for name, seed in (("a", 2), ("b", 2), ("c", 3))]
    contents = [[path.read_bytes() for path in sorted(folder.iterdir())] for folder in folders]
    assert len(contents[0]) == 5 and contents[0] == contents[1] != contents[2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: write_digits(path, 3, seed=0), r"clips: wanted an even number .* got 3"),
        (
            lambda path: write_digits(path, 2, seed=0, split="test"),
            r"split: wanted one of \['train', 'heldout'\]",
        ),
        (lambda path: half(motion="sideways"), r"motion: wanted one of .* got 'sideways'"),
        (lambda path: half(digit=10), r"digit, glyph: wanted 0 to 9 and 0 to 49, got 10 and 3"),
        (lambda path: DigitsConfig(step=32), r"step: wanted 1 to less than half of size \(64\), got 32"),
        (lambda path: DigitsConfig(frames=15), r"frames, every: wanted an even number of frames"),
        (lambda path: DigitsConfig(digit=65), r"size, digit: wanted an even size and 8 to size, got 64, 65"),
        (
            lambda path: write_clip(path, np.zeros((2, 7, 8, 3), np.uint8)),
            r"pictures: .* uint8 \(2, 7, 8, 3\)",
        ),
        (lambda path: write_clip(path, np.zeros((2, 8, 8, 3))), r"pictures: wanted uint8 .* got float64"),
        (lambda path: write_clip(path, np.zeros((2, 8, 8, 3), np.uint8), 0), r"fps: wanted a finite number"),
    ],
)
def test_errors(tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path / "out")
    assert not (tmp_path / "out").exists()
