"""Time fastvivit beside its peers, each ratio within one run.

    python -m benchmarks.run [--only NAME ...] [--json FILE] [--save] [--quick] [--compile] [--device DEVICE]

Prints what this machine can do (copy bandwidth, float32 matrix product), then for every case whether the
results are right, medians with 10 and 90 % points, the speed-up over each peer, the share of the ceiling.
A wrong result is never timed and makes the exit status 1; a claim that is missed is only said to be.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from benchmarks.case import OURS, Case, Options
from benchmarks.cases import all_cases
from benchmarks.measure import Ceilings, Spread, ceilings, interleaved
from benchmarks.memory import peak_bytes
from benchmarks.provenance import provenance, results_file

VERDICTS = {True: "met", False: "MISSED", None: "too noisy to tell"}


def run_case(case: Case, limits: Ceilings, options: Options) -> dict[str, object]:
    """Gate, then time ``case``; its record, without the provenance."""
    record = {
        "kind": "case",
        "name": case.name,
        "layer": case.layer,
        "counts": case.counts,
        "flops": case.flops,
        "bytes": case.bytes,
        "gate": "ok",
        "rounds": 0,
        "contestants": {},
        "claims": [],
    }
    bench = case.build()
    wrong = bench.gate()
    if wrong:
        return {**record, "gate": wrong}
    calls = {name: contestant.call for name, contestant in bench.contestants.items()}
    seconds, rounds = (0.05, 2) if options.quick else (case.seconds, case.min_rounds)
    found = interleaved(calls, seconds=seconds, min_rounds=rounds, device=options.device)
    record["rounds"] = len(found[OURS].samples)
    least = limits.seconds(case.flops, case.bytes)
    for name, spread in found.items():
        entry = {"note": bench.contestants[name].note, "seconds": _numbers(spread)}
        entry["share_of_ceiling"] = least / spread.median if least else None
        if name != OURS:
            entry["speedup_of_ours"] = _numbers(spread.over(found[OURS]))
        record["contestants"][name] = entry
    record["ceiling"] = limits.binding(case.flops, case.bytes) if least else None
    # The models of this process would only crowd out those that are measured.
    del bench, calls
    for name in case.peak:
        record["contestants"][name]["peak_bytes"] = peak_bytes(case, name, options)
    if not options.quick:
        record["claims"] = [judged for claim in case.claims if (judged := claim.judge(found))]
    return record


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
        parts = [f"  {name:<30}{_time(time['median']):>9}  ({_time(time['p10'])} to {_time(time['p90'])})".ljust(64)]
        parts.append(f"{ratio['median']:6.2f} x ({ratio['p10']:.2f} to {ratio['p90']:.2f})" if ratio else "")
        parts[-1] = parts[-1].ljust(25)
        if entry["share_of_ceiling"] and name == OURS:
            parts.append(f"{entry['share_of_ceiling']:4.0%} of the {record['ceiling']} ceiling")
        if entry.get("peak_bytes"):
            parts.append(f"peak {entry['peak_bytes'] / 2**20:,.0f} MiB")
        parts.append(entry["note"])
        lines.append("  ".join(part for part in parts if part).rstrip())
    for claim in record["claims"]:
        what = f" ({claim['peer']})" if "peer" in claim else ""
        lines.append(f"  {VERDICTS[claim['met']]}: {claim['text']}: {claim['value']:.3g} {claim['unit']}{what}")
    return [*head, *lines]


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if abs(seconds) >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="benchmarks.run", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="cases whose name contains one of these")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write JSON lines there")
    parser.add_argument(
        "--save", action="store_true", help="append them to benchmarks/results/<date>_<device>_<commit>.jsonl"
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny shapes: proves that the harness works, claims nothing"
    )
    parser.add_argument("--compile", action="store_true", help="peers compiled by torch.compile too")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args(argv)
    if given.save and given.quick:
        parser.error("--save keeps results, and --quick gives none")
    options = Options(quick=given.quick, device=given.device, compile=given.compile)
    cases = [c for c in all_cases(options) if not given.only or any(part in c.name for part in given.only)]
    if not cases:
        parser.error(f"no case has {' or '.join(map(repr, given.only))} in its name")

    run = provenance(options.device, quick=options.quick)
    limits = ceilings(options.device, quick=options.quick)
    code = f"{run['commit']}, dirty" if run["dirty"] else run["commit"]
    print(f"{run['device']}, {run['threads']} threads, cpu level {run['cpu_level']}, torch {run['torch']}")
    print(f"fastvivit {run['fastvivit']} ({code})")
    print(f"copy, read and written: {limits.copy / 1e9:.1f} GB/s")
    print(f"float32 matrix product: {limits.product / 1e9:.0f} GFLOP/s", flush=True)
    records = [{"kind": "ceilings", "copy_bytes_per_s": limits.copy, "product_flop_per_s": limits.product, **run}]
    targets = [given.json] if given.json else []
    if given.json:
        given.json.write_text("")
    if given.save:
        targets.append(results_file(run))
    _append(targets, records[-1])
    for case in cases:
        records.append({**run_case(case, limits, options), **run})
        print("\n".join(lines_of(records[-1])), flush=True)
        _append(targets, records[-1])
    wrong = [r["name"] for r in records if r.get("gate", "ok") != "ok"]
    missed = [f"{r['name']}: {c['text']}" for r in records for c in r.get("claims", ()) if c["met"] is False]
    print(
        f"\n{len(cases)} cases, {len(wrong)} wrong, {len(missed)} claims missed"
        + (" (quick: none made)" * options.quick)
    )
    for line in [*wrong, *missed]:
        print(f"  {line}")
    for target in targets:
        print(f"written to {target}")
    return 1 if wrong else 0


def _append(targets: list[Path], record: dict[str, object]) -> None:
    """Line by line as they come, so that a run cut short leaves what it had."""
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
