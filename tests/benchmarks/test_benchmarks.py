"""The benchmark harness: gates that catch, whole records, formulas that count what PyTorch counts."""

from __future__ import annotations

import dataclasses
import json
import time

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import measure, provenance, run
from benchmarks.case import OURS, Bench, Case, Claim, Contestant, Options
from benchmarks.cases import all_cases
from benchmarks.families.attention import attention_cases
from benchmarks.families.block import block_cases
from benchmarks.families.caption import Sizes, caption_cases
from benchmarks.families.embed import LINEAR, embed_cases
from benchmarks.families.loss import loss_cases
from benchmarks.families.overhead import overhead_cases
from benchmarks.families.rows import rows_cases
from benchmarks.gate import against
from benchmarks.peers import hf, sdpa

QUICK = Options(quick=True)
PROVENANCE = {
    *(
        "date",
        "commit",
        "dirty",
        "device",
        "threads",
        "python",
        "torch",
        "triton",
        "transformers",
        "fastvivit",
        "cpu_level",
    ),
    *("torch_cpu_level", "quick", "source", "dtype", "gpu"),
}
RECORD = {
    *(
        "kind",
        "name",
        "layer",
        "counts",
        "facts",
        "clock",
        "absent",
        "flops",
        "bytes",
        "gate",
        "rounds",
        "contestants",
        "claims",
        "ceiling",
    ),
    *PROVENANCE,
}


def _by_name(cases: list[Case], part: str) -> Case:
    return next(case for case in cases if part in case.name)


def _with_ours(case: Case, call) -> Case:
    """The case with another implementation of ours, judged by the same gate against float64."""

    def build() -> Bench:
        bench = case.build()
        contestants = {**bench.contestants, OURS: Contestant(call=call(bench.contestants[OURS].call))}
        return Bench(contestants=contestants, gate=against(bench.contestants["index_select"].call, contestants))

    return dataclasses.replace(case, build=build)


@pytest.mark.parametrize(
    "family",
    [embed_cases, attention_cases, rows_cases, loss_cases, block_cases, overhead_cases],
    ids=lambda f: f.__name__,
)
def test_ours_and_peers_pass_the_gates(family):
    for case in family(QUICK):
        assert case.build().gate() is None, case.name


@pytest.mark.parametrize(
    "spoil",
    [
        lambda call: lambda: call() * 1.001,
        lambda call: lambda: call().roll(1, 0),
        lambda call: lambda: call()[:-1],
        lambda call: lambda: call().masked_fill(call() == call()[3, 3], float("nan")),
    ],
    ids=["scaled", "rows moved", "a row short", "one NaN"],
)
def test_a_wrong_result_is_not_timed_and_fails_the_run(spoil, monkeypatch, capsys, tmp_path):
    case = _with_ours(_by_name(rows_cases(QUICK), "rows/gather"), spoil)
    monkeypatch.setattr(run, "all_cases", lambda options: [case])
    monkeypatch.setattr(run, "ceilings", lambda *a, **k: measure.Ceilings(1e9, 1e9))
    monkeypatch.setattr(run, "interleaved", lambda *a, **k: pytest.fail("a wrong result was timed"))
    written = tmp_path / "lines.jsonl"
    assert run.main(["--quick", "--device", "cpu", "--json", str(written)]) == 1
    assert "WRONG, not timed: fastvivit: result 0" in capsys.readouterr().out
    assert json.loads(written.read_text().splitlines()[-1])["gate"].startswith("fastvivit: result 0")


def test_a_wrong_peer_fails_too():
    case = _by_name(rows_cases(QUICK), "segment mean by clip")
    bench = case.build()
    wrong = {
        **bench.contestants,
        "index_add_": Contestant(call=lambda: bench.contestants[OURS].call() * 1.01),
    }
    assert against(bench.contestants[OURS].call, wrong)().startswith("index_add_: ")


def test_lines_hold_the_whole_schema(tmp_path, capsys):
    written = tmp_path / "lines.jsonl"
    assert run.main(["--quick", "--device", "cpu", "--only", "embed/", "rows/scatter", "--json", str(written)]) == 0
    ceilings, *cases = (json.loads(line) for line in written.read_text().splitlines())
    assert set(ceilings) == {"kind", "copy_bytes_per_s", "product_flop_per_s", *PROVENANCE}
    assert ceilings["kind"] == "ceilings" and ceilings["copy_bytes_per_s"] > 0 and ceilings["product_flop_per_s"] > 0
    assert len(cases) == 3
    for case in cases:
        assert set(case) == RECORD
        assert case["kind"] == "case" and case["gate"] == "ok" and case["quick"] and case["claims"] == []
        assert case["torch"] == torch.__version__ and case["threads"] == torch.get_num_threads()
        for name, entry in case["contestants"].items():
            assert 0 < entry["seconds"]["p10"] <= entry["seconds"]["median"] <= entry["seconds"]["p90"]
            assert ("speedup_of_ours" in entry) == (name != OURS)
    assert "copy, read and written" in capsys.readouterr().out.splitlines()[2]


@pytest.mark.parametrize("arguments", [["--quick", "--save"], ["--only", "no such case"]])
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(SystemExit) as stopped:
        run.main(arguments)
    assert stopped.value.code == 2


def test_names_are_unique_and_every_case_says_where_its_shape_comes_from():
    for options in (QUICK, Options()):
        cases = all_cases(options)
        assert len({case.name for case in cases}) == len(cases)
        assert all(case.layer and case.counts for case in cases)
        # Only what a call costs has no work to be held against.
        assert all(case.flops or case.bytes for case in cases if not case.name.startswith("overhead/"))


def _counted(call) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("backward", [False, True])
def test_embed_flops_are_those_that_pytorch_counts(backward):
    case = embed_cases(QUICK)[backward]
    contestants = case.build().contestants
    assert case.flops == _counted(contestants[OURS].call)
    assert case.flops == _counted(contestants[LINEAR].call)


def test_embed_bytes_are_those_of_its_tensors():
    case = embed_cases(QUICK)[0]
    rows = case.build().contestants[OURS].call()
    kept, width, patch = rows.shape[1], rows.shape[2], 3 * 2 * 16 * 16
    pixels, weight, bias, positions = kept * patch, 4 * width * patch, 4 * width, 4 * kept * width
    assert case.bytes == pixels + weight + bias + positions + rows.nbytes


@pytest.mark.parametrize("backward", [False, True])
def test_attention_flops_are_those_that_pytorch_counts(backward):
    equal, unequal = attention_cases(QUICK)[backward], attention_cases(QUICK)[2 + backward]
    assert equal.flops == _counted(equal.build().contestants[OURS].call)
    if not backward:
        # The two bare products, which the counter sees only when they are not fused.
        with sdpa_kernel(SDPBackend.MATH):
            assert equal.flops == _counted(equal.build().contestants["sdpa"].call)
            assert unequal.flops == _counted(unequal.build().contestants["sdpa, clip by clip"].call)


def test_attention_bytes_are_those_of_its_tensors():
    case = attention_cases(QUICK)[0]
    assert case.bytes == 4 * case.build().contestants[OURS].call().nbytes


def test_padding_is_what_the_mask_hides():
    x, lengths = torch.randn(6, 2, 4), (1, 5)
    padded, mask = sdpa.padded(x, lengths), sdpa.padding_mask(lengths, "cpu")
    assert padded.shape == (2, 2, 5, 4)
    assert torch.equal(padded.transpose(1, 2)[mask[:, 0, 0] == 0], x)


@pytest.mark.skipif(hf.missing() is not None, reason=str(hf.missing()))
def test_encoders_compute_the_same_function_before_they_are_timed():
    for case in (case for case in all_cases(QUICK) if case.name.startswith("encoder/")):
        bench = case.build()
        assert bench.gate() is None, case.name
        assert set(case.peak) == set(bench.contestants)


@pytest.mark.skipif(hf.missing() is not None, reason=str(hf.missing()))
def test_a_captioner_writes_and_learns_what_it_should_before_it_is_timed():
    writing, *steps = caption_cases(QUICK)
    assert writing.build().gate() is None
    for step in steps:
        bench = step.build()
        assert bench.gate() is None and set(step.peak) == set(bench.contestants)


@pytest.mark.skipif(hf.missing() is not None, reason=str(hf.missing()))
@pytest.mark.parametrize("latents", [None, 6, 0])
def test_a_captioners_work_is_counted(latents):
    sizes = Sizes.of(QUICK, 8, latents)
    captioner = sizes.captioner(QUICK)
    layers = [p for layer in captioner.layers for p in (layer.attn.q.weight, layer.attn.proj.weight)]
    passed = [p for p in captioner.lm.parameters() if p.dim() == 2]
    assert sizes.text_weights == sum(p.numel() for p in passed + layers)
    vision = captioner.encode_video(sizes.clips(1, QUICK))
    media = captioner.look(vision)
    counted = _counted(lambda: [layer.attn.keys(media.tokens) for layer in captioner.layers])
    counted += _counted(lambda: captioner.look(vision))
    assert sizes.resampling(1) == pytest.approx(counted, rel=0.01)


def test_spreads():
    spread = measure.Spread((4.0, 1.0, 3.0, 2.0, 5.0))
    assert (spread.median, spread.p10, spread.p90) == (3.0, pytest.approx(1.4), pytest.approx(4.6))
    half = measure.Spread((2.0, 0.5, 1.5, 1.0, 2.5))
    assert spread.over(half).samples == (2.0,) * 5
    assert half.beyond(half).median == 0.0


def test_repeats_alternate():
    turns = []

    def called(name: str) -> None:
        turns.append(name)
        # Longer than a sample has to be, so that it is one call.
        time.sleep(1.1 * measure.SAMPLE)

    calls = {name: lambda name=name: called(name) for name in "ab"}
    found = measure.interleaved(calls, seconds=0.0, min_rounds=4, device="cpu")
    assert {len(spread.samples) for spread in found.values()} == {4}
    # Two calls each to warm up and to estimate, then rounds, every second one backwards.
    assert "".join(turns) == "aabb" + "abbaabba"


def test_claims_take_the_fastest_peer_that_took_part():
    found = {OURS: measure.Spread((1.0,)), "slow": measure.Spread((8.0,)), "fast": measure.Spread((3.0,))}
    judged = Claim(text="", peers=("slow", "fast", "absent"), at_least=4.0).judge(found)
    assert (judged["peer"], judged["value"], judged["met"]) == ("fast", 3.0, False)
    judged = Claim(text="", peers=("fast",), at_most=0.5).judge(found)
    assert judged["value"] == pytest.approx(1 / 3) and judged["met"]
    assert Claim(text="", peers=("absent",), at_least=1.0).judge(found) is None
    assert Claim(text="", under=2.0).judge(found)["met"]
    assert Claim(text="", under=2.0, minus="absent").judge(found) is None
    assert Claim(text="", under=2.0, minus="fast").judge(found)["met"]
    found = {OURS: measure.Spread((8.0,)), "part": measure.Spread((2.0,)), "peer": measure.Spread((3.0,))}
    judged = Claim(text="", peers=("peer",), at_most=2.5, minus="part").judge(found)
    assert judged["value"] == pytest.approx(2.0) and judged["met"]


def test_a_claim_is_not_judged_in_noise_beyond_it():
    noisy = {OURS: measure.Spread((1.0, 9.0, 2.0)), "sdpa": measure.Spread((1.0, 1.0, 1.0))}
    assert Claim(text="", under=3.0, minus="sdpa").judge(noisy)["met"] is None
    assert Claim(text="", under=20.0, minus="sdpa").judge(noisy)["met"] is True


def test_results_are_named_by_day_device_and_commit():
    run_of = {"date": "2026-01-02T03:04:05+00:00", "device": "AMD EPYC (tm) 9", "commit": "0123456789ab"}
    assert provenance.results_file(run_of).name == "2026-01-02_amd-epyc-tm-9_0123456789ab.jsonl"


def test_claims_of_rates_and_of_bandwidth():
    case = Case(name="c", layer="", counts="", flops=10**12, bytes=10**9, build=lambda: None)
    limits = measure.Ceilings(copy=4e9, product=1e15)
    found = {OURS: measure.Spread((0.5, 0.5)), "map": measure.Spread((0.25, 0.25)), "loose": measure.Spread((0.2, 0.2))}
    judged = Claim(text="", rate=2e12).judge(found, case, limits)
    assert (judged["value"], judged["unit"], judged["met"]) == (2.0, "TFLOP/s", True)
    judged = Claim(text="", rate=6e12, who="loose").judge(found, case, limits)
    assert (judged["who"], judged["met"]) == ("loose", False) and judged["value"] == pytest.approx(5.0)
    assert not Claim(text="", of_copy=0.9).judge(found, case, limits)["met"]
    judged = Claim(text="", of_copy=0.9, minus="map").judge(found, case, limits)
    assert judged["value"] == pytest.approx(1.0) and judged["met"]
    assert Claim(text="", rate=1.0, who="absent").judge(found, case, limits) is None


def test_a_peer_with_more_work_is_judged_by_its_rate():
    case = Case(name="c", layer="", counts="", flops=100, bytes=1, build=lambda: None)
    found = {OURS: measure.Spread((1.0,)), "equal": measure.Spread((2.0,))}
    claim = Claim(text="", peers=("equal",), at_least=0.95)
    assert claim.judge(found, case, None, {"equal": 200})["value"] == pytest.approx(1.0)
    assert claim.judge(found, case, None, {"equal": 400})["met"] is False
    saved = dataclasses.replace(claim, times=True)
    assert saved.judge(found, case, None, {"equal": 400})["value"] == pytest.approx(2.0)


def test_a_peer_that_refuses_is_named_with_its_reason_and_the_rest_is_timed():
    case = _by_name(rows_cases(QUICK), "rows/gather")

    def build() -> Bench:
        bench = case.build()

        def refuse():
            raise RuntimeError("no kernel for this\nand a long story")

        bench.contestants["other"] = Contestant(call=refuse)
        bench.contestants["off"] = Contestant(call=lambda: bench.contestants["index_select"].call() * 2)
        return bench

    record = run.run_case(dataclasses.replace(case, build=build), measure.Ceilings(1e9, 1e9), QUICK)
    assert record["gate"] == "ok" and set(record["contestants"]) >= {OURS, "index_select"}
    assert record["absent"]["other"] == "RuntimeError: no kernel for this"
    assert record["absent"]["off"].startswith("result 0: ")
    assert not {"other", "off"} & set(record["contestants"])


@pytest.mark.parametrize("when", ["build", "time"])
def test_a_case_that_breaks_leaves_the_others_alone(when, monkeypatch):
    def boom(*arguments, **more):
        raise RuntimeError("out of everything")

    case = _by_name(rows_cases(QUICK), "rows/gather")
    if when == "build":
        case = dataclasses.replace(case, build=boom)
    else:
        monkeypatch.setattr(run, "interleaved", boom)
    record = run.run_case(case, measure.Ceilings(1e9, 1e9), QUICK)
    assert "out of everything" in record["gate"] and record["contestants"] == {}


def test_a_slow_peer_is_called_once():
    turns = []
    calls = {"fast": lambda: turns.append("f"), "slow": lambda: (turns.append("s"), time.sleep(1.05))}
    found = measure.interleaved(calls, seconds=0.0, min_rounds=3, device="cpu")
    assert turns.count("s") == 1 and found["slow"].p10 == found["slow"].p90 >= 1.05
    assert len(found["slow"].samples) == len(found["fast"].samples) == 3
