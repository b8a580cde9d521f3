"""Two commits in turns: who is asked when, what is said of slower ones, and the real thing on the repository itself."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import compare

ROOT = Path(__file__).parents[2]


class Fake:
    """Answers as a child does, and notes the order."""

    def __init__(self, name, seconds, turns, wrong=None):
        self.name, self.seconds, self.turns, self.wrong = name, seconds, turns, wrong

    def ask(self, do, name=None):
        if do == "ready":
            return {"error": self.wrong} if self.wrong else {"seconds": self.seconds}
        self.turns.append(self.name)
        return {"seconds": self.seconds}


def test_rounds_alternate_and_ratios_are_of_the_same_round():
    turns = []
    found = compare.compare_case("case", (Fake("A", 2.0, turns), Fake("B", 1.0, turns)), rounds=4, seconds=0.0)
    assert "".join(turns) == "ABBAABBA"
    assert found["ratio"].samples == (2.0,) * 4 and "2.000 (2.000 to 2.000)" in compare._line(found)


def test_a_wrong_result_is_not_timed():
    turns = []
    found = compare.compare_case("case", (Fake("A", 2.0, turns), Fake("B", 1.0, turns, "result 0: NaN")), 4, 0.0)
    assert found["error"] == "B: result 0: NaN" and not turns
    assert "not timed: B: result 0: NaN" in compare._line(found)


def test_which_commit_is_asked_for():
    with pytest.raises(SystemExit) as stopped:
        compare.main([])
    assert stopped.value.code == 2


def test_an_unknown_commit_is_one_line(tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("no history here")
    with pytest.raises(SystemExit, match="no-such-commit"):
        compare.checkout("no-such-commit", tmp_path / "tree", build=False)


@pytest.mark.parametrize(("ratio", "status"), [(1.0, 0), (0.9, 1), (1.2, 0)])
def test_slower_than_the_threshold_fails(ratio, status, monkeypatch, tmp_path, capsys):
    class Listed(Fake):
        def __init__(self, name, root, harness, arguments):
            super().__init__(name, ratio if name.startswith("A") else 1.0, [])
            self.root = root

        def ask(self, do, name=None):
            return {"names": ["one"], "package": str(self.root / "fastvivit")} if do == "list" else super().ask(do)

        def close(self):
            pass

    monkeypatch.setattr(compare, "Child", Listed)
    monkeypatch.setattr(compare, "checkout", lambda commit, folder, build: folder)
    given = argparse.Namespace(
        a="a", b="b", only=None, quick=True, device="cpu", rounds=3, seconds=0.0, threshold=0.05, no_build=True
    )
    assert compare._compare(given, tmp_path) == status
    assert f"{status} slower in B" in capsys.readouterr().out


def test_this_commit_beside_the_working_tree():
    if not (ROOT / ".git").exists():
        pytest.skip("no history here")
    arguments = ["HEAD", "--only", "rows/gather", "--quick", "--no-build", "--device", "cpu", "--threshold", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.compare", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "A HEAD" in done.stdout and "2 cases, 0 not timed, 0 slower" in done.stdout
    trees = subprocess.run(["git", "worktree", "list"], cwd=ROOT, capture_output=True, text=True).stdout
    assert "fastvivit-compare-" not in trees
