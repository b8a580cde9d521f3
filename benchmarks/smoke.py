"""Every kernel family once on the device, against the definition in float64, in under a minute.

    python -m benchmarks.smoke [--device DEVICE] [--only GROUP ...] [--tiny] [--json FILE]

Goes on after failures and lists them. A kernel that breaks the device's context takes its process with it, so groups
run in processes of their own, and go on in a fresh one after the check that broke. On a CPU Triton's interpreter runs
them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

# One set of results is right or wrong by these; finer budgets are the tests' business.
RIGHT, WRONG, REFUSED = "ok", "WRONG", "refused"
RESTARTS = 4
# Processes that share a group's checks on a GPU: compiling takes most of the time, and the host has cores for it.
PARTS = {"attention": 6, "attention options": 3, "embed": 4, "rows": 1}


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="benchmarks.smoke", description=__doc__.splitlines()[0])
    parser.add_argument("--device", help="default: cuda where there is one, else cpu under Triton's interpreter")
    parser.add_argument("--only", nargs="+", metavar="GROUP", help="groups: attention, attention options, embed, rows")
    parser.add_argument("--tiny", action="store_true", help="the few calls that a sanitizer can afford")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append a line a check there")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds for one process")
    parser.add_argument("--child", action="store_true", help="this process itself, one group, JSON lines to stdout")
    parser.add_argument("--part", type=int, nargs=2, default=[0, 1], help="of the child: which, of how many")
    parser.add_argument("--after", default="", metavar="CHECK", help="of the child: begin after this check")
    given = parser.parse_args(argv)
    if given.child:
        return _child(given)

    import torch

    device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    groups = given.only or list(PARTS)
    if unknown := set(groups) - set(PARTS):
        parser.error(f"no group {', '.join(map(repr, sorted(unknown)))}; there are {', '.join(map(repr, PARTS))}")
    # Compiling is work for the host's cores; a small machine, and a sanitizer, take one process at a time.
    workers = 1 if device == "cpu" or given.tiny else max(1, (os.cpu_count() or 1) - 1)
    parts = [(group, i, n) for group in groups for n in [PARTS[group] if workers > 4 else 1] for i in range(n)]
    started, lines = time.perf_counter(), []
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(_group, *part, device, given) for part in parts]
        for future in as_completed(futures):
            lines += (found := future.result())
            print("\n".join(map(_line, found)), flush=True)
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        with given.json.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps({"kind": "smoke", "device": device, **line}) + "\n" for line in lines)
    wrong = [line for line in lines if line["verdict"] == WRONG]
    print(f"\n{len(lines)} checks, {len(wrong)} wrong, {time.perf_counter() - started:.0f} s on {device}")
    for line in wrong:
        print(f"  {line['name']}: {line['note']}")
    return 1 if wrong or not lines else 0


def _line(line: dict[str, object]) -> str:
    note = f"  {line['note']}" if line["note"] else ""
    return f"{line['verdict']:<8}{line['name']:<56}{line['seconds']:6.1f} s{note}"


def _group(group: str, part: int, parts: int, device: str, given: argparse.Namespace) -> list[dict[str, object]]:
    """The lines of one of ``parts`` of a group, by as many processes as it takes."""
    command = [sys.executable, "-m", __spec__.name, "--child", "--only", group, "--device", device]
    command += ["--part", str(part), str(parts)]
    command += ["--tiny"] * given.tiny
    environment = dict(os.environ)
    if device == "cpu":
        environment["TRITON_INTERPRET"] = "1"
    lines, after = [], ""
    for _ in range(RESTARTS + 1):
        try:
            done = subprocess.run(
                [*command, "--after", after], capture_output=True, text=True, env=environment, timeout=given.limit
            )
            out, err, status = done.stdout, done.stderr, done.returncode
        except subprocess.TimeoutExpired as error:
            # What was captured comes as bytes here, whatever was asked for.
            out, err, status = (error.stdout or b"").decode(), f"over {given.limit:.0f} s", "time limit"
        found = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        begun = [line["name"] for line in found if "verdict" not in line]
        lines += [line for line in found if "verdict" in line]
        if status == 0:
            return lines
        last = begun[-1] if begun else f"{group}: before its first check"
        why = ([line for line in err.strip().splitlines() if line.strip()] or [""])[-1][:200]
        if last not in [line["name"] for line in lines]:
            lines.append({"name": last, "verdict": WRONG, "seconds": 0.0, "note": f"ended with {status}: {why}"})
        if not begun or status == "time limit":
            return lines
        after = last
    return lines


def _child(given: argparse.Namespace) -> int:
    if given.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    from .smoke_checks import checks

    part, parts = given.part
    todo = [check for group in given.only for check in checks(group, given.device, tiny=given.tiny)][part::parts]
    names = [check.name for check in todo]
    wrong = False
    for check in todo[names.index(given.after) + 1 if given.after in names else 0 :]:
        print(json.dumps({"name": check.name}), flush=True)
        started = time.perf_counter()
        verdict, note, fatal = _judge(check, given.device)
        seconds = round(time.perf_counter() - started, 2)
        print(json.dumps({"name": check.name, "verdict": verdict, "seconds": seconds, "note": note}), flush=True)
        wrong |= verdict == WRONG
        if fatal:
            return 3
    # The lines tell right from wrong; this status, that all of them are there. A sanitizer's own takes its place.
    return 0


def _judge(check, device: str) -> tuple[str, str, bool]:
    """Verdict, note, and whether the device can go on."""
    import torch

    from fastvivit._backends import BackendError

    from .gate import SANE, far_apart

    try:
        wanted = _results(check, [t.double() for t in check.floats], "reference")
        found = _results(check, [t.to(device) for t in check.floats], check.backend.name)
        # A second time: what a kernel leaves behind or races over shows in repeats.
        again = _results(check, [t.to(device) for t in check.floats], check.backend.name)
    except BackendError as error:
        # Every backend's reason is in it; the line of this one is wanted.
        own = [line for line in str(error).splitlines() if line.strip().startswith(f"{check.backend.name}:")]
        return REFUSED, (own or [str(error)])[0].strip(), False
    except Exception as error:  # whatever it is, it is what this command is there to show
        text = f"{type(error).__name__}: {error}".strip()
        fatal = "CUDA error" in text or "illegal" in text.lower()
        return WRONG, " ".join(text.split())[:300], fatal
    for place, (mine, same, golden) in enumerate(zip(found, again, wanted, strict=True)):
        wrong = far_apart(mine.cpu(), golden, check.limit or SANE[check.dtype])
        if wrong:
            return WRONG, f"result {place}: {wrong}", False
        if not torch.equal(mine, same) and "not deterministic" not in check.name:
            return WRONG, f"result {place}: another one the second time", False
    return RIGHT, "", False


def _results(check, inputs: list, backend: str) -> list:
    """Outputs and gradients of all inputs, for gradients of the outputs that are the same numbers in every dtype."""
    import torch

    floats = [t.detach().clone().requires_grad_() for t in inputs]
    outs = check.call(floats, backend)
    generator = torch.Generator().manual_seed(1)
    heads = [torch.randn(out.shape, generator=generator).bfloat16().to(out) for out in outs]
    # Rows of no sequence have an lse of -inf, whose own gradient is nothing.
    heads = [torch.where(out.isfinite(), head, 0) for out, head in zip(outs, heads, strict=True)]
    grads = torch.autograd.grad(outs, floats, heads)
    if floats[0].is_cuda:
        torch.cuda.synchronize()
    return [t.detach().masked_fill(t.detach().isneginf(), 0.0) for t in (*outs, *grads)]


if __name__ == "__main__":
    sys.exit(main())
