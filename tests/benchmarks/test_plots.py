"""Pictures are made from lines, and say what they can't know."""

import json

import pytest

pytest.importorskip("matplotlib")

from benchmarks import plots, run


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    written = tmp_path_factory.mktemp("lines") / "lines.jsonl"
    assert run.main(["--quick", "--device", "cpu", "--only", "rows/gather", "attention/", "--json", str(written)]) == 0
    return written


def test_a_run_draws_its_own_pictures(tmp_path):
    only = ["--only", "rows/scatter", "block/"]
    assert run.main(["--quick", "--device", "cpu", *only, "--plot", str(tmp_path)]) == 0
    assert (tmp_path / "roofline.png").read_bytes().startswith(b"\x89PNG")


def test_a_file_is_drawn_again(lines, tmp_path, capsys):
    assert plots.main([str(lines), "--out", str(tmp_path)]) == 0
    drawn = capsys.readouterr().out.split()
    # Two clips of 16 tokens: a rate over length, but no masking ratios to compare.
    assert {name.rpartition("/")[2] for name in drawn} == {"roofline.png", "attention_rate.png"}


def _masked(lines):
    ceilings, *cases = (json.loads(line) for line in lines.read_text().splitlines())
    (case, *_) = [case for case in cases if case["name"].startswith("attention/") and case["facts"]["equal"]]
    made = []
    for mask, tokens in ((0, 2048), (75, 512)):
        facts = {"model": "ViT-B", "frames": 16, "mask": mask, "direction": "forward", "equal": True, "tokens": tokens}
        facts |= {"clips": 1, "heads": 12, "head_dim": 64}
        made.append(case | {"name": f"attention/{mask}", "facts": facts, "quick": False})
    return ceilings, made


def test_lines_of_the_masking_plot_are_the_medians(lines):
    ceilings, cases = _masked(lines)
    figure = plots.masking(ceilings, {case["name"]: case for case in cases})
    (axis,) = figure.axes
    ours = next(line for line in axis.get_lines() if line.get_label() == "fastvivit")
    assert list(ours.get_xdata()) == [0, 75]
    wanted = [case["contestants"]["fastvivit"]["seconds"]["median"] * 1e3 for case in cases]
    assert list(ours.get_ydata()) == pytest.approx(wanted)


def test_rates_are_flops_over_medians(lines):
    ceilings, cases = _masked(lines)
    figure = plots.attention_rate(ceilings, {case["name"]: case for case in cases})
    ours = next(line for line in figure.axes[0].get_lines() if line.get_label() == "fastvivit")
    assert list(ours.get_xdata()) == [512, 2048]
    unit = plots._unit(ceilings["product_flop_per_s"])[0]
    rates = {c["facts"]["tokens"]: c["flops"] / c["contestants"]["fastvivit"]["seconds"]["median"] for c in cases}
    assert list(ours.get_ydata()) == pytest.approx([rates[512] / unit, rates[2048] / unit])


def test_nothing_timed_is_said():
    with pytest.raises(ValueError, match="got neither or one"):
        plots.draw([{"kind": "ceilings"}], None)
