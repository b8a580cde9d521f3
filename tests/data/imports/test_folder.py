"""Which file an id leads to, and what is said where none does."""

from __future__ import annotations

import pytest

from fastvivit.data import import_annotations
from fastvivit.data.imports.folder import VideoFolder


def test_stems_in_sub_folders_under_any_video_suffix(videos):
    folder = VideoFolder(videos("a.mp4", "deep/er/b.MKV", "c.txt", "d.webm.part", ".e.mp4", "deep/a.webm"))
    assert [file.name for file in folder.find("b")] == ["b.MKV"]
    assert [str(file.relative_to(folder.path)) for file in folder.find("a")] == ["a.mp4", "deep/a.webm"]
    assert len(folder) == 3 and not any(folder.find(stem) for stem in ("c", "d", "d.webm", "e", ".e", "A"))


def test_a_title_before_a_youtube_id(videos):
    names = (
        "Tea [Ab_-2VRj-V0].mp4",
        "Tea-cde_fghijkl.mp4",
        "Tea [short].mp4",
        "x [ooooooooooo].mp4",
        "ooooooooooo.avi",
    )
    folder = VideoFolder(videos(*names))
    assert [file.name for file in folder.find("Ab_-2VRj-V0")] == ["Tea [Ab_-2VRj-V0].mp4"]
    assert [file.name for file in folder.find("cde_fghijkl")] == ["Tea-cde_fghijkl.mp4"]
    assert [file.name for file in folder.find("ooooooooooo")] == ["ooooooooooo.avi"]  # its own name comes first
    assert folder.find("short") == []


def annotations(written, *names):
    node = {"duration": 5.0, "timestamps": [[0, 2], [1, 5]], "sentences": ["One.", "Two."]}
    return written("val_1.json", dict.fromkeys(names, node))


def test_missing_and_double_videos_are_counted(written, videos):
    path = annotations(written, "v_ccccccccccc", "v_aaaaaaaaaaa", "v_bbbbbbbbbbb")
    found = import_annotations("activitynet", path, videos("x/v_aaaaaaaaaaa.mp4", "y/v_aaaaaaaaaaa.mkv"))
    assert found.missing == ("v_ccccccccccc", "v_bbbbbbbbbbb") and found.duplicates == ("v_aaaaaaaaaaa",)
    assert [str(entry.video).endswith("x/v_aaaaaaaaaaa.mp4") for entry in found.entries] == [True, True]


def test_nothing_found(written, videos, tmp_path):
    path = annotations(written, "v_ccccccccccc", "v_aaaaaaaaaaa")
    with pytest.raises(ValueError, match="found none among the 1 video files in") as error:
        import_annotations("activitynet", path, videos("other.mp4"))
    assert "one of the 2 videos of" in str(error.value)
    assert "'v_ccccccccccc', for example, would be called v_ccccccccccc.mp4 or ccccccccccc.mp4" in str(error.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"videos: wanted video files \(.avi, .* in .*empty, found none"):
        import_annotations("activitynet", path, tmp_path / "empty")
    with pytest.raises(ValueError, match="videos: wanted a folder of video files, no such folder"):
        import_annotations("activitynet", path, tmp_path / "absent")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("kinetics", "a.json"), "name: wanted one of msrvtt, vatex, .*, got 'kinetics'"),
        (("vatex", "absent.json"), "annotations: wanted a JSON file, no such file: absent.json"),
        (("msrvtt", "absent.csv"), "annotations: wanted a CSV file, no such file: absent.csv"),
    ],
)
def test_bad_arguments(videos, arguments, message):
    with pytest.raises(ValueError, match=message):
        import_annotations(*arguments, videos("a.mp4"))


@pytest.mark.parametrize(
    ("name", "option", "has"),
    [
        ("vatex", {"split": "val"}, "split: wanted an option that VATEX has .subset, limit, seed."),
        ("vatex", {"level": "video"}, "level: wanted an option that VATEX"),
        ("msrvtt", {"first": 16.0}, "first: wanted an option that MSR-VTT has .split, subset, limit, seed."),
        ("egoschema", {"cut_frames": "x"}, "cut_frames: wanted an option that EgoSchema has .split, answers,"),
        ("youcook2", {"references": ["x"]}, "references: wanted an option that YouCook2"),
    ],
)
def test_options_of_other_data_sets_are_refused(name, option, has, tmp_path):
    with pytest.raises(ValueError, match=has):
        import_annotations(name, tmp_path / "absent.json", tmp_path, **option)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("ids.txt", " \n", "subset: wanted at least one id in .*ids.txt, got none"),
        ("ids.json", "[1]", r"ids.json: \[0\]: wanted an id, got 1"),
        ("ids.csv", "video_id\n", "subset: wanted at least one id"),
    ],
)
def test_bad_lists_of_ids(written, videos, name, text, message):
    path, folder = annotations(written, "v_aaaaaaaaaaa"), videos("v_aaaaaaaaaaa.mp4")
    with pytest.raises(ValueError, match=message):
        import_annotations("activitynet", path, folder, subset=written(name, text))
    with pytest.raises(ValueError, match="subset: wanted a text file, no such file: absent"):
        import_annotations("activitynet", path, folder, subset="absent")


def test_another_encoding(videos, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'{"v_x": "\xff"}')
    with pytest.raises(ValueError, match="a.json: wanted UTF-8 text"):
        import_annotations("activitynet", path, videos("a.mp4"))
