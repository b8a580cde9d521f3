"""``make gpu`` as far as a CPU goes: its stages, steps that fail or never end, the smoke checks in the interpreter."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, smoke, smoke_checks
from benchmarks.case import Options
from benchmarks.cases import all_cases

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("stage", gpu.STAGES)
@pytest.mark.parametrize("dry", [False, True])
def test_every_stage_has_steps_that_end(stage, dry):
    steps = gpu.steps(stage, "python3", dry=dry, save=["results", "out"])
    # A machine without the sanitizer has nothing to run there but the dry run's own calls.
    assert steps or (stage == "sanitize" and not dry)
    for step in steps:
        assert step.command[0] == "python3" or "compute-sanitizer" in step.command[0]
        assert 0 < step.seconds <= 240


def test_what_claims_rest_on_runs_first_and_fits():
    """The stages before the sanitizer's fit into ten minutes even if each takes all it may."""
    seconds = {stage: sum(s.seconds for s in gpu.steps(stage, "p", dry=False, save=["r"])) for stage in gpu.STAGES}
    assert gpu.STAGES.index("smoke") < gpu.STAGES.index("bench") < gpu.STAGES.index("test")
    assert seconds["build"] + seconds["smoke"] + seconds["bench"] + seconds["test"] <= 600


def test_words_of_the_benchmarks_name_cases_and_every_claim_is_in_the_first_stage():
    cases = all_cases(Options(device="cuda", dtype=torch.bfloat16))
    words = {stage: [word for _, only, _, _ in found for word in only] for stage, found in gpu.BENCHES.items()}
    for word in sum(words.values(), []):
        assert any(word in case.name for case in cases), word
    for case in cases:
        if any(claim.text.startswith("H100") for claim in case.claims):
            assert any(word in case.name for word in words["bench"]), case.name
        assert any(word in case.name for word in sum(words.values(), [])), case.name


def _step(code, seconds=20.0):
    return gpu.Step(name="a step", command=[sys.executable, "-c", code], seconds=seconds)


def test_a_step_passes_its_output_on_and_says_how_it_ended(capsys, tmp_path):
    with (tmp_path / "log").open("w") as log:
        assert gpu.run(_step("print('hello')"), 20.0, log) == "ok"
        assert gpu.run(_step("raise SystemExit(3)"), 20.0, log) == "ended with 3"
    assert "hello" in capsys.readouterr().out and (tmp_path / "log").read_text() == "hello\n"


def test_a_step_that_never_ends_is_stopped_with_all_it_started(capsys):
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    began = time.monotonic()
    assert gpu.run(_step(code), 2.0, None) == "cut short after 2 s"
    assert time.monotonic() - began < 20
    child = int(capsys.readouterr().out.splitlines()[-1])
    time.sleep(0.2)
    state = Path(f"/proc/{child}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "_has_gpu", lambda: False)
    assert gpu.main(["--stages", "smoke"]) == 2
    assert "--dry-run" in capsys.readouterr().err


def test_a_step_that_fails_does_not_stop_the_next(monkeypatch, capsys):
    made = {"smoke": [_step("raise SystemExit(1)")], "bench": [_step("print('still here')")]}
    monkeypatch.setattr(gpu, "steps", lambda stage, *a, **k: made[stage])
    assert gpu.main(["--dry-run", "--stages", "bench", "smoke"]) == 1
    out = capsys.readouterr().out
    assert "still here" in out and out.index("ended with 1") < out.index("still here")


def test_every_kernel_family_is_in_the_smoke_checks():
    found = [check for group in smoke.PARTS for check in smoke_checks.checks(group, "cpu")]
    names = [check.name for check in found]
    assert len(set(names)) == len(names)
    assert set(smoke.PARTS) == set(smoke_checks.GROUPS)
    if any(check.backend.name == "triton" for check in found):
        for word in ("attention", "embed", "gather", "scatter", "segment mean", "causal", "lse", "deterministic"):
            assert any(word in name for name in names), word
    for group in smoke.PARTS:
        tiny = smoke_checks.checks(group, "cpu", tiny=True)
        assert len(tiny) <= 8


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter's part; a GPU runs all of it by make gpu-smoke")
def test_smoke_runs_in_the_interpreter_and_keeps_its_lines(tmp_path, capsys):
    pytest.importorskip("triton")
    lines = tmp_path / "smoke.jsonl"
    assert smoke.main(["--device", "cpu", "--only", "rows", "--tiny", "--json", str(lines)]) == 0
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    assert found and all(line["verdict"] == "ok" and line["kind"] == "smoke" for line in found)
    assert "0 wrong" in capsys.readouterr().out


def test_a_process_that_dies_is_blamed_on_its_check_and_the_rest_goes_on(monkeypatch):
    """A broken context ends the process: the check it died in is wrong, the next one runs in a fresh process."""
    script = (
        "import json, sys\n"
        "names = ['one', 'two', 'three']\n"
        "after = sys.argv[sys.argv.index('--after') + 1]\n"
        "for name in names[names.index(after) + 1 if after else 0:]:\n"
        "    print(json.dumps({'name': name}), flush=True)\n"
        "    if name == 'two':\n"
        "        sys.exit('an illegal memory access')\n"
        "    print(json.dumps({'name': name, 'verdict': 'ok', 'seconds': 0, 'note': ''}), flush=True)\n"
    )
    real = subprocess.run

    def fake(command, **options):
        return real([sys.executable, "-c", script, *command[3:]], **options)

    monkeypatch.setattr(smoke.subprocess, "run", fake)
    given = type("Given", (), {"tiny": False, "limit": 30.0})
    found = smoke._group("rows", 0, 1, "cpu", given)
    assert [(line["name"], line["verdict"]) for line in found] == [("one", "ok"), ("two", "WRONG"), ("three", "ok")]
    assert "illegal memory access" in found[1]["note"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter's part")
def test_a_wrong_result_is_found(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setitem(os.environ, "TRITON_INTERPRET", "1")
    (check, *_) = smoke_checks.checks("rows", "cpu", tiny=True)
    assert smoke._judge(check, "cpu")[0] == "ok"
    object.__setattr__(check, "call", _spoiled(check.call))
    verdict, note, fatal = smoke._judge(check, "cpu")
    assert verdict == "WRONG" and "RMS" in note and not fatal


def _spoiled(call):
    return lambda floats, backend: [out * (1.01 if backend != "reference" else 1) for out in call(floats, backend)]
