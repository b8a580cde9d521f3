"""Time fastvivit beside its peers, each ratio within one run.

    fastvivit bench [--only FAMILY ...] [--json [FILE]] [--plot [DIR]] [--save] [--quick] [--compile] ...
    python -m benchmarks.run, the same in a checkout

Prints what this machine can do (copy bandwidth, matrix product), then for every case whether the
results are right, medians with 10 and 90 % points, the speed-up over each peer, the share of the ceiling.
A wrong result is never timed and makes the exit status 1; a claim that is missed is only said to be.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from .case import OURS, Bench, Case, Options
from .cases import all_cases
from .measure import Ceilings, Spread, ceilings, interleaved
from .memory import peak_bytes
from .provenance import RESULTS, provenance, results_file

DTYPES = ("float32", "bfloat16", "float16")
VERDICTS = {True: "met", False: "MISSED", None: "too noisy to tell"}


def run_case(case: Case, limits: Ceilings, options: Options) -> dict[str, object]:
    """Gate, then time ``case``; its record, without the provenance."""
    record = {
        "kind": "case",
        "name": case.name,
        "layer": case.layer,
        "counts": case.counts,
        "facts": case.facts,
        "flops": case.flops,
        "bytes": case.bytes,
        "gate": "ok",
        "clock": case.clock if options.gpu else "wall",
        "rounds": 0,
        "contestants": {},
        "absent": {},
        "claims": [],
        "ceiling": None,
    }
    try:
        bench = case.build()
        wrong, absent = _gate(bench)
    except Exception as error:  # a case that breaks must not take the others with it
        wrong = f"broke: {type(error).__name__}: {error}".strip().splitlines()[0][:300]
        return {**record, "gate": wrong}
    record["absent"] = absent
    if wrong:
        return {**record, "gate": wrong}
    calls = {name: contestant.call for name, contestant in bench.contestants.items()}
    seconds, rounds = (0.05, 2) if options.quick else (case.seconds, case.min_rounds)
    try:
        found = interleaved(calls, seconds=seconds, min_rounds=rounds, device=options.device, clock=case.clock)
    except Exception as error:
        return {**record, "gate": f"broke while it was timed: {type(error).__name__}: {error}".splitlines()[0][:300]}
    record["rounds"] = len(found[OURS].samples)
    least = limits.seconds(case.flops, case.bytes)
    for name, spread in found.items():
        flops = bench.contestants[name].flops or case.flops
        entry = {"note": bench.contestants[name].note, "seconds": _numbers(spread)}
        entry["share_of_ceiling"] = limits.seconds(flops, case.bytes) / spread.median if least else None
        if case.flops:
            entry["flop_per_s"] = flops / spread.median
        if name != OURS:
            entry["speedup_of_ours"] = _numbers(spread.over(found[OURS]))
        record["contestants"][name] = entry
    record["ceiling"] = limits.binding(case.flops, case.bytes) if least else None
    own_flops = {name: contestant.flops for name, contestant in bench.contestants.items() if contestant.flops}
    # The models of this process would only crowd out those that are measured.
    del bench, calls
    for name in case.peak:
        if name in record["contestants"]:
            record["contestants"][name]["peak_bytes"] = peak_bytes(case, name, options)
    if not options.quick:
        record["claims"] = [judged for claim in case.claims if (judged := claim.judge(found, case, limits, own_flops))]
    return record


def _gate(bench: Bench) -> tuple[str | None, dict[str, str]]:
    """What is wrong with ours, and why which peers are out: those that are not here, refuse these inputs, or err."""
    absent = dict(bench.absent)
    while wrong := bench.gate():
        name = next((name for name in bench.contestants if name != OURS and wrong.startswith(f"{name}: ")), None)
        if name is None:
            return wrong, absent
        absent[name] = wrong.removeprefix(f"{name}: ")
        del bench.contestants[name]
        if not any(peer.same for other, peer in bench.contestants.items() if other != OURS):
            return f"no peer to be held against is left; {wrong}", absent
    return None, absent


def _numbers(spread: Spread) -> dict[str, float]:
    return {"median": spread.median, "p10": spread.p10, "p90": spread.p90}


def lines_of(record: dict[str, object]) -> list[str]:
    """A record for people."""
    head = [f"\n{record['name']}", f"  {record['layer']}; {record['counts']}"]
    if record["gate"] != "ok":
        return [*head, f"  WRONG, not timed: {record['gate']}"]
    lines = []
    for name, entry in record["contestants"].items():
        time, ratio = entry["seconds"], entry.get("speedup_of_ours")
        parts = [f"  {name:<34}{_time(time['median']):>9}  ({_time(time['p10'])} to {_time(time['p90'])})".ljust(68)]
        parts.append(f"{ratio['median']:6.2f} x ({ratio['p10']:.2f} to {ratio['p90']:.2f})" if ratio else "")
        parts[-1] = parts[-1].ljust(25)
        if entry.get("flop_per_s") and record["facts"].get("rate"):
            parts.append(_rate(entry["flop_per_s"]))
        if entry["share_of_ceiling"] and name == OURS:
            parts.append(f"{entry['share_of_ceiling']:4.0%} of the {record['ceiling']} ceiling")
        if entry.get("peak_bytes"):
            parts.append(f"peak {entry['peak_bytes'] / 2**20:,.0f} MiB")
        parts.append(entry["note"])
        lines.append("  ".join(part for part in parts if part).rstrip())
    reasons: dict[str, list[str]] = {}
    for name, reason in record["absent"].items():
        reasons.setdefault(reason, []).append(name)
    lines += [f"  not timed: {', '.join(names)}: {reason}" for reason, names in reasons.items()]
    for claim in record["claims"]:
        what = f" ({claim['peer']})" if "peer" in claim else ""
        who = f", {claim['who']}" if "who" in claim else ""
        lines.append(f"  {VERDICTS[claim['met']]}: {claim['text']}{who}: {claim['value']:.3g} {claim['unit']}{what}")
    return [*head, *lines]


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if abs(seconds) >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def _rate(flop_per_s: float) -> str:
    return f"{flop_per_s / 1e12:.3g} TFLOP/s" if flop_per_s >= 1e12 else f"{flop_per_s / 1e9:.3g} GFLOP/s"


def parse(argv: list[str] | None, prog: str) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="FAMILY", help="cases whose name contains one of these")
    parser.add_argument("--list", action="store_true", help="print the names of the cases, and stop")
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write JSON lines there as they come; to stdout where no file is named, the rest then goes to stderr",
    )
    parser.add_argument("--plot", nargs="?", const="", metavar="DIR", help="draw this run's pictures there")
    parser.add_argument(
        "--save",
        nargs="*",
        metavar="DIR",
        help=f"append the lines to <date>_<device>_<commit>.jsonl there (default: {RESULTS})",
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny shapes: proves that the harness works, claims nothing"
    )
    parser.add_argument("--compile", action="store_true", help="peers compiled by torch.compile too")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, help="default: float32 on a CPU, bfloat16 on a GPU")
    parser.add_argument("--commit", help="which one this is, in a copy without its history")
    parser.add_argument("--seconds", type=float, help="at most so long for the rounds of a case")
    given = parser.parse_args(argv)
    if given.save is not None and given.quick:
        parser.error("--save keeps results, and --quick gives none")
    given.dtype = getattr(torch, given.dtype or ("bfloat16" if given.device.startswith("cuda") else "float32"))
    given.options = Options(quick=given.quick, device=given.device, dtype=given.dtype, compile=given.compile)
    cases = [c for c in all_cases(given.options) if not given.only or any(part in c.name for part in given.only)]
    if not cases:
        parser.error(f"no case has {' or '.join(map(repr, given.only))} in its name")
    given.cases = [replace(c, seconds=min(c.seconds, given.seconds)) for c in cases] if given.seconds else cases
    return given


def main(argv: list[str] | None = None, prog: str = "benchmarks.run") -> int:
    """Run the command line; return the exit status."""
    given = parse(argv, prog)
    if given.list:
        print("\n".join(case.name for case in given.cases))
        return 0
    if given.plot is not None:
        # Before minutes of timing rather than after them.
        from . import plots
    people = sys.stderr if given.json == "-" else sys.stdout
    say = partial(print, file=people, flush=True)
    options = given.options
    run = provenance(options.device, quick=options.quick, dtype=options.dtype, named=given.commit)
    limits = ceilings(options.device, quick=options.quick, dtype=options.dtype)
    code = f"{run['commit']}, dirty" if run["dirty"] else run["commit"]
    say(f"{run['device']}, {run['threads']} threads, cpu level {run['cpu_level']}, torch {run['torch']}")
    say(f"fastvivit {run['fastvivit']} ({code})")
    say(f"copy, read and written: {limits.copy / 1e9:.1f} GB/s")
    say(f"{run['dtype']} matrix product: {limits.product / 1e9:.0f} GFLOP/s")
    targets = []
    if given.json and given.json != "-":
        targets.append(Path(given.json))
        targets[0].write_text("")
    if given.save is not None:
        targets += [results_file(run, Path(folder)) for folder in given.save or [RESULTS]]
    records = []

    def keep(record: dict[str, object]) -> None:
        records.append({**record, **run})
        line = json.dumps(records[-1], ensure_ascii=False)
        if given.json == "-":
            print(line, flush=True)
        _append(targets, line)

    keep({"kind": "ceilings", "copy_bytes_per_s": limits.copy, "product_flop_per_s": limits.product})
    for case in given.cases:
        keep(run_case(case, limits, options))
        say("\n".join(lines_of(records[-1])))
    wrong = [r["name"] for r in records if r.get("gate", "ok") != "ok"]
    missed = [f"{r['name']}: {c['text']}" for r in records for c in r.get("claims", ()) if c["met"] is False]
    say(
        f"\n{len(given.cases)} cases, {len(wrong)} wrong, {len(missed)} claims missed"
        + (" (quick: none made)" * options.quick)
    )
    for line in [*wrong, *missed]:
        say(f"  {line}")
    for target in targets:
        say(f"written to {target}")
    if given.plot is not None:
        for picture in plots.draw(records, Path(given.plot or RESULTS / "plots")):
            say(f"drawn: {picture}")
    return 1 if wrong else 0


def _append(targets: list[Path], line: str) -> None:
    """Line by line as they come, so that a run cut short leaves what it had."""
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
