"""Plans beside real steps: what a CPU can prove of it."""

import json

import pytest
import torch

from benchmarks import plan
from fastvivit.planning.devices import BY_NAME
from fastvivit.planning.switches import CONTEXT, needed


def test_real_steps_on_a_cpu_take_what_was_planned(tmp_path, capsys):
    words = ["ViT-L, 256 frames, 75 %", "ViT-L, 256 frames, unmasked", "selective", "beside images"]
    assert plan.main(["--quick", "--device", "cpu", "--only", *words, "--save", str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert path.name.endswith("_plan.jsonl") and len(rows) == 5
    for row in rows:
        assert row["kind"] == "plan" and row["ratio"] == pytest.approx(1, rel=0.05)
        assert row["measured_counted"].endswith("on a CPU") and row["measured_seconds"] is None and row["quick"]
    assert "worst" in capsys.readouterr().out


def test_a_plan_that_is_far_off_fails_the_run(monkeypatch):
    monkeypatch.setattr(plan, "measured", lambda *a: {"bytes": 1, "counted": "", "seconds": None})
    assert plan.main(["--quick", "--device", "cpu", "--only", "selective"]) == 1


def test_figures_are_of_whole_encoders_on_a_gpu_alone(capsys):
    with pytest.raises(SystemExit):
        plan.main(["--device", "cpu"])
    assert "--quick" in capsys.readouterr().err


def test_the_settings_that_claims_rest_on_are_predicted_to_fit_16_gb():
    for setting in plan.SETTINGS[1:2]:
        step = plan.step_of(setting, quick=False)
        assert step.mask_ratio == 0 and step.tuning == "all" and step.config.tokens == 32768
        assert CONTEXT < needed(step, BY_NAME["h100"]) < 16e9


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine: make gpu runs it where there is one")
def test_a_gpu_takes_what_was_planned():
    assert plan.main(["--device", "cuda", "--only", "ViT-B, 16 frames, unmasked"]) == 0
