"""Captions and summaries: scores by the metrics, masks by the seed, broken files counted."""

import json
from pathlib import Path

import pytest
import torch

import fastvivit as fv
from fastvivit.evaluation import (
    SETUPS,
    Aggregated,
    Asking,
    Direct,
    Reading,
    Selected,
    as_system,
    captioning,
    compare,
    summarise,
)
from fastvivit.modular import CaptionAggregator, FrameSelector
from tests.tiny_captioner import make_captioner, make_dual

# CIDEr-D says of itself that it means nothing on so few clips.
pytestmark = pytest.mark.filterwarnings("ignore:.*CIDEr:UserWarning")
SAID = [("0", ["grey 0", "a grey"], {}), ("2", ["grey 2 it is"], {}), ("4", ["grey 1 or so"], {}), ("1", ["black"], {})]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_captions_are_scored_as_the_metrics_score_them(manifest, teller, tmp_path):
    cap, told = teller(), []
    cap.train()
    path = manifest(*SAID)
    found = captioning(
        cap, path, "the", reading=Reading(batch_size=3, progress=told.append), predictions=tmp_path / "said.jsonl"
    )
    texts = ["grey 0", "grey 2", "grey 4", "grey 1"]
    wanted = fv.metrics.captions(texts, [said for _, said, _ in SAID], tokenize=True)
    assert {name: found[name] for name in wanted} == wanted and 0 < found["bleu_1"] < 1
    assert found["clips"] == 4 and found["broken"] == 0 and sum(told) == 4 and found["seconds_per_clip"] > 0
    assert cap.prompts == [("the", 32)] * 2 and cap.training and not any(cap.modes)
    rows = lines(tmp_path / "said.jsonl")
    assert [row["prediction"] for row in rows] == texts and rows[0]["references"] == ["grey 0", "a grey"]
    assert rows[0]["video"].endswith("0.mp4") and "system" not in rows[0]


def test_summaries_average_over_references(manifest, teller):
    found = summarise(teller(), manifest(*SAID))
    # By hand: F1 of the longest common subsequence with each reference, averaged over the references.
    clips = [(1 + 2 * 0.5 * 0.5 / (0.5 + 0.5)) / 2, 2 * 1 * 0.5 / 1.5, 2 * 0.5 * 0.25 / 0.75, 0.0]
    assert found["rouge_l_f1"] == pytest.approx(sum(clips) / 4, abs=1e-9)


def test_broken_files_are_counted_and_told(manifest, teller, tmp_path):
    path = manifest(SAID[0], ("broken", ["nothing"], {}), SAID[1], ("missing", ["nothing"], {}), SAID[2], SAID[3])
    found = compare(
        {"one": teller(), "two": teller(name="white")},
        path,
        "captioning",
        reading=Reading(batch_size=2),
        predictions=tmp_path / "said.jsonl",
    )
    whole = captioning(teller(), manifest(*SAID))
    for name in ("cider_d", "rouge_l_f1", "bleu_2"):
        assert found.scores["one"][name] == whole[name]
    assert found.scores["one"]["clips"] == 4 and found.scores["two"]["broken"] == 2
    assert [name.rpartition("/")[2] for name, _ in found.broken] == ["broken.mp4", "missing.mp4"]
    rows = lines(tmp_path / "said.jsonl")
    assert [row["system"] for row in rows if "prediction" in row] == ["one"] * 4 + ["two"] * 4
    assert sum("error" in row for row in rows) == 2
    with pytest.raises(ValueError, match="manifest: wanted a video that can be read, got none of 1: "):
        captioning(teller(), manifest(("broken", ["nothing"], {})))


def test_masks_depend_on_the_seed_and_the_clip_alone(manifest, teller):
    def masks(seed, rows=SAID, **reading):
        cap = teller()
        captioning(cap, manifest(*rows), mask_ratio=0.4, seed=seed, reading=Reading(**reading))
        return cap.masks

    first = masks(0)
    assert {ratio for ratio, _ in first} == {0.4} and len(set(first)) == 4
    assert masks(0) == first and masks(0, batch_size=1) == first != masks(1)
    assert masks(0, workers=1) == first
    # A broken file in another's place changes no other clip's mask.
    assert masks(0, [SAID[0], ("broken", ["nothing"], {}), *SAID[2:]]) == [first[0], *first[2:]]


def test_clips_are_as_long_as_the_captioner_s(manifest, teller):
    path = manifest(("3", ["x"], {"start": 1.0, "end": 4.0}), ("3", ["x"], {}))
    cap = teller(frames=8)
    captioning(cap, path)
    short, long = cap.clips
    assert short.shape == long.shape == (3, 8, 32, 32) and short.dtype == torch.uint8
    cap = teller(frames=8)
    captioning(cap, path, reading=Reading(frames=3))
    assert [clip.shape[1] for clip in cap.clips] == [4, 4]  # whole tubelets
    cap = teller(frames=8)
    captioning(cap, path, reading=Reading(frames=100, size=48))
    assert [clip.shape[1:] for clip in cap.clips] == [(8, 48, 48)] * 2


def test_the_paper_s_three_systems_side_by_side(manifest, teller):
    path = manifest(*SAID)
    looked, short = [], teller(frames=4, name="short")

    def bright(frames, query):
        looked.append(query)
        return torch.arange(len(frames))

    systems = {
        "long": teller(frames=16),
        "selector": Selected(FrameSelector(bright, 4), short, lambda clip, asking: f"clip {clip.index}"),
        "aggregator": CaptionAggregator(teller(frames=4), lambda prompt: f"lines {prompt.count(' s: ')}", seconds=6),
        "blind": CaptionAggregator(lambda clip: "dark", lambda prompt: "grey 0"),
    }
    found = compare(systems, path, "summaries", mask_ratio=0.2)
    assert looked == [f"clip {i}" for i in range(4)]
    assert [clip.shape[1] for clip in short.clips] == [4] * 4 and {ratio for ratio, _ in short.masks} == {0.2}
    # 16 pictures of 20, at one a second: parts of 6, 6 and 4.
    assert found.scores["aggregator"]["rouge_l_f1"] == 0
    assert found.scores["long"] | {"seconds_per_clip": 0} != found.scores["blind"] | {"seconds_per_clip": 0}
    table = found.table().splitlines()
    assert table[0].split() == list(systems)
    assert table[1].split() == ["rouge_l_f1", *(f"{found.scores[name]['rouge_l_f1']:.4g}" for name in systems)]


def test_systems_see_no_more_than_there_is(manifest, teller):
    path, asked, wide = manifest(SAID[0]), [], teller(frames=16)
    parts = CaptionAggregator(lambda clip: "dark", lambda prompt: (asked.append(prompt), "so")[1], seconds=8)
    chosen = Selected(FrameSelector(lambda frames, query: torch.arange(len(frames)), 3), wide, lambda *_: "it")
    compare({"parts": parts, "chosen": chosen}, path, "captioning", reading=Reading(frames=256))
    # The file has 20 pictures, whatever was asked for; 3 chosen ones fill 2 tubelets, not 16 pictures.
    assert "0-8 s: dark\n8-16 s: dark\n16-20 s: dark\n\n" in asked[0]
    assert [clip.shape[1] for clip in wide.clips] == [4]


def test_the_prompt_is_the_query_and_the_aggregator_s_question(manifest, teller):
    path, asked = manifest(SAID[0]), []
    aggregator = CaptionAggregator(lambda clip: "dark", lambda prompt: (asked.append(prompt), "so")[1])
    selector = FrameSelector(lambda frames, query: (asked.append(query), torch.zeros(len(frames)))[1], 4)
    compare({"a": aggregator, "s": Selected(selector, teller())}, path, "captioning", prompt="who is it")
    assert "Question: who is it" in asked[0] and asked[1] == "who is it"
    with pytest.raises(ValueError, match="query: wanted a function of the clip, or a prompt"):
        captioning(Selected(selector, teller()), path)


def test_oracle_segments_come_from_the_entry_when_available(manifest, teller):
    asked = []
    aggregator = CaptionAggregator(lambda clip: "dark", lambda prompt: (asked.append(prompt), "so")[1], seconds=16)
    reading = Reading(frames=30, size=32)
    rows = [
        ("1", ["x"], {"start": 2.0, "extra": {"segments": [[3, 5], [1, 4], [0, 1], [8, 90], [50, 60]]}}),
        ("1", ["x"], {"extra": {"segments": [[50, 60]]}}),  # none of them in this clip
        ("2", ["x"], {}),
    ]
    compare({"oracle": Aggregated(aggregator, oracle=True)}, manifest(*rows), "captioning", reading=reading)
    # The clip begins at 2 s and ends with the file, at 20 s.
    assert "\n1-3 s: dark\n0-2 s: dark\n6-18 s: dark\n\n" in asked[0]
    assert "\n0-16 s: dark\n16-20 s: dark\n\n" in asked[1] and asked[1] == asked[2]
    with pytest.raises(ValueError, match="oracle: wanted entries with a field 'segments'"):
        compare({"oracle": Aggregated(aggregator, oracle=True)}, manifest(SAID[0]), "captioning", reading=reading)
    for bad in ([[1]], ["1-2"], [[0, "2"]], 3):
        path = manifest(rows[0], ("2", ["x"], {"extra": {"segments": bad}}))
        with pytest.raises(ValueError, match="manifest: wanted 'segments' as a list of .start, end. .* in entry 1"):
            compare({"oracle": Aggregated(aggregator, oracle=True)}, path, "captioning", reading=reading)


def test_lines_of_one_clip_are_one_clip_with_several_references(manifest, teller):
    lines = [("0", ["grey 0"], {}), ("2", ["grey 2 it is"], {}), ("0", ["a grey"], {}), ("0", ["dark"], {"start": 9.0})]
    found = summarise(teller(), manifest(*lines))
    wanted = summarise(teller(), manifest(("0", ["grey 0", "a grey"], {}), lines[1], lines[3]))
    assert found["clips"] == wanted["clips"] == 3 and found["rouge_l_f1"] == wanted["rouge_l_f1"]


def test_each_system_may_have_a_prompt_of_its_own(manifest, teller):
    one, two, three = teller(), teller(), teller()
    selector = FrameSelector(lambda frames, query: torch.zeros(len(frames)), 4)
    systems = {"a": one, "b": Direct(two, "the"), "c": Selected(selector, three, lambda clip, asking: "what", "of")}
    compare(systems, manifest(SAID[0]), "captioning", prompt="so")
    assert [cap.prompts[0][0] for cap in (one, two, three)] == ["so", "the", "of"]


def test_a_selector_with_nothing_to_look_for_takes_frames_at_even_distances(manifest, teller):
    cap, path = teller(), manifest(SAID[0])
    selector = FrameSelector(lambda frames, query: 1 / len(query) + torch.arange(len(frames)), 4)
    captioning(Selected(selector, cap, lambda clip, asking: " "), path, reading=Reading(frames=20))
    whole = fv.data.read_clip(fv.data.read_manifest(path)[0].video, 20, size=32)
    assert torch.equal(cap.clips[0], fv.modular.fit_frames(whole, 4))


def test_a_real_captioner_s_numbers(manifest):
    cap, path = make_captioner(frames=8), manifest(*SAID)
    found = captioning(cap, path, "the", 0.5, 3, max_new_tokens=6)
    texts = []
    for index, entry in enumerate(fv.data.read_manifest(path)):
        video = fv.data.read_clip(entry.video, 8, size=32)
        draw = torch.Generator().manual_seed(fv.data.sample_seed(3, 0, index, "mask"))
        texts += cap.generate(video[None], "the", 6, mask_ratio=0.5, generator=draw)
    assert len(set(texts)) > 1
    wanted = fv.metrics.captions(texts, [said for _, said, _ in SAID], tokenize=True)
    assert {name: found[name] for name in wanted} == wanted
    selected = Selected(FrameSelector.from_model(make_dual(), 4), cap, lambda clip, asking: "the digit")
    parts = CaptionAggregator(cap, lambda prompt: "grey", seconds=4)
    both = compare({"long": cap, "selector": selected, "aggregator": parts}, path, "captioning", max_new_tokens=6)
    assert both.scores.keys() == {"long", "selector", "aggregator"}


def test_mistakes_are_named(manifest, teller):
    path = manifest(*SAID)
    image = fv.data.Entry(video=Path("0.png"), kind="image", captions=("one",))
    for arguments, words in (
        ({"task": "retrieval"}, "task: wanted 'captioning', 'summaries' or 'multiple_choice', got 'retrieval'"),
        ({"mask_ratio": 1.0}, "mask_ratio: wanted 0 <= ratio < 1"),
        ({"max_new_tokens": 0}, "max_new_tokens: wanted at least 1"),
        ({"normalise": "mean"}, "normalise: wanted 'sum' or 'tokens', got 'mean'"),
        ({"template": "Q"}, "template: wanted {question} in it"),
        ({"systems": {}}, "systems: wanted at least one"),
        ({"systems": {"x": object()}}, "system: wanted a VideoCaptioner, a CaptionAggregator or a System, got object"),
        ({"manifest": []}, "manifest: wanted at least one entry"),
        ({"manifest": ["0.mp4"]}, "manifest: wanted a path or entries, got a str among them"),
        ({"manifest": [image]}, "manifest: wanted clips for task 'captioning', got images among them"),
    ):
        given = {"systems": {"": teller()}, "manifest": path, "task": "captioning"} | arguments
        with pytest.raises(ValueError) as error:
            compare(**given)
        assert words in str(error.value)
    blind = CaptionAggregator(lambda clip: "dark", str.lower)
    with pytest.raises(ValueError, match="reading: wanted frames and size"):
        captioning(blind, path)
    assert captioning(blind, path, reading=Reading(frames=4, size=32))["clips"] == 4
    for bad in ({"batch_size": 0}, {"workers": -1}, {"fps": 0.0}, {"frames": 0}, {"size": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Reading(**bad)
    with pytest.raises(ValueError, match="frames: wanted at least 1, got 0"):
        Asking(frames=0)
    assert isinstance(as_system(teller()), Direct)


def test_setups_are_the_paper_s():
    assert {setup.task for setup in SETUPS.values()} == {"retrieval", "captioning", "summaries", "multiple_choice"}
    for name, setup in SETUPS.items():
        long = setup.task in ("summaries", "multiple_choice")
        assert setup.frames == (256 if long else 16), name
        assert setup.fps == (5.0 if name == "perception-test" else 1.0), name
        assert setup.mask_ratio == (0.0 if setup.task == "retrieval" else 0.3), name
        assert setup.reading == Reading(frames=setup.frames, fps=setup.fps)
