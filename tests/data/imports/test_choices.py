"""EgoSchema and Perception Test: questions with options, secret answers, cut videos."""

from __future__ import annotations

import pytest

from fastvivit.data import import_annotations

UIDS = ("0074f737-11cb-497d-8d07-77c3a8127391", "00b9a0de-c59e-49cb-a127-6081e2fb8c8e")


def ego(uid, **more):
    options = {f"option {i}": f"c does thing {i}." for i in range(5)}
    return {"q_uid": uid, "google_drive_id": "1m2n", "question": "What does c do?", **options, **more}


def perception(number, split="valid", answers=(0, 2), frames=900):
    questions = [
        {
            "id": i,
            "question": f"Question {i}?",
            "options": ["one", "two", "three"],
            "area": "physics",
            "reasoning": "descriptive",
            "tag": ["motion", "collision"],
            **({} if answer is None else {"answer_id": answer}),
        }
        for i, answer in enumerate(answers)
    ]
    about = {
        "split": split,
        "video_id": f"video_{number}",
        "frame_rate": 30.0,
        "num_frames": frames,
        "resolution": [1080, 1920],
        "audio_samples": 1,
        "audio_sample_rate": 48000,
        "is_cup_game": 0,
        "is_camera_moving": 0,
    }
    return {f"video_{number}": {"metadata": about, "mc_question": questions}}


PERCEPTION = perception(1) | perception(20, answers=(1,), frames=300)


@pytest.fixture
def egos(written, videos):
    path = written("questions.json", [ego(uid) for uid in UIDS])
    folder = videos(*(f"{uid}.mp4" for uid in UIDS))
    return lambda **options: import_annotations("egoschema", path, folder, **options)


@pytest.fixture
def perceptions(written, videos):
    path, folder = written("mc_question_valid.json", PERCEPTION), videos("video_1.mp4", "video_20.mp4")
    return lambda **options: import_annotations("perception_test", path, folder, **options)


def test_egoschema_with_answers(egos, written):
    found = egos(answers=written("subset_answers.json", {UIDS[1]: 3}))
    secret, known = found.entries
    options = [f"c does thing {i}." for i in range(5)]
    assert known.captions == ("c does thing 3.",) and secret.captions == ("What does c do?",)
    assert known.extra == {
        "id": UIDS[1], "split": "subset", "question": "What does c do?", "options": options, "answer": 3,
    }  # fmt: skip
    assert secret.extra["split"] == "secret" and "answer" not in secret.extra
    assert secret.extra["options"] == options and known.video.stem == UIDS[1] and known.end is None


def test_egoschema_subset(egos, written):
    answers = written("subset_answers.json", {UIDS[1]: 3, "gone": 1})
    for options in ({"split": "subset"}, {"subset": written("ids.json", {UIDS[1]: 3})}):
        found = egos(answers=answers, **options)
        assert [entry.extra["answer"] for entry in found.entries] == [3]
        assert len(found.skipped) == 1 and "['gone']: no question has this id" in found.skipped[0]
    with pytest.raises(ValueError, match="split: wanted one that the annotations name .secret., got 'subset'"):
        egos(split="subset")


def test_egoschema_by_id_with_its_own_answers(written, videos):
    path = written("subset_anno.json", {UIDS[0]: ego(UIDS[0], truth=4), UIDS[1]: ego(UIDS[1], truth="0")})
    found = import_annotations("egoschema", path, videos(f"{UIDS[0]}.mp4", f"{UIDS[1]}.mp4"))
    assert [entry.extra["answer"] for entry in found.entries] == [4, 0]


def test_perception_test(perceptions):
    found = perceptions()
    assert [entry.captions for entry in found.entries] == [("one",), ("three",), ("two",)]
    assert found.entries[1].extra == {
        "id": "video_1", "split": "valid", "question": "Question 1?", "options": ["one", "two", "three"], "answer": 2,
        "question_id": 1, "area": "physics", "reasoning": "descriptive", "tag": ["motion", "collision"],
    }  # fmt: skip
    assert found.seconds == 30 + 30 + 10
    assert len(perceptions(limit=1).entries) in (1, 2)  # a number of videos, not of questions


def test_perception_test_videos_end_where_the_answer_shows(perceptions, written):
    cuts = written("cut_frame_mapping_valid.json", {"video_1": 450, "video_20": -1})
    assert [entry.end for entry in perceptions(cut_frames=cuts).entries] == [15.0, 15.0, None]
    beyond = written("cuts.json", {"video_20": 300})
    assert [entry.end for entry in perceptions(cut_frames=beyond).entries] == [None] * 3
    with pytest.raises(ValueError, match=r"cuts.json: \['video_1'\]: wanted the number of a picture, or -1, got 'x'"):
        perceptions(cut_frames=written("cuts.json", {"video_1": "x"}))


def test_perception_test_secret_answers_and_other_tasks(written, videos):
    both = perception(1, "test", (None, None)) | {"video_2": {"metadata": {}, "mc_question": []}, "video_3": {}}
    found = import_annotations("perception_test", written("a.json", both), videos("video_1.mp4"))
    assert [entry.captions for entry in found.entries] == [("Question 0?",), ("Question 1?",)]
    assert all("answer" not in entry.extra for entry in found.entries) and found.missing == ()
    listed = import_annotations("perception_test", written("a.json", [both["video_1"]]), videos("video_1.mp4"))
    assert listed == found


@pytest.mark.parametrize(("split", "right"), [("valid", True), ("val", True), ("validation", True), ("test", False)])
def test_perception_test_splits(perceptions, split, right):
    if right:
        assert len(perceptions(split=split).entries) == 3
    else:
        with pytest.raises(ValueError, match=r"split: wanted one that the annotations name \(valid\), got 'test'"):
            perceptions(split=split)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("egoschema", [{"question": "x"}], r"a.json: \[0\]: wanted the field 'q_uid', got only these: question"),
        ("egoschema", [{"q_uid": "x", "option 0": "a", "option 1": "b"}], r"\[0\]: wanted the field 'question'"),
        ("egoschema", [{"q_uid": "x", "question": "a?", "option 0": "a"}], r"\[0\]: wanted the field 'option 1'"),
        ("egoschema", [ego("x", **{"option 2": " "})], r"\[0\].option 2: wanted words, got ' '"),
        ("egoschema", [ego("x", truth=5)], r"\[0\].truth: wanted an index from 0 to 4, got 5"),
        ("egoschema", [ego("x", truth=True)], r"\[0\].truth: wanted an index from 0 to 4, got True"),
        (
            "perception_test",
            perception(1, answers=(3,)),
            r"mc_question\[0\].answer_id: wanted an index from 0 to 2, got 3",
        ),
        ("perception_test", {"video_1": {"mc_question": [{}]}}, r"\['video_1'\]: wanted the field 'metadata'"),
        (
            "perception_test",
            {"v": {"metadata": {}, "mc_question": [{"question": "x", "options": ["a"]}]}},
            "two options, got 1",
        ),
        ("perception_test", [{"mc_question": []}], r"\[0\]: wanted the field 'metadata'"),
        ("perception_test", perception(1, frames="9"), r"\['video_1'\].metadata.num_frames: wanted a number, got '9'"),
    ],
)
def test_bad_files(written, videos, name, value, message):
    with pytest.raises(ValueError, match=message):
        import_annotations(name, written("a.json", value), videos("a.mp4"))
