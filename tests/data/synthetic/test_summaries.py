"""Summaries of what is said: files of transcripts, cleaning, repetition by its definition, what is dropped and why."""

from __future__ import annotations

import json

import pytest

from fastvivit.data import Entry, read_manifest, write_manifest
from fastvivit.data.synthetic import (
    Cue,
    clean_transcript,
    find_transcripts,
    read_transcript,
    repetition,
    summarise_transcripts,
)

SPEECH = "so first you heat the pan and then you put in the onions and let them get golden before the rice"


class Model:
    """Repeats the first three words of the transcript; remembers what it was asked."""

    def __init__(self, dies_after=None):
        self.asked, self.dies_after = [], dies_after

    def __call__(self, prompt):
        if len(self.asked) == self.dies_after:
            raise KeyboardInterrupt
        self.asked.append(prompt)
        return " ".join(prompt.rpartition("Transcript:\n")[2].split()[:3])


def naive_repetition(text, n):
    words, again = text.split(), 0
    for place in range(len(words) - n + 1):
        gram = words[place : place + n]
        again += any(words[other : other + n] == gram for other in range(place))
    return again / (len(words) - n + 1)


def test_repetition_is_the_share_of_ngrams_seen_before():
    for text in ("a b c d " * 5, "a a a a a a a a", "one two three four five six", "a b a b c a b a b c d e f g"):
        for n in (1, 2, 4):
            assert repetition(text, n) == pytest.approx(naive_repetition(text, n))
    assert repetition("Add the oil. ADD THE OIL! add, the oil") == pytest.approx(0.5)
    assert repetition("don’t do it") == 0.0 == repetition("")
    with pytest.raises(ValueError, match="n: wanted at least 1"):
        repetition("a", 0)


def test_cleaning():
    assert clean_transcript("[Music]\n>> so &amp; now <i>heat</i>\nthe (applause) pan ♪ la la ♪ >>> yes") == (
        "so & now heat the pan yes"
    )
    assert clean_transcript("a ♪ b\nc ♪ d") == "a b c d"  # a note alone takes no words with it
    assert clean_transcript("heat<00:00:01.000><c> it</c> if 3 < 4 and 5 > 2") == "heat it if 3 < 4 and 5 > 2"


VTT = """WEBVTT
Kind: captions

NOTE not said

STYLE
::cue { color: red }

00:00:00.160 --> 00:00:02.000 align:start position:0%
 
heat<00:00:00.400><c> the</c><00:00:01.000><c> pan</c>

00:00:02.000 --> 00:00:02.010 align:start
heat the pan
 

00:00:02.010 --> 00:00:04.000
heat the pan
add<00:00:02.400><c> oil</c>

7
01:00:04.000 --> 01:00:05.500
add oil
stir
"""  # noqa: W291, W293 (automatic subtitles have lines of a space)
SRT = "1\r\n00:00:01,500 --> 00:00:02,250\r\nheat\r\nthe pan\r\n\r\n2\r\n00:00:03,000 --> 00:00:04,000\r\n[Music]\r\n"


def test_files_of_transcripts(tmp_path):
    def read(name, text):
        (tmp_path / name).write_bytes(text.encode())
        return read_transcript(tmp_path / name)

    rolled = read("a.vtt", VTT)
    assert [(cue.start, cue.end) for cue in rolled] == [(0.16, 2.0), (2.01, 4.0), (3604.0, 3605.5)]
    assert [clean_transcript(cue.text) for cue in rolled] == ["heat the pan", "add oil", "stir"]
    assert read("a.srt", SRT) == [Cue("heat\nthe pan", 1.5, 2.25), Cue("[Music]", 3.0, 4.0)]
    assert read("a.txt", "\ufeffall of it\n") == [Cue("all of it\n")]
    whisper = {"text": "a b", "segments": [{"id": 0, "start": 0, "end": 1.5, "text": " a"}], "language": "en"}
    assert read("a.json", json.dumps(whisper)) == [Cue(" a", 0.0, 1.5)]
    chunks = {
        "text": "a b",
        "chunks": [{"timestamp": [0.0, 1.0], "text": "a"}, {"timestamp": [1.0, None], "text": "b"}],
    }
    assert read("b.json", json.dumps(chunks)) == [Cue("a", 0.0, 1.0), Cue("b", 1.0, None)]
    assert read("c.json", '{"text": "a b"}') == [Cue("a b")]
    assert read("empty.vtt", "WEBVTT\n") == []
    for name, text, message in (
        ("d.json", "[1]", "wanted speech as Whisper"),
        ("d.json", "{", "wanted speech as Whisper"),
        ("d.json", '{"caption": "not me"}', "wanted speech as Whisper"),
        ("d.srt", "no subtitles", "wanted subtitles"),
        ("d.doc", "a", "wanted one of .json, .vtt, .srt, .txt"),
    ):
        with pytest.raises(ValueError, match=message):
            read(name, text)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    for name, message in (("latin.txt", "wanted UTF-8"), ("none.txt", "no such file")):
        with pytest.raises(ValueError, match=message):
            read_transcript(tmp_path / name)


def test_which_file_belongs_to_a_video(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("cup.txt", "cup.vtt", "cup.en.vtt", "deep/v 1.5 x.en-US.srt", "deep/cup.mp4", "my.cat.txt"):
        (tmp_path / name).touch()
    found = find_transcripts(tmp_path)
    assert [file.name for file in found["cup"]] == ["cup.vtt", "cup.en.vtt", "cup.txt"]
    assert [file.name for file in found["v 1.5 x"]] == ["v 1.5 x.en-US.srt"]
    assert [file.name for file in found["my.cat"]] == ["my.cat.txt"]
    assert "v 1.5 x" not in find_transcripts(tmp_path, below=False)
    with pytest.raises(ValueError, match="transcripts: wanted a folder"):
        find_transcripts(tmp_path / "none")


@pytest.fixture
def said(tmp_path):
    """Write a transcript of a video, and give back its entry."""
    folder = tmp_path / "said"
    folder.mkdir()

    def write(name, text=SPEECH, suffix=".txt", **about):
        (folder / f"{name}{suffix}").write_text(text)
        return Entry(video=tmp_path / "videos" / f"{name}.mp4", captions=("given",), **about)

    write.folder = folder
    return write


def test_what_the_model_is_asked_and_where_its_answer_goes(said, tmp_path):
    entry = said("cup", f"[Music] {SPEECH}\n(laughs)", twin=None, extra={"id": "x"})
    model = Model()
    found = summarise_transcripts([entry], said.folder, model, by="model")
    (asked,) = model.asked
    assert asked.endswith(f"Transcript:\n{SPEECH}") and "Use only facts of the transcript" in asked
    (new,) = found.entries
    assert new.captions == ("so first you",) and not found.dropped
    assert new.extra == {
        "id": "x", "text_source": {"kind": "transcript summary", "transcript": "cup.txt", "by": "model"},
    }  # fmt: skip
    write_manifest(tmp_path / "new.jsonl", found.entries)
    assert read_manifest(tmp_path / "new.jsonl") == found.entries
    kept = summarise_transcripts([entry], said.folder, model, keep_captions=True).entries[0]
    assert kept.captions == ("given", "so first you") and kept.extra["text_source"][0] == {"kind": "given"}
    own = summarise_transcripts([entry], said.folder, lambda prompt: prompt, prompt="Sum {up}: {transcript}!")
    assert own.entries[0].captions == (f"Sum {{up}}: {SPEECH}!",)
    assert own.entries[0].extra["text_source"]["by"].startswith(f"{__name__}:test_what")


def test_a_part_of_a_video_is_what_is_said_in_it(said):
    lines = [f"{word} " * 1 + SPEECH for word in ("zero", "one", "two", "three")]
    parts = [{"start": 10 * i, "end": 10 * i + 10, "text": line} for i, line in enumerate(lines)]
    whole = said("cup", json.dumps({"segments": parts}), ".json")
    model = Model()
    for start, end, words in ((10.0, 30.0, "one"), (15.0, 16.0, "one"), (30.0, None, "three"), (0.0, 10.0, "zero")):
        entry = Entry(video=whole.video, captions=("given",), start=start, end=end)
        found = summarise_transcripts([entry], said.folder, model, max_repetition=1.0)
        assert found.entries[0].captions == (f"{words} so first",)
    assert model.asked[0].count(SPEECH) == 2 and model.asked[1].count(SPEECH) == 1
    plain = said("plain", start=1.0)
    assert summarise_transcripts([plain], said.folder, model).counts == {"transcript without times": 1}


def test_what_is_dropped_is_counted_with_reasons(said, tmp_path):
    loop = "thanks for watching and see you " * 20
    good = said("good")
    said("seldom")
    (said.folder / "deep").mkdir()
    (said.folder / "deep" / "seldom.txt").write_text(SPEECH)
    (said.folder / "both.json").write_text('{"not": "speech"}')
    entries = [
        good,
        Entry(video=tmp_path / "unheard.mp4", captions=("given",)),
        said("short", "[Music] only a few words (applause) (applause) (applause) (applause)"),
        said("loop", loop),
        Entry(video=tmp_path / "seldom.mp4", captions=("given",)),
        said("bad", "{", ".json"),
        said("both"),
    ]
    found = summarise_transcripts(entries, said.folder, Model())
    assert [entry.video.stem for entry in found.entries] == ["good", "both"]
    assert [(one.index, one.kind) for one in found.dropped] == [
        (1, "no transcript"), (2, "short transcript"), (3, "repetitive transcript"), (4, "ambiguous transcript"),
        (5, "bad transcript"),
    ]  # fmt: skip
    assert "4 words" in found.dropped[1].reason and "0.9" in found.dropped[2].reason
    answers = {"empty summary": " \n", "repetitive summary": loop}
    for kind, answer in answers.items():
        found = summarise_transcripts([good], said.folder, lambda prompt, answer=answer: answer)
        assert found.counts == {kind: 1} and not found.entries
    assert summarise_transcripts([good], said.folder, lambda prompt: loop, max_repetition=1.0).entries


def test_beside_the_videos(said):
    entry = said("cup")
    beside = Entry(video=said.folder / "cup.mp4", captions=("given",))
    assert len(summarise_transcripts([beside, said.folder / "cup.mp4"], None, Model()).entries) == 2
    assert summarise_transcripts([entry], None, Model()).counts == {"no transcript": 1}


def test_a_killed_job_goes_on_and_the_same_question_is_asked_once(said, tmp_path):
    entries = [said(f"v{i}", f"number {i} {SPEECH}") for i in range(4)]
    ledger, steps = tmp_path / "ledger", []
    with pytest.raises(KeyboardInterrupt):
        summarise_transcripts(entries, said.folder, Model(dies_after=2), by="m", ledger=ledger)
    second = Model()
    found = summarise_transcripts(entries, said.folder, second, by="m", ledger=ledger, advance=steps.append)
    assert len(second.asked) == 2 and sum(steps) == 4
    assert [entry.captions[0] for entry in found.entries] == [f"number {i} so" for i in range(4)]
    said("v1", f"another {SPEECH}")
    summarise_transcripts(entries, said.folder, second, by="m", ledger=ledger)
    assert len(second.asked) == 3
    summarise_transcripts(entries, said.folder, second, by="other", ledger=ledger)
    assert len(second.asked) == 7


def test_bad_arguments_are_named(said):
    entry = said("cup")
    for change, message in (
        ({"prompt": "no place"}, "prompt: wanted {transcript} in it"),
        ({"min_words": 0}, "min_words: wanted"),
        ({"max_repetition": 1.1}, "max_repetition: wanted"),
    ):
        with pytest.raises(ValueError, match=message):
            summarise_transcripts([entry], said.folder, Model(), **change)
    with pytest.raises(ValueError, match="summariser: wanted a string, got a NoneType"):
        summarise_transcripts([entry], said.folder, lambda prompt: None)
