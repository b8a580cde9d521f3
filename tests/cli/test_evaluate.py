"""``fastvivit evaluate``: what it prints is what the functions say."""

import json

import pytest

import fastvivit as fv
from fastvivit.data import read_manifest, write_manifest
from fastvivit.evaluation import Reading, captioning, multiple_choice, retrieval
from tests.tiny_captioner import make_captioner, make_lm, make_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*CIDEr:UserWarning")


@pytest.fixture(scope="module")
def cap(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cap") / "model"
    fv.save_pretrained(make_captioner(frames=8, size=32), folder)
    return folder


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("chat"), make_tokenizer()
    make_lm(tokenizer, 1024).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_captions_of_one_system(call, digits, cap, tmp_path):
    manifest = digits[1]
    said = tmp_path / "said.jsonl"
    asked = ("--fps", 8, "--mask", 0.5, "--seed", 2, "--prompt", "the", "--max-new-tokens", 5, "--limit", 4)
    code, out, err = call("evaluate", manifest, "--model", cap, *asked, "--predictions", said, "--json")
    assert code == 0, err
    found = json.loads(out)
    wanted = captioning(
        fv.load_pretrained(cap), read_manifest(manifest)[:4], "the", 0.5, 2, max_new_tokens=5, reading=Reading(fps=8.0)
    )
    scores = found["scores"]["long"]
    scores["seconds_per_clip"] = wanted["seconds_per_clip"]
    assert found["task"] == "captioning" and scores == wanted and len(said.read_text().splitlines()) == 4


def test_three_systems_in_a_table(call, digits, run, cap, chat, tmp_path):
    path = tmp_path / "with_broken.jsonl"
    entries = read_manifest(digits[1])[:2]
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    write_manifest(path, [*entries, fv.data.Entry(video=tmp_path / "broken.mp4", captions=("x",))])
    systems = ("--systems", "aggregator,long,selector", "--scorer", run, "--llm", chat, "--k", 4, "--seconds", 0.5)
    code, out, err = call("evaluate", path, "--model", cap, "--task", "summaries", "--fps", 8, *systems)
    assert code == 0 and "broken.mp4" in err, err
    table = [line.split() for line in out.splitlines()]
    assert table[0] == ["aggregator", "long", "selector"]
    assert [row[0] for row in table[1:]] == ["rouge_l_f1", "clips", "broken", "seconds_per_clip"]
    assert table[2][1:] == ["2"] * 3 and table[3][1:] == ["1"] * 3


def test_multiple_choice_by_a_setup(call, digits, cap, tmp_path):
    path = tmp_path / "questions.jsonl"
    extra = {"question": "which way ?", "options": ["up", "down then left"], "answer": 0}
    few = read_manifest(digits[1])[:3]
    write_manifest(path, [fv.data.Entry(video=entry.video, captions=("up",), extra=extra) for entry in few])
    given = ("--model", cap, "--setup", "perception-test", "--normalise", "tokens", "--json")
    code, out, err = call("evaluate", path, *given)
    assert code == 0, err
    wanted = multiple_choice(
        fv.load_pretrained(cap), path, "tokens", reading=fv.evaluation.SETUPS["perception-test"].reading
    )
    assert json.loads(out)["scores"]["long"]["accuracy"] == wanted["accuracy"]


def test_retrieval_takes_a_dual_encoder(call, digits, run, cap):
    code, out, err = call("evaluate", digits[1], "--model", run, "--task", "retrieval", "--json")
    assert code == 0, err
    wanted = retrieval(fv.load_pretrained(run / "model"), digits[1], reading=Reading(fps=8.0))
    assert json.loads(out)["scores"]["dual encoder"] == wanted
    code, _, err = call("evaluate", digits[1], "--model", cap, "--task", "retrieval")
    assert code == 2 and "wanted one with a text tower, got a VideoCaptioner" in err
    code, _, err = call("evaluate", digits[1], "--model", run)
    assert code == 2 and "wanted a VideoCaptioner, got a VideoTextModel" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--systems", "short"), "systems: wanted some of long, selector, aggregator, got 'short'"),
        (("--systems", "selector"), "scorer: wanted the folder of a dual encoder"),
        (("--systems", "aggregator"), "llm: wanted the folder of a chat model"),
        (("--task", "retrieval", "--systems", "long,selector"), "systems: wanted long alone for retrieval"),
        (("--setup", "msrvtt"), "setup: wanted one of msrvtt-retrieval, "),
        (("--limit", "0"), "limit: wanted at least 1, got 0"),
        (("--fps", "0"), "fps: wanted a finite number above 0"),
        (("--systems", "aggregator", "--llm", "nowhere"), "llm: wanted the folder of a transformers model"),
    ],
)
def test_mistakes_are_one_line(call, digits, cap, arguments, words):
    code, out, err = call("evaluate", digits[1], "--model", cap, *arguments)
    assert code == 2 and words in err and not out
