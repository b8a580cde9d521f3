"""Time two commits beside each other: ``python -m benchmarks.compare A [B] [--only FAMILY ...] [--quick]``.

B is the working tree where it is not named. Each commit is checked out into a temporary folder and built there; both
are timed by this tree's cases, each in a process of its own that lives as long as the comparison, and the two take
turns: a round samples both, every second one in the other order, so that a drift of the machine meets both. Only our
own times are taken, after the same gate as in ``fastvivit bench``. Exits with 1 where a result was wrong, or where a
case is slower in B by more than ``--threshold`` with its whole spread.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
WORKING_TREE = "."


class Child:
    """A process that times the cases with one commit's package."""

    def __init__(self, name: str, package: Path, harness: Path, arguments: list[str]) -> None:
        self.name = name
        # The harness first: a commit's own benchmarks, if any, are not what is run.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (harness, package)))}
        command = [sys.executable, "-m", "benchmarks.compare", "--child", *arguments]
        self._process = subprocess.Popen(
            command, cwd=harness, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **question: object) -> dict:
        """Its answer to one question; an error where it has gone."""
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            for line in self._process.stdout:
                if line.startswith("{"):
                    return json.loads(line)
        except BrokenPipeError:
            pass
        return {"error": f"the process of {self.name} ended with {self._process.wait()}"}

    def close(self) -> None:
        """End it, by closing what it reads from."""
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def child(options) -> int:
    """Answer questions from stdin: which cases, make one ready, sample it."""
    import torch

    import fastvivit

    from . import measure
    from .case import OURS
    from .cases import all_cases
    from .run import _gate

    cases = {case.name: case for case in all_cases(options)}
    call, take, times = None, None, 1
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if asked["do"] == "list":
                answer = {"names": list(cases), "package": str(Path(fastvivit.__file__).parent)}
            elif asked["do"] == "ready":
                call = None  # the last case's tensors go before the next one's come
                case = cases[asked["name"]]
                bench = case.build()
                wrong, _ = _gate(bench)
                if wrong:
                    answer = {"error": wrong}
                else:
                    call = bench.contestants[OURS].call
                    cold = options.gpu and case.clock == "device"
                    take = measure.ColdCalls(options.device).sample if cold else measure.sample
                    take(call, 1, options.device)
                    estimate = max(take(call, 1, options.device), 1e-7)
                    times = math.ceil((measure.DEVICE_SAMPLE if cold else measure.SAMPLE) / estimate)
                    times = min(times, measure.DEVICE_CALLS) if cold else times
                    answer = {"seconds": estimate * times}
            else:
                answer = {"seconds": take(call, times, options.device)}
        except Exception as error:  # a commit may lack what a case asks for
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        if options.gpu:
            torch.cuda.synchronize()
        print(json.dumps(answer), flush=True)
    return 0


def checkout(commit: str, folder: Path, *, build: bool) -> Path:
    """The root of a built tree of ``commit``."""
    if commit == WORKING_TREE:
        root = ROOT
    else:
        root = folder
        _run("git", "worktree", "add", "--detach", "--quiet", str(root), commit)
    if build:
        _run(sys.executable, "setup.py", "-q", "build_ext", "--inplace", cwd=root)
    return root


def _run(*command: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"compare: {' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout.strip()


def compare_case(name: str, pair: tuple[Child, Child], rounds: int, seconds: float) -> dict[str, object]:
    """Both spreads and the ratio A / B, round by round; or why there are none."""
    from .measure import MAX_ROUNDS, Spread

    ready = [each.ask(do="ready", name=name) for each in pair]
    for each, answer in zip(pair, ready, strict=True):
        if "error" in answer:
            return {"name": name, "error": f"{each.name}: {answer['error']}"}
    turns = max(rounds, min(MAX_ROUNDS, int(seconds / max(sum(answer["seconds"] for answer in ready), 1e-6))))
    samples: tuple[list[float], list[float]] = ([], [])
    for turn in range(turns):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            answer = pair[which].ask(do="sample")
            if "error" in answer:
                return {"name": name, "error": f"{pair[which].name}: {answer['error']}"}
            samples[which].append(answer["seconds"])
    a, b = (Spread(tuple(found)) for found in samples)
    return {"name": name, "rounds": turns, "a": a, "b": b, "ratio": a.over(b)}


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    import torch

    parser = argparse.ArgumentParser(prog="benchmarks.compare", description=__doc__.splitlines()[0])
    parser.add_argument("a", nargs="?", help="a commit")
    parser.add_argument("b", nargs="?", default=WORKING_TREE, help="another; the working tree if not named")
    parser.add_argument("--only", nargs="+", metavar="FAMILY", help="cases whose name contains one of these")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: proves that the harness works")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5, help="at least")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a case, more rounds while they last")
    parser.add_argument("--threshold", type=float, default=0.05, help="share by which B may be slower")
    parser.add_argument("--no-build", action="store_true", help="compile nothing: PyTorch's own ops take over")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)

    from .case import Options

    dtype = torch.bfloat16 if given.device.startswith("cuda") else torch.float32
    options = Options(quick=given.quick, device=given.device, dtype=dtype)
    if given.child:
        return child(options)
    if given.a is None:
        parser.error("which commit? python -m benchmarks.compare A [B]")
    with tempfile.TemporaryDirectory(prefix="fastvivit-compare-") as temporary:
        try:
            return _compare(given, Path(temporary))
        finally:
            for tree in Path(temporary).glob("tree*"):
                command = ["git", "worktree", "remove", "--force", str(tree)]
                subprocess.run(command, cwd=ROOT, capture_output=True, check=False)


def _compare(given: argparse.Namespace, temporary: Path) -> int:
    harness = temporary / "harness"
    # A copy, so that neither child finds this tree's package beside it.
    shutil.copytree(HERE, harness / "benchmarks", ignore=shutil.ignore_patterns("results", "__pycache__"))
    named = [(f"A {given.a}", given.a), (f"B {given.b}", given.b)]
    roots = [checkout(which, temporary / f"tree{i}", build=not given.no_build) for i, (_, which) in enumerate(named)]
    arguments = ["--device", given.device, *["--quick"] * given.quick]
    pair = tuple(Child(name, root, harness, arguments) for (name, _), root in zip(named, roots, strict=True))
    try:
        listed = [each.ask(do="list") for each in pair]
        for each, answer, root in zip(pair, listed, roots, strict=True):
            if "error" in answer:
                raise SystemExit(f"compare: {answer['error']}")
            assert Path(answer["package"]) == root / "fastvivit", answer["package"]
            print(f"{each.name}")
        names = [n for n in listed[0]["names"] if not given.only or any(part in n for part in given.only)]
        if not names:
            raise SystemExit(f"compare: no case has {' or '.join(map(repr, given.only))} in its name")
        print(f"\n{'case':<64}{'A':>10}{'B':>10}   A / B (10 and 90 %)", flush=True)
        found = []
        for name in names:
            found.append(compare_case(name, pair, given.rounds, 0.1 if given.quick else given.seconds))
            print(_line(found[-1]), flush=True)
    finally:
        for each in pair:
            each.close()
    wrong = [result for result in found if "error" in result]
    slower = [r for r in found if "ratio" in r and r["ratio"].p90 < 1 - given.threshold]
    print(f"\n{len(found)} cases, {len(wrong)} not timed, {len(slower)} slower in B by over {given.threshold:.0%}")
    return 1 if wrong or slower else 0


def _line(result: dict[str, object]) -> str:
    from .run import _time

    if "error" in result:
        return f"{result['name']:<64}not timed: {result['error']}"
    a, b, ratio = result["a"], result["b"], result["ratio"]
    times = f"{_time(a.median):>10}{_time(b.median):>10}"
    return f"{result['name']:<64}{times}   {ratio.median:.3f} ({ratio.p10:.3f} to {ratio.p90:.3f})"


if __name__ == "__main__":
    sys.exit(main())
