"""``fastvivit bench``: in a checkout, and JSON lines that a pipe can read."""

import json

import pytest

from fastvivit.cli import bench


def test_json_lines_go_to_stdout_and_the_rest_to_stderr(call):
    code, out, err = call("bench", "--quick", "--device", "cpu", "--only", "rows/gather", "--json")
    assert code == 0
    kinds = [json.loads(line)["kind"] for line in out.splitlines()]
    assert kinds == ["ceilings", "case", "case"]
    assert "copy, read and written" in err and "0 wrong" in err


def test_the_list_of_cases_needs_no_run(call):
    code, out, _ = call("bench", "--list", "--device", "cpu", "--only", "encoder")
    assert code == 0 and out.splitlines() and all("encoder/" in line for line in out.splitlines())


@pytest.mark.parametrize("arguments", [["--only", "no such case"], ["--quick", "--save"], ["--dtype", "int8"]])
def test_mistakes_end_with_2(call, arguments):
    assert call("bench", *arguments)[0] == 2


def test_the_checkout_comes_first():
    assert bench.load("run").__name__ == "benchmarks.run"


def test_no_benchmarks_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(bench.fastvivit, "__file__", str(tmp_path / "fastvivit" / "__init__.py"))
    monkeypatch.setattr(bench, "find_spec", lambda name: None)  # an editable install has them at hand
    with pytest.raises(ValueError, match="neither in this package nor beside it"):
        bench.load("run")
