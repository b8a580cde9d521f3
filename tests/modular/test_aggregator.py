"""Segments captioned, captions merged."""

import pytest
import torch

from fastvivit.modular import SUMMARY, Aggregate, CaptionAggregator, ChatModel, fit_frames
from tests.tiny_captioner import make_captioner, make_lm, make_tokenizer


def numbered(frames):
    return torch.arange(frames, dtype=torch.uint8).view(1, frames, 1, 1).expand(3, -1, 32, 32)


def span(clip):
    return f"pictures {int(clip[0, 0, 0, 0])} to {int(clip[0, -1, 0, 0])}"


def test_captions_of_segments_reach_the_model_with_their_times():
    asked = []

    def llm(prompt):
        asked.append(prompt)
        return " a story \n"

    found = CaptionAggregator(span, llm)(numbered(40))
    lines = "0-16 s: pictures 0 to 15\n16-32 s: pictures 16 to 31\n32-40 s: pictures 32 to 39"
    assert asked == [SUMMARY.format(captions=lines)]
    assert found == Aggregate(
        text="a story",
        captions=["pictures 0 to 15", "pictures 16 to 31", "pictures 32 to 39"],
        segments=[(0.0, 16.0), (16.0, 32.0), (32.0, 40.0)],
        prompt=asked[0],
    )


def test_seconds_fps_oracle_segments_and_questions():
    aggregator = CaptionAggregator(span, lambda prompt: prompt, seconds=2)
    assert aggregator(numbered(25), fps=5).captions == ["pictures 0 to 9", "pictures 10 to 19", "pictures 20 to 24"]
    oracle = aggregator(numbered(25), 5.0, segments=[(0.4, 1.0), (4.5, 9.0), (6.0, 7.0)])
    assert oracle.captions == ["pictures 2 to 4", "pictures 23 to 24"] and oracle.segments == [(0.4, 1.0), (4.5, 5.0)]
    assert "0.4-1 s: pictures 2 to 4\n4.5-5 s: " in oracle.text
    asked = aggregator(numbered(3), question="what {is} it?").text
    assert "Question: what {is} it?" in asked and "summary" not in asked


def test_templates_are_the_user_s():
    aggregator = CaptionAggregator(span, str.upper, template="{{json}} {captions}", question="{question} / {captions}")
    assert aggregator(numbered(2)).text == "{JSON} 0-2 S: PICTURES 0 TO 1"
    assert aggregator(numbered(2), question="who?").text == "WHO? / 0-2 S: PICTURES 0 TO 1"
    # Braces in a caption are its own.
    assert CaptionAggregator(lambda clip: "{x}", str.lower)(numbered(2)).prompt.count("{x}") == 1


def test_a_captioner_gets_all_segments_in_one_batch_of_its_length():
    cap, told = make_captioner(frames=8), []
    generate = cap.generate
    cap.generate = lambda video, *rest, **options: (told.append(video), generate(video, *rest, **options))[1]
    video = torch.randint(256, (3, 45, 32, 32), dtype=torch.uint8)
    found = CaptionAggregator(cap, lambda prompt: "so", seconds=16, prompt="the", max_new_tokens=5)(video)
    (batch,) = told
    parts = [video[:, :16], video[:, 16:32], video[:, 32:]]
    # 16 and 13 pictures at even distances: 8 is what this encoder takes.
    assert torch.equal(batch, torch.stack([fit_frames(part, 8) for part in parts]))
    alone = [generate(clip[None], "the", 5)[0] for clip in batch]
    assert found.captions == alone and len(set(alone)) > 1


def test_masks_follow_the_generator():
    aggregator = CaptionAggregator(make_captioner(), lambda prompt: "so", seconds=8, max_new_tokens=8)
    video = torch.randint(256, (3, 32, 32, 32), dtype=torch.uint8)
    runs = [
        aggregator(video, mask_ratio=0.5, generator=torch.Generator().manual_seed(seed)).captions for seed in (0, 0, 1)
    ]
    assert runs[0] == runs[1] != runs[2]
    with pytest.raises(ValueError, match="mask_ratio: wanted 0 with a plain callable"):
        CaptionAggregator(span, str.lower)(numbered(2), mask_ratio=0.3)


def test_a_chat_model_chooses_by_log_likelihood():
    tokenizer = make_tokenizer()
    chat = ChatModel(make_lm(tokenizer, positions=512), tokenizer)
    aggregator = CaptionAggregator(lambda clip: "the digit moves up", chat)
    options = ["up", "the digit moves down"]
    for normalise in ("sum", "tokens"):
        scores = aggregator.choose(numbered(20), "which way ?", options, normalise=normalise)
        prompt = aggregator.question.format(
            captions="0-16 s: the digit moves up\n16-20 s: the digit moves up", question="which way ?"
        )
        assert torch.equal(scores, chat.score(prompt, options, normalise))


def test_a_plain_callable_chooses_by_its_letter():
    asked = []

    def choose(reply):
        aggregator = CaptionAggregator(span, lambda prompt: (asked.append(prompt), reply)[1])
        return aggregator.choose(numbered(3), "which?", ["up", "down", "left"]).tolist()

    assert choose("C") == [0.0, 0.0, 1.0]
    assert "Question: which?\nA. up\nB. down\nC. left\n" in asked[0] and "pictures 0 to 2" in asked[0]
    assert all(score != score for score in choose("no idea"))  # NaN


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="captioner: wanted a callable"):
        CaptionAggregator("blip", str.lower)
    with pytest.raises(ValueError, match="llm: wanted a callable"):
        CaptionAggregator(span, None)
    with pytest.raises(ValueError, match="seconds: wanted a finite number above 0"):
        CaptionAggregator(span, str.lower, 0)
    for name, template in (("template", "all of it"), ("question", "{captions}"), ("choice", "{captions} {question}")):
        with pytest.raises(ValueError, match=f"{name}: wanted the fields"):
            CaptionAggregator(span, str.lower, **{name: template})
    with pytest.raises(ValueError, match="template: wanted braces in pairs"):
        CaptionAggregator(span, str.lower, template="{captions")
    with pytest.raises(ValueError, match="captioner: wanted a string back, got int"):
        CaptionAggregator(lambda clip: 3, str.lower)(numbered(2))
    with pytest.raises(ValueError, match="llm: wanted a string back, got NoneType"):
        CaptionAggregator(span, lambda prompt: None)(numbered(2))
    with pytest.raises(ValueError, match="video: wanted"):
        CaptionAggregator(span, str.lower)(numbered(2)[None])
    with pytest.raises(ValueError, match="options: wanted 1 to 26, got 0"):
        CaptionAggregator(span, str.lower).choose(numbered(2), "?", [])
