"""MSR-VTT: the json of videos and sentences, the 1k-A lists, splits, subsets."""

from __future__ import annotations

import pytest

from fastvivit.data import import_annotations


def video(number, split, start=10.0, end=24.5, url="https://www.youtube.com/watch?v=abcdefghijk"):
    return {
        "category": 9,
        "url": url,
        "video_id": f"video{number}",
        "start time": start,
        "end time": end,
        "split": split,
        "id": number,
    }


def sentence(number, caption, sen_id=0):
    return {"caption": caption, "video_id": f"video{number}", "sen_id": sen_id}


OFFICIAL = {
    "info": {"contributor": "", "data_created": "2016-04-14 14:30:20", "version": "1.0", "year": "2016"},
    "videos": [video(0, "train"), video(6513, "validate"), video(7010, "test"), video(7011, "test", 1.5, 11.5)],
    "sentences": [
        sentence(7010, "a man pours tea into a red cup", 1),
        sentence(0, "a cat looks out of a window", 2),
        sentence(7010, "someone  makes tea ", 3),
        sentence(7011, "two boys race on a beach", 4),
        sentence(6513, "a train arrives", 5),
    ],
}
FILES = (
    "TrainValVideo/video0.mp4",
    "TrainValVideo/video6513.mp4",
    "TestVideo/video7010.mp4",
    "TestVideo/video7011.avi",
)
LIST = "key,vid_key,video_id,sentence\nret0,msr7011,video7011,two boys\nret1,msr0,video0,a cat\n"


def test_the_official_file(written, videos):
    folder = videos(*FILES)
    found = import_annotations("msrvtt", written("MSRVTT_data.json", OFFICIAL), folder)
    assert [entry.extra["id"] for entry in found.entries] == ["video0", "video6513", "video7010", "video7011"]
    entry = found.entries[2]
    assert entry.video == folder / "TestVideo" / "video7010.mp4"
    assert entry.captions == ("a man pours tea into a red cup", "someone makes tea")
    assert (entry.start, entry.end) == (0.0, None)  # the files are cut already
    assert entry.extra == {"id": "video7010", "split": "test", "category": 9}
    assert found.seconds == 3 * 14.5 + 10
    assert found.missing == found.duplicates == found.skipped == ()


def test_a_whole_youtube_video_is_cut_by_the_times(written, videos):
    found = import_annotations("msrvtt", written("a.json", OFFICIAL), videos("abcdefghijk.webm"), split="test")
    assert [(entry.video.name, entry.start, entry.end) for entry in found.entries] == [
        ("abcdefghijk.webm", 10.0, 24.5),
        ("abcdefghijk.webm", 1.5, 11.5),
    ]
    assert found.seconds == 24.5


@pytest.mark.parametrize(
    ("split", "count"), [("train", 1), ("val", 1), ("validate", 1), ("validation", 1), ("test", 2)]
)
def test_splits_under_all_their_names(written, videos, split, count):
    found = import_annotations("msrvtt", written("a.json", OFFICIAL), videos(*FILES), split=split)
    assert len(found.entries) == count


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.csv", "key,vid_key,video_id,sentence\nret0,msr7011,video7011,boys\nret1,msr0,video0,cat\n"),
        ("list.txt", "video7011\n\nvideo0.mp4\n"),
        ("list.json", '["video7011", "video0"]'),
        ("keys.json", '{"video7011": 3, "video0": 1}'),
        ("bare.csv", "video7011\nvideo0\n"),
        ("train_9k.csv", "video_id\nvideo7011\nvideo0\n"),
    ],
)
def test_a_subset_keeps_the_order_of_the_annotations(written, videos, name, text):
    options = {"subset": written(name, text)}
    found = import_annotations("msrvtt", written("a.json", OFFICIAL), videos(*FILES), **options)
    assert [entry.extra["id"] for entry in found.entries] == ["video0", "video7011"]


def test_an_unknown_id_in_a_subset(written, videos):
    subset = written("ids.txt", "video7010\nvideo0\n")
    with pytest.raises(ValueError, match=r"subset: wanted ids of the 2 .* 1 of the 2 in .*ids.txt .* 'video0'"):
        import_annotations("msrvtt", written("a.json", OFFICIAL), videos(*FILES), split="test", subset=subset)


def test_a_draw_depends_on_seed_and_ids_alone(written, videos):
    many = {"videos": [video(i, "test") for i in range(100)], "sentences": [sentence(i, "x") for i in range(100)]}
    back = {name: values[::-1] for name, values in many.items()}
    folder = videos(*(f"video{i}.mp4" for i in range(0, 100, 2)))

    def ids(annotations, **options):
        found = import_annotations("msrvtt", written("a.json", annotations), folder, limit=40, **options)
        return [entry.extra["id"] for entry in found.entries], found.missing

    (drawn, missing), (other, absent) = ids(many), ids(back)
    assert len(drawn) + len(missing) == 40 and missing  # drawn before anybody looks at the folder
    assert drawn == other[::-1] and missing == absent[::-1]
    assert ids(many) == ids(many, seed=0) != ids(many, seed=1)
    for limit in (0, 101):
        with pytest.raises(ValueError, match=f"limit: wanted 1 to 100 videos, got {limit}"):
            import_annotations("msrvtt", written("a.json", many), folder, limit=limit)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("MSRVTT_JSFUSION_test.csv", LIST),
        ("sentences.csv", LIST.replace("sentence", "sentences").replace("\n", "\r\n")),
        ("semicolons.csv", LIST.replace(",", ";").replace("a cat", '"a cat"')),
        ("1k.json", [{"video": "video7011.mp4", "caption": "two boys"}, {"video": "video0.mp4", "caption": ["a cat"]}]),
    ],
)
def test_lists_of_1k_a(written, videos, name, text):
    found = import_annotations("msrvtt", written(name, text), videos(*FILES))
    assert [(entry.video.name, entry.captions) for entry in found.entries] == [
        ("video7011.avi", ("two boys",)),
        ("video0.mp4", ("a cat",)),
    ]
    assert found.seconds is None  # this file has no times


def test_a_list_has_no_splits(written, videos):
    path = written("a.csv", "video_id,sentence\nvideo0,a cat\n")
    with pytest.raises(ValueError, match="split: wanted one that the annotations name .they name none., got 'test'"):
        import_annotations("msrvtt", path, videos(*FILES), split="test")


def test_what_is_skipped_is_told(written, videos):
    annotations = {
        "videos": [video(0, "test"), video(1, "test")],
        "sentences": [sentence(0, "a cat"), sentence(0, " ")],
    }
    found = import_annotations("msrvtt", written("a.json", annotations), videos("video0.mp4", "video1.mp4"))
    assert [entry.captions for entry in found.entries] == [("a cat",)]
    assert [text.partition("a.json: ")[2] for text in found.skipped] == [
        "sentences[1].caption: an empty caption",
        "videos[1]: 'video1' has no captions",
    ]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("a.json", {"videos": []}, r"a.json: wanted the field 'sentences', got only these: videos"),
        ("a.json", "{", r"a.json:1: wanted JSON"),
        ("a.json", '"text"', r"a.json: wanted an object with the field 'videos', got 'text'"),
        ("a.json", {"videos": {}, "sentences": []}, r"a.json: videos: wanted a list, got \{\}"),
        ("a.json", {"videos": [7], "sentences": []}, r"videos\[0\]: wanted an object with the field 'video_id', got 7"),
        ("a.json", {"videos": [{"video_id": ""}], "sentences": []}, r"videos\[0\].video_id: wanted an id, got ''"),
        (
            "a.json",
            {"videos": [video(0, "test")], "sentences": [sentence(1, "x")]},
            r"a.json: sentences\[0\].video_id: wanted a video_id that 'videos' has, got 'video1'",
        ),
        (
            "a.json",
            {"videos": [video(0, "test")], "sentences": [sentence(0, 5)]},
            r"sentences\[0\].caption: wanted a string, got 5",
        ),
        (
            "a.json",
            {"videos": [video(0, "test", 9.0, 3.0)], "sentences": [sentence(0, "x")]},
            r"videos\[0\].end time: wanted seconds after the start time \(9.0\), got 3.0",
        ),
        (
            "a.json",
            {"videos": [video(0, "test", "9")], "sentences": [sentence(0, "x")]},
            r"videos\[0\].start time: wanted a number, got '9'",
        ),
        (
            "a.json",
            {"videos": [video(0, "test")] * 2, "sentences": []},
            r"a.json: videos\[1\].video_id: wanted a video_id that no other of 'videos' has, got 'video0'",
        ),
        ("a.json", {"videos": [], "sentences": []}, r"a.json: wanted at least one clip with captions, got none"),
        ("a.csv", "video_id,text\nvideo0,x\n", r"a.csv:2: wanted the field 'sentence', got only these: video_id, text"),
        ("a.csv", "video_id,sentence\nvideo0\n", r"a.csv:2: wanted 2 cells, as in line 1, got 1"),
        ("a.csv", 'video_id,sentence\nvideo0,"x\n', r"a.csv:2: wanted CSV"),
        ("a.csv", "", r"a.csv: wanted at least one clip"),
    ],
)
def test_bad_files(written, videos, name, value, message):
    with pytest.raises(ValueError, match=message):
        import_annotations("msrvtt", written(name, value), videos(*FILES))
