"""Find launch configurations of the Triton kernels, and write them into the tables that ship.

    python -m benchmarks.tune attention [--kernel forward dkdv dq] [--head-dim 64] [--kind half] [--write]
    python -m benchmarks.tune embed [--kernel forward weight video] [--kind half] [--write]
    python -m benchmarks.tune ... --dry-run --arch 90

Every candidate is compiled first, and rejected where it spills, asks for too much shared memory or lacks the matrix
instructions of the architecture (what ``benchmarks.compile_report`` refuses to ship). What is left is compared with the
shipped configuration's result, timed on the device in interleaved rounds, and the fastest wins if it beats the shipped
one by more than the noise. ``--write`` puts winners into the tables; run the compile report and the tests after it.
``--dry-run`` stops after compiling and needs no GPU. Nothing is ever tuned while a model runs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from . import compile_report, tune_cases, tune_tables
from .compile_cases import CompileCase
from .gate import SANE, far_apart, tensors
from .measure import Spread, interleaved

# A winner must be faster than the shipped configuration by more than this.
MARGIN = 0.02


def survivors(candidates: dict[tuple, list[CompileCase]], arch: int, jobs: int) -> tuple[list[tuple], dict]:
    """Candidates all of whose cases may ship on ``arch``, and of the others the first reason."""
    cases = {case.name: case for found in candidates.values() for case in found}
    compile_report._cases.update(cases)
    with ProcessPoolExecutor(jobs, mp_context=get_context("fork")) as pool:
        names = list(cases)
        reports = pool.map(compile_report._compile_named, names, [arch] * len(names))
        problems = {name: report.problems for name, report in zip(names, reports, strict=True)}
    rejected = {}
    for tile, found in candidates.items():
        wrong = [problem for case in found for problem in problems[case.name]]
        if wrong:
            rejected[tile] = wrong[0]
    return [tile for tile in candidates if tile not in rejected], rejected


def fastest(calls: dict[tuple, Callable[[], object]], shipped: tuple, seconds: float) -> tuple[tuple, dict]:
    """The tile to ship, and the spread of each that gave the right result; ``shipped`` unless it is clearly beaten."""
    wanted = [t.detach().double() for t in tensors(calls[shipped]())]
    right = {}
    for tile, call in calls.items():
        try:
            found = tensors(call())
        except Exception as error:  # a launch that the device refuses, though it compiles
            print(f"    {tile}: {type(error).__name__}: {str(error).splitlines()[0][:120]}")
            continue
        wrong = [w for f, g in zip(found, wanted, strict=True) if (w := far_apart(f.detach(), g, SANE[f.dtype]))]
        if wrong:
            print(f"    {tile}: wrong: {wrong[0]}")
        else:
            right[tile] = call
    spreads = interleaved(right, seconds=seconds, min_rounds=5, device="cuda", clock="device")
    return pick(spreads, shipped), spreads


def pick(spreads: dict[tuple, Spread], shipped: tuple) -> tuple:
    """The fastest tile, or the shipped one where that is no slower than by ``MARGIN`` in the rounds' ratios."""
    best = min(spreads, key=lambda tile: spreads[tile].median)
    if best == shipped or spreads[shipped].over(spreads[best]).median < 1 + MARGIN:
        return shipped
    return best


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="benchmarks.tune", description=__doc__.splitlines()[0])
    parser.add_argument("family", choices=sorted(tune_cases.FAMILIES))
    parser.add_argument("--kernel", nargs="+", help="kernels of the family (default: all)")
    parser.add_argument("--kind", choices=("half", "tf32", "ieee"), default="half")
    parser.add_argument("--head-dim", type=int, nargs="+", default=[64], help="attention: 32, 64, 128, ...")
    parser.add_argument("--arch", type=int, choices=sorted(compile_report.MATRIX), help="default: the device's")
    parser.add_argument("--limit", type=int, help="so many candidates at most")
    parser.add_argument("--seconds", type=float, default=4.0, help="timing of one kernel")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that compile")
    parser.add_argument("--write", action="store_true", help="put what wins into the shipped table")
    parser.add_argument("--dry-run", action="store_true", help="compile and reject; needs no GPU")
    given = parser.parse_args(argv)
    gpu = torch.cuda.is_available()
    if not given.dry_run and not gpu:
        parser.error("no CUDA device here: --dry-run --arch 90 compiles and rejects without one")
    if given.dry_run and given.write:
        parser.error("--write wants winners, and --dry-run finds none")
    arch = given.arch or (tune_cases.device_arch() if gpu else 90)
    if gpu and not given.dry_run and arch != tune_cases.device_arch():
        parser.error(f"--arch: wanted the device's own, {tune_cases.device_arch()}, to time on it; got {arch}")
    changed = 0
    for space in tune_cases.FAMILIES[given.family](arch, given.kind, given.kernel, given.head_dim):
        candidates = dict(list(space.candidates.items())[: given.limit]) if given.limit else dict(space.candidates)
        shipped = space.shipped
        candidates.setdefault(shipped, space.cases(shipped))
        print(f"{space.name}: {len(candidates)} candidates for sm_{arch}, shipped {shipped}", flush=True)
        left, rejected = survivors(candidates, arch, given.jobs)
        for tile, reason in rejected.items():
            print(f"    rejected {tile}: {reason}")
        print(f"  {len(left)} may ship", flush=True)
        if shipped not in left:
            print(f"  the shipped one may not: {rejected[shipped]}")
        if given.dry_run or not left:
            continue
        winner, spreads = fastest({tile: space.call(tile) for tile in {*left, shipped}}, shipped, given.seconds)
        for tile, spread in sorted(spreads.items(), key=lambda item: item[1].median):
            mark = " shipped" * (tile == shipped) + " winner" * (tile == winner)
            print(f"    {tile}  {spread.median * 1e6:9.1f} µs ({spread.p10 * 1e6:.1f} to {spread.p90 * 1e6:.1f}){mark}")
        if winner != shipped:
            changed += 1
            if given.write:
                print(f"  written to {tune_tables.write(space.place, winner)}", flush=True)
            else:
                print(f"  {tune_tables.row(space.place, winner)}", flush=True)
    print(f"\n{changed} to change{' (written)' * (given.write and bool(changed))}" if not given.dry_run else "")
    return 0


if __name__ == "__main__":
    sys.exit(main())
