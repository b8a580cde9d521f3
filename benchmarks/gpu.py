"""Everything that only a machine with a GPU can prove, in under ten minutes, the most telling first.

    python benchmarks/gpu.py [--stages build smoke bench test sanitize more] [--minutes 9.5] [--dry-run]

``make gpu PYTHON=python3`` calls it: with the Python it is given, no virtual environment, no network. Every step
is a process with a time limit, prints as it goes, and appends its lines to ``benchmarks/results/`` as they come (and to
$OUT, where that names a folder), so that a run cut short leaves what it had. A step that fails does not stop the next.

    build     the compiled kernels, in place
    smoke     every Triton kernel family once, small, against the reference
    bench     the cases that claims rest on, with peers
    test      the op and module tests on the device
    sanitize  compute-sanitizer's memcheck and racecheck on a few small calls
    more      plans beside real steps; the other cases: whole encoders, masking ratios, short clips

``--dry-run`` goes through the same on a CPU as far as that can: Triton's interpreter, tiny shapes, nothing kept.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("build", "smoke", "bench", "test", "sanitize", "more")
HEADLINES = (
    *("ViT-B, 128 frames, 0 %", "ViT-B, 256 frames, 0 %", "8 clips of 1536 to 8192", "heads of 128"),
    *("embed/256 frames, 0 %", "embed/256 frames, 75 %"),
)
MASKED = ("frames, 25 %", "frames, 50 %", "ViT-B, 128 frames, 75", "ViT-B, 256 frames, 75", "ViT-B, 16 frames, 75")
MASKED += ("embed/16 ", "embed/128 ", "frames, 90 %", "attention/ViT-L")
# By stage: name, words of the cases, compiled peers, seconds.
BENCHES = {
    "bench": (
        ("attention at full length", ("attention/" + HEADLINES[0], "attention/" + HEADLINES[1]), True, 90),
        ("embedding", HEADLINES[4:], True, 50),
        ("row moves", ("rows/",), True, 40),
        ("one block, launch-bound", ("block/",), True, 40),
        ("attention, unequal and wide", HEADLINES[2:4], True, 60),
    ),
    "more": (
        ("whole encoders", ("encoder/",), False, 60),
        ("switches that save memory", ("memory/",), False, 120),
        ("contrastive steps in chunks", ("contrastive/",), False, 120),
        ("clips from the disk", ("data/",), False, 60),
        ("models of transformers", ("models/",), False, 60),
        ("captioning", ("caption/", "linear_cross_entropy/"), False, 60),
        ("every masking ratio", MASKED, False, 60),
        ("short clips and single calls", ("of 512", "sequences of", "ViT-B, 16 frames, 0 %", "overhead/"), False, 30),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One process: what it is called, its command, its seconds, more environment."""

    name: str
    command: list[str]
    seconds: float
    environment: dict[str, str] = field(default_factory=dict)


def steps(stage: str, python: str, *, dry: bool, save: list[str], commit: str = "") -> list[Step]:
    """What a stage runs."""
    module = [python, "-m"]
    if stage == "build":
        return [Step(name="build", command=[python, "setup.py", "-q", "build_ext", "--inplace"], seconds=90)]
    if stage == "smoke":
        device = ["--device", "cpu"] if dry else ["--device", "cuda", "--limit", "70"]
        # Beside the log: what is right or wrong here is no figure for the results.
        lines = ["--json", str(Path(save[1]) / "smoke.jsonl")] if len(save) > 1 and not dry else []
        return [Step(name="smoke", command=[*module, "benchmarks.smoke", *device, *lines], seconds=90)]
    if stage in BENCHES:
        return _benches(stage, module, dry, [*save, *(["--commit", commit] if commit else [])])
    if stage == "test":
        tests = ["tests/ops", "tests/modules", "tests/test_tokens.py"]
        # A warning of some other version of a third party is no failure here. Compiling dominates: all cores.
        options = ["-q", "-W", "default", "-p", "no:cacheprovider", "--durations=5"]
        if dry:
            return [Step(name="test", command=[*module, "pytest", *options, "--collect-only", *tests], seconds=120)]
        if find_spec("xdist"):
            options += ["-n", str(min(8, os.cpu_count() or 1)), "--dist", "worksteal"]
        return [Step(name="test", command=[*module, "pytest", *options, "-k", "not opcheck", *tests], seconds=120)]
    return _sanitizers(module, dry)


def _benches(stage: str, module: list[str], dry: bool, save: list[str]) -> list[Step]:
    run = [*module, "benchmarks.run"]
    if dry:
        kernels = ("embed/", "attention/", "rows/", "block/")
        models = ("overhead/", "encoder/", "memory/", "contrastive/", "data/", "models/")
        words = kernels if stage == "bench" else models
        made = [Step(name=stage, command=[*run, "--quick", "--device", "cpu", "--only", *words], seconds=240)]
        if stage == "more":
            command = [*module, "benchmarks.plan", "--quick", "--device", "cpu"]
            made.append(Step(name="more: plans beside real steps", command=command, seconds=120))
        return made
    kept = ["--save", *save]
    sweep = [*module, "benchmarks.sweep", "--models", "B", "--frames", "16", "128", "--masks", "0", "75"]
    made = [
        Step(
            name=f"{stage}: {name}",
            command=[*run, "--device", "cuda", "--only", *words, *["--compile"] * compiled, *kept],
            seconds=seconds,
        )
        for name, words, compiled, seconds in BENCHES[stage]
    ]
    if stage == "more":
        # First: issue and documentation rest on what is planned.
        command = [*module, "benchmarks.plan", "--device", "cuda", *kept]
        made.insert(0, Step(name="more: plans beside real steps", command=command, seconds=100))
        # Last, and a part of it: the whole is `make sweep`, in minutes of its own.
        made.append(Step(name="more: every encoder", command=[*sweep, "--measure-under", "1", *kept], seconds=90))
    return made


def _sanitizers(module: list[str], dry: bool) -> list[Step]:
    """Memory of every family; races where threads of a block share memory, in the kernels that hold products."""
    tool = shutil.which("compute-sanitizer") or next(
        map(str, Path("/usr/local").glob("cuda*/bin/compute-sanitizer")), None
    )
    # Each tensor in an allocation of its own, or a write past its end hits a neighbour and nobody knows.
    apart = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    made = []
    for check, groups in (("memcheck", ("rows", "attention", "embed")), ("racecheck", ("attention", "embed"))):
        for group in groups:
            device = "cpu" if dry else "cuda"
            child = [*module, "benchmarks.smoke", "--child", "--tiny", "--only", group, "--device", device]
            if dry:
                child = [] if check == "racecheck" else child
            elif tool is None:
                child = []
            else:
                child = [tool, "--tool", check, "--error-exitcode", "9", *child]
            if child:
                made.append(Step(name=f"{check}: {group}", command=child, seconds=45, environment=apart))
    if tool is None:
        print("compute-sanitizer: not found on this machine", flush=True)
    return made


def run(step: Step, seconds: float, log) -> str:
    """Run one step and pass its output on as it comes; "ok", or what became of it."""
    print(f"\n=== {step.name} (at most {seconds:.0f} s)", flush=True)
    environment = os.environ | {"PYTHONUNBUFFERED": "1"} | step.environment
    # A group of its own: at the limit everything that it started goes too.
    process = subprocess.Popen(
        step.command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        process_group=0,
    )
    late = threading.Event()

    def stop() -> None:
        late.set()
        os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(seconds, stop)
    timer.start()
    try:
        with process.stdout:
            for line in process.stdout:
                sys.stdout.write(line)
                sys.stdout.flush()
                if log:
                    log.write(line)
                    log.flush()
        status = process.wait()
    finally:
        timer.cancel()
        if process.poll() is None:  # we are being stopped ourselves
            os.killpg(process.pid, signal.SIGKILL)
    if late.is_set():
        return f"cut short after {seconds:.0f} s"
    return "ok" if status == 0 else f"ended with {status}"


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.py", description=__doc__.splitlines()[0])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), metavar="STAGE")
    parser.add_argument("--minutes", type=float, default=9.5, help="for all of it")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU: interpreter, tiny shapes, nothing kept")
    parser.add_argument("--commit", default="", help="which one this is, in a copy without its history")
    given = parser.parse_args(argv)
    if not given.dry_run and not _has_gpu():
        print("no CUDA device here (--dry-run goes as far as a CPU can)", file=sys.stderr)
        return 2
    out = Path(os.environ["OUT"]) if os.environ.get("OUT") and not given.dry_run else None
    save = [str(ROOT / "benchmarks" / "results"), *([str(out)] if out else [])]
    # So that whoever stops this also stops what it runs.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    deadline = time.monotonic() + 60 * given.minutes
    log = (out / "gpu.log").open("a", encoding="utf-8") if out else None
    outcomes = []
    # In the order of STAGES, whatever the order they were named in.
    for stage in (stage for stage in STAGES if stage in given.stages):
        for step in steps(stage, sys.executable, dry=given.dry_run, save=save, commit=given.commit):
            left = deadline - time.monotonic()
            began = time.monotonic()
            outcome = "not begun: out of time" if left < 10 else run(step, min(step.seconds, left), log)
            outcomes.append((step.name, outcome, time.monotonic() - began))
            print(f"--- {step.name}: {outcome}", flush=True)
    print("\nsummary")
    for name, outcome, seconds in outcomes:
        print(f"  {name:<36}{seconds:6.0f} s  {outcome}")
    if log:
        log.close()
    return 0 if all(outcome == "ok" for _, outcome, _ in outcomes) else 1


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    sys.exit(main())
