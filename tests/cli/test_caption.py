"""``fastvivit caption``, and captioning runs from the command line."""

import json
import shutil

import pytest
import torch

import fastvivit as fv
from fastvivit.data import VideoError, read_clip, read_manifest
from fastvivit.describe import describe_files, spaced_windows
from fastvivit.search import find_videos
from fastvivit.train import latest_checkpoint, read_metrics


@pytest.fixture
def files(digits):
    return [entry.video for entry in read_manifest(digits[1])][:3]


def test_a_line_a_file(call, captioner, files):
    code, out, err = call("caption", *files, "--model", captioner, "--max-new-tokens", 5)
    assert code == 0 and "Loading" not in err, err
    model = fv.load_pretrained(captioner / "model")
    clips = torch.stack([read_clip(file, 8, 8.0, 32) for file in files])
    wanted = model.generate(clips, "first", 5)  # the prompt and the rate of the run
    assert [line.split("\t") for line in out.splitlines()] == [[str(f), t] for f, t in zip(files, wanted, strict=True)]
    _, other, _ = call("caption", *files, "--model", captioner, "--max-new-tokens", 5, "--batch-size", 1)
    assert other == out


def test_options_reach_the_model(call, captioner, files, monkeypatch):
    seen = []
    real = fv.VideoCaptioner.generate

    def spy(self, video, prompt, new, **options):
        seen.append((prompt, new, options["num_beams"], None if options["keep"] is None else options["keep"].ids))
        return real(self, video, prompt, new, **options)

    monkeypatch.setattr(fv.VideoCaptioner, "generate", spy)
    base = ["caption", files[0], "--model", captioner, "--max-new-tokens", 3]
    call(*base)
    call(*base, "--prompt", "a digit", "--beams", 2, "--mask-ratio", 0.5)
    call(*base, "--mask-ratio", 0.5)
    call(*base, "--mask-ratio", 0.5, "--seed", 1)
    assert [one[:3] for one in seen] == [("first", 3, 1), ("a digit", 3, 2), ("first", 3, 1), ("first", 3, 1)]
    assert seen[0][3] is None and seen[1][3].shape == (1, 8)
    assert torch.equal(seen[1][3], seen[2][3]) and not torch.equal(seen[2][3], seen[3][3])


def test_windows_and_json(call, captioner, files):
    arguments = ["caption", *files, "--model", captioner, "--max-new-tokens", 3, "--every", 0.5]
    code, out, _ = call(*arguments, "--json")
    rows = json.loads(out)
    assert code == 0 and [(row["start"], row["end"]) for row in rows] == [(0.0, 0.5), (0.5, 1.0)] * 3
    lines = [line.split("\t") for line in call(*arguments)[1].splitlines()]
    assert [line[0] for line in lines] == [row["file"] for row in rows] and lines[1][1:3] == ["0.5", "1.0"]
    assert [line[3] for line in lines] == [row["text"] for row in rows]


def test_broken_files_are_left_out(call, captioner, files, tmp_path):
    shutil.copy(files[0], tmp_path / "good.mp4")
    (tmp_path / "bad.mp4").write_text("no video")
    code, out, err = call("caption", tmp_path, "--model", captioner, "--max-new-tokens", 2)
    assert code == 0 and out.startswith(str(tmp_path / "good.mp4")) and out.count("\n") == 1
    assert "left out: " in err and "bad.mp4" in err
    code, _, err = call("caption", tmp_path / "bad.mp4", "--model", captioner)
    assert code == 2 and "wanted at least one video that can be read, got none of 1" in err
    model = fv.load_pretrained(captioner / "model")
    with pytest.raises(VideoError):
        list(describe_files(model, find_videos([tmp_path / "bad.mp4"]), fps=8.0))


def test_a_checkpoint_writes_what_its_run_writes(call, captioner, files, tmp_path):
    arguments = [*files, "--max-new-tokens", 4]
    _, wanted, _ = call("caption", *arguments, "--model", captioner)
    assert call("caption", *arguments, "--model", latest_checkpoint(captioner))[1] == wanted
    shutil.copytree(captioner, tmp_path / "running")
    shutil.rmtree(tmp_path / "running" / "model")
    assert call("caption", *arguments, "--model", tmp_path / "running")[1] == wanted
    shutil.copytree(captioner / "model", tmp_path / "alone" / "model")
    code, _, err = call("caption", *arguments, "--model", tmp_path / "alone" / "model")
    assert code == 2 and "fps: wanted --fps" in err
    alone = ["--model", tmp_path / "alone" / "model", "--fps", 8, "--prompt", "first"]
    assert call("caption", *arguments, *alone)[1] == wanted


def test_each_command_wants_its_own_kind_of_model(call, captioner, run, files, tmp_path):
    for place in (captioner, captioner / "model", latest_checkpoint(captioner)):
        for arguments in (["embed", files[0], "--out", tmp_path / "x"], ["search", "a digit", files[0]]):
            code, _, err = call(*arguments, "--model", place)
            assert code == 2 and "model: wanted one with a text tower, got a VideoCaptioner" in err
            assert "fastvivit caption" in err
    code, _, err = call("caption", files[0], "--model", run)
    assert code == 2 and "model: wanted a VideoCaptioner, got a VideoTextModel" in err and "video_to_text" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--beams", 0], "beams: wanted at least 1, got 0"),
        (["--max-new-tokens", 0], "max-new-tokens: wanted at least 1, got 0"),
        (["--batch-size", 0], "batch-size: wanted at least 1, got 0"),
        (["--mask-ratio", 1], "mask-ratio: wanted 0 <= ratio < 1, got 1.0"),
        (["--every", 0], "every: wanted seconds above 0, got 0.0"),
    ],
)
def test_mistakes(call, files, arguments, words):
    code, out, err = call("caption", files[0], "--model", "absent", *arguments)
    assert code == 2 and words in err and err.count("\n") == 1 and not out


def test_train_and_finetune_from_files(call, captioner, digits, tmp_path):
    path = tmp_path / "finetune.toml"
    path.write_text(
        f"""
        stage = "finetune"
        start = "{captioner}"
        steps = 3
        batch_size = 4
        [data]
        train = "{digits[0]}"
        heldout = "{digits[1]}"
        fps = 8
        [schedule]
        warmup = 1
        [vision]
        cache = true
        masks = 2
        [captions]
        describe = 3
        max_new_tokens = 4
        [run]
        tensorboard = false
        device = "cpu"
        """
    )
    code, out, err = call("train", path, "--out", tmp_path / "run")
    assert code == 0 and "rouge_l_coco" in out and "report: " in out, err
    assert len(read_metrics(tmp_path / "run")) == 3
    assert call("train", path, "--out", tmp_path / "run", "--resume")[0] == 0
    code, _, err = call("train", path, "--out", tmp_path / "b", "--override", "captions.prompts=x")
    assert code == 2 and "captions.prompts: no such field of CaptionConfig (did you mean 'prompt'?)" in err


def test_windows_of_a_file(files):
    file = files[0]  # 8 pictures at 8 a second
    whole = read_clip(file, 8, 8.0, 32)

    def cut(frames, every):
        return [(start, clip.shape[1]) for start, clip in spaced_windows(file, frames, 8.0, 32, every)]

    assert cut(8, None) == [(0.0, 8)] and cut(4, None) == [(0.0, 4)] and cut(20, None) == [(0.0, 8)]
    assert cut(8, 0.25) == [(0.0, 2), (0.25, 2), (0.5, 2), (0.75, 2)]
    assert cut(2, 0.5) == [(0.0, 2), (0.5, 2)]  # two of the four pictures of each
    assert cut(8, 0.75) == [(0.0, 6)]  # 2 of 6 are no window
    assert cut(8, 0.625) == [(0.0, 5), (0.625, 3)] and cut(8, 100.0) == [(0.0, 8)]
    for start, clip in spaced_windows(file, 8, 8.0, 32, 0.25):
        place = round(start * 8)
        assert torch.equal(clip, whole[:, place : place + 2])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every": 0.0}, "every: wanted seconds above 0, got 0.0"),
        ({"every": float("nan")}, "every: wanted seconds above 0, got nan"),
        ({"batch_size": 0}, "batch_size: wanted at least 1, got 0"),
        ({"beams": 0}, "beams: wanted at least 1, got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens: wanted at least 1, got 0"),
    ],
)
def test_numbers_out_of_range(captioner, files, options, words):
    with pytest.raises(ValueError, match=words):
        next(describe_files(fv.load_pretrained(captioner / "model"), files, fps=8.0, **options))
