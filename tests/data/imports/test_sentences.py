"""YouCook2 and ActivityNet Captions: segments, paragraphs, videos; the first seconds; several describers."""

from __future__ import annotations

import pytest

from fastvivit.data import import_annotations, read_manifest, write_manifest

YOUCOOK2 = {
    "database": {
        "xHr8X2Wpmno": {
            "duration": 311.77,
            "subset": "training",
            "recipe_type": "113",
            "annotations": [
                {"segment": [41, 54], "id": 0, "sentence": "wash the beans"},
                {"segment": [60, 85], "id": 1, "sentence": "boil them in milk"},
            ],
            "video_url": "https://www.youtube.com/watch?v=xHr8X2Wpmno",
        },
        "-dh_uGahzYo": {
            "duration": 200.0,
            "subset": "validation",
            "recipe_type": "226",
            "annotations": [
                {"segment": [9, 50], "id": 0, "sentence": "peel the pears,"},
                {"segment": [51, 60], "id": 1, "sentence": "cut them!"},
            ],
            "video_url": "https://www.youtube.com/watch?v=-dh_uGahzYo",
        },
    }
}
COOKING = ("raw_videos/training/113/xHr8X2Wpmno.mkv", "raw_videos/validation/226/-dh_uGahzYo.mp4")
ACTIVITYNET = {
    "v_uqiMw7tQ1Cc": {
        "duration": 55.15,
        "timestamps": [[0.28, 55.15], [13.79, 54.32]],
        "sentences": ["A weight lifting tutorial is given.", "  The coach helps the guy with  proper posture."],
    },
    "v_bXdq2zI1Ms0": {"duration": 10.5, "timestamps": [[0, 10.5]], "sentences": ["Three men stand on a mat"]},
}
SECOND = {"v_uqiMw7tQ1Cc": {"duration": 55.15, "timestamps": [[1, 30]], "sentences": ["A man lifts weights."]}}


@pytest.fixture
def cooking(written, videos):
    path, folder = written("youcookii_annotations_trainval.json", YOUCOOK2), videos(*COOKING)
    return lambda **options: import_annotations("youcook2", path, folder, **options)


@pytest.fixture
def activities(written, videos):
    path, folder = written("val_1.json", ACTIVITYNET), videos("v_uqiMw7tQ1Cc.mp4", "bXdq2zI1Ms0.webm")
    return lambda **options: import_annotations("activitynet", path, folder, **options)


def test_youcook2_segments(cooking):
    found = cooking()
    assert [(entry.start, entry.end, entry.captions) for entry in found.entries] == [
        (41.0, 54.0, ("wash the beans",)),
        (60.0, 85.0, ("boil them in milk",)),
        (9.0, 50.0, ("peel the pears,",)),
        (51.0, 60.0, ("cut them!",)),
    ]
    assert found.entries[1].video.name == "xHr8X2Wpmno.mkv"
    assert found.entries[1].extra == {
        "id": "xHr8X2Wpmno", "split": "training", "duration": 311.77, "segment": 1, "recipe_type": "113",
    }  # fmt: skip
    assert found.seconds == 13 + 25 + 41 + 9


def test_youcook2_summaries(cooking):
    found = cooking(split="val", level="paragraph")
    (entry,) = found.entries
    assert entry.captions == ("peel the pears. cut them!",)
    assert (entry.start, entry.end, found.seconds) == (0.0, None, 200.0)
    assert "segment" not in entry.extra


def test_youcook2_whole_videos(cooking):
    assert [entry.captions for entry in cooking(level="video").entries] == [
        ("wash the beans", "boil them in milk"),
        ("peel the pears,", "cut them!"),
    ]


def test_youcook2_official_list_of_a_split(cooking, written):
    found = cooking(subset=written("val_list.txt", "226/-dh_uGahzYo\n"))
    assert {entry.extra["id"] for entry in found.entries} == {"-dh_uGahzYo"}


def test_youcook2_test_set_has_no_sentences(written, videos):
    steps = {"abcdefghijk": {"duration": 9.0, "subset": "testing", "annotations": [{"segment": [1, 2], "id": 0}]}}
    path = written("youcookii_annotations_test_segments_only.json", {"database": steps})
    with pytest.raises(ValueError, match=r"database\['abcdefghijk'\].annotations\[0\]: wanted the field 'sentence'"):
        import_annotations("youcook2", path, videos("abcdefghijk.mp4"))


def test_activitynet_segments(activities):
    found = activities()
    assert [(entry.start, entry.end) for entry in found.entries] == [(0.28, 55.15), (13.79, 54.32), (0.0, 10.5)]
    assert found.entries[1].captions == ("The coach helps the guy with proper posture.",)
    assert [entry.video.name for entry in found.entries] == ["v_uqiMw7tQ1Cc.mp4"] * 2 + ["bXdq2zI1Ms0.webm"]
    assert found.entries[1].extra == {"id": "v_uqiMw7tQ1Cc", "duration": 55.15, "segment": 1}


def test_activitynet_first_seconds(activities):
    found = activities(level="paragraph", first=16)
    assert [(entry.start, entry.end) for entry in found.entries] == [(0.0, 16.0), (0.0, None)]  # one is shorter
    assert found.entries[0].captions == (
        "A weight lifting tutorial is given. The coach helps the guy with proper posture.",
    )
    assert found.seconds == 26.5
    assert found.entries[0].extra["segments"] == [[0.28, 55.15], [13.79, 54.32]]
    assert [(entry.start, entry.end) for entry in activities(first=16).entries] == [
        (0.28, 16.28), (13.79, 29.79), (0.0, 10.5),
    ]  # fmt: skip


def test_activitynet_paragraphs_of_two_people(activities, written):
    second = written("val_2.json", SECOND | {"v_zzzzzzzzzzz": SECOND["v_uqiMw7tQ1Cc"]})
    found = activities(level="paragraph", references=[second])
    assert [len(entry.captions) for entry in found.entries] == [2, 1]
    assert found.entries[0].captions[1] == "A man lifts weights."
    assert len(found.skipped) == 1 and "val_2.json: 'v_zzzzzzzzzzz': not a video of" in found.skipped[0]
    with pytest.raises(ValueError, match="references: wanted level 'paragraph' or 'video'"):
        activities(references=[second])


@pytest.mark.parametrize("name", ["uqiMw7tQ1Cc", "v_uqiMw7tQ1Cc"])
def test_activitynet_ids_with_and_without_prefix(activities, written, name):
    found = activities(level="paragraph", subset=written("ids.json", [name]))
    assert [entry.extra["id"] for entry in found.entries] == ["v_uqiMw7tQ1Cc"]


def test_what_is_skipped_is_told(written, videos):
    node = {"duration": 9.0, "timestamps": [[3, 3], [5, 2], [1, 2], [2, 3]], "sentences": ["a.", "b.", " ", "d."]}
    path = written("train.json", {"v_aaaaaaaaaaa": node, "v_bbbbbbbbbbb": {**node, "timestamps": [], "sentences": []}})
    folder = videos("v_aaaaaaaaaaa.mp4", "v_bbbbbbbbbbb.mp4")
    found = import_annotations("activitynet", path, folder)
    assert [entry.captions for entry in found.entries] == [("d.",)] and found.entries[0].extra["segment"] == 3
    place = f"{path}: ['v_aaaaaaaaaaa'].sentences"
    assert found.skipped == (
        f"{place}[2]: an empty sentence",
        f"{place}[0]: a segment from 3.0 to 3.0 s",
        f"{place}[1]: a segment from 5.0 to 2.0 s",
    )
    found = import_annotations("activitynet", path, folder, level="paragraph")
    assert [entry.captions for entry in found.entries] == [("a. b. d.",)]
    assert found.entries[0].extra["segments"] == [[2.0, 3.0]]
    assert found.skipped == (f"{place}[2]: an empty sentence", "v_bbbbbbbbbbb: no sentence")


def test_a_manifest_holds_all_of_it(cooking, tmp_path):
    entries = cooking().entries
    assert read_manifest(write_manifest(tmp_path / "m.jsonl", entries)) == entries


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("youcook2", {"data": {}}, "a.json: wanted the field 'database', got only these: data"),
        ("youcook2", {"database": []}, r"a.json: database: wanted an object, got \[\]"),
        ("youcook2", {"database": {"x": {"subset": "training"}}}, r"database\['x'\]: wanted the field 'duration'"),
        ("activitynet", {"v_x": {"duration": "9"}}, r"\['v_x'\].duration: wanted a number, got '9'"),
        ("activitynet", '{"v_x": {"duration": NaN}}', r"\['v_x'\].duration: wanted a finite number of at least 0"),
        (
            "activitynet",
            {"v_x": {"duration": 9, "timestamps": [[1]], "sentences": ["a"]}},
            r"timestamps\[0\]: wanted a start and an end in seconds, got \[1\]",
        ),
        (
            "activitynet",
            {"v_x": {"duration": 9, "timestamps": [], "sentences": ["a"]}},
            r"\['v_x'\]: wanted as many timestamps as sentences, got 0 and 1",
        ),
        ("activitynet", ["v_x"], r"a.json: wanted an object, got \['v_x'\]"),
    ],
)
def test_bad_files(written, videos, name, value, message):
    with pytest.raises(ValueError, match=message):
        import_annotations(name, written("a.json", value), videos("a.mp4"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "words"}, "level: wanted one of segments, paragraph, video, got 'words'"),
        ({"first": 0}, "first: wanted seconds above 0, got 0"),
        ({"split": "dev"}, r"split: wanted one that the annotations name \(training, validation\), got 'dev'"),
        ({"answers": "a.json"}, r"answers: wanted an option that YouCook2 has \(split, level, first, subset, limit"),
    ],
)
def test_bad_options(cooking, options, message):
    with pytest.raises(ValueError, match=message):
        cooking(**options)
