"""Writes an experiment into docs/captioning.md: ``python docs/make_captioning.py [REPORT]``. A test binds the two.

REPORT is ``report.json`` of ``examples/caption_your_clips.py``; it is kept as ``docs/captioning_report.json``.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE, REPORT = HERE / "captioning.md", HERE / "captioning_report.json"
BEGIN, END = "<!-- written by make_captioning.py -->\n", "<!-- end -->\n"


def section(report: dict) -> str:
    """What a run came to, as Markdown."""
    about, settings, losses = report["provenance"], report["settings"], report["losses"]
    results, names, last = report["results"], report["clips"], len(report["clips"]) - 1
    dirty = ", with uncommitted changes" if about["dirty"] else ""
    frozen = "bit-identical" if all(report["frozen_same"].values()) else "**changed**"
    seconds = report["seconds"]
    lines = [
        f"`docs/captioning_report.json`: {about['device']}, {about['threads']} threads, torch {about['torch']}, "
        f"transformers {about['transformers']}, commit {about['commit']}{dirty}.",
        "",
        f"{len(losses)} steps of {last} clips, {settings['frames']} frames of {settings['size']} pixels, "
        f"{settings['masks']} masks a clip, lr {settings['lr']:g}, {report['trained_parameters'] / 1e6:.1f} M "
        f"parameters trained: captioning loss {losses[0]:.2f} → {losses[-1]:.2f}. "
        f"{seconds['processor']:.0f} s of processor time, {seconds['wall']:.0f} s by the clock. "
        f"Weights of encoder and language model afterwards: {frozen}.",
        "",
        "| clip | loss before | first half | second half | its own caption likeliest of all: before, first, second |",
        "| --- | --- | --- | --- | --- |",
    ]
    for i, name in enumerate(names):
        cells = [f"{found['loss'][i]:.2f}" for found in results.values()]
        chosen = ", ".join("yes" if found["chosen"][i] == i else "no" for found in results.values())
        lines.append(f"| {name}{' (never trained on)' * (i == last)} | {' | '.join(cells)} | {chosen} |")
    lines += ["", "Written word for word as one of the captions:"]
    for when, found in results.items():
        same = sum(text in captions for text, captions in zip(found["text"][:last], report["captions"], strict=False))
        lines[-1] += f" {when} {same} of {last},"
    lines[-1] = lines[-1][:-1] + "."
    bare = {" ".join(text.split()) for text in results["before"]["text"]}
    assert len(bare) == 1, bare
    said = "Before training, behind shut gates, every clip gets what the language model makes of the prompt alone"
    lines += ["", f"{said}: {bare.pop()}"]
    for i, name in enumerate(names):
        lines += ["", f"**{name}**{', never trained on' * (i == last)}: {report['captions'][i][0]}", ""]
        after = {when: " ".join(found["text"][i].split()) for when, found in results.items() if when != "before"}
        lines += [f"- {when}: {text or '(nothing)'}" for when, text in after.items()]
    return "\n".join(lines) + "\n"


def page(text: str, report: dict) -> str:
    """The page with the section in its place."""
    head, rest = text.split(BEGIN)
    return head + BEGIN + section(report) + END + rest.split(END)[1]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        shutil.copyfile(sys.argv[1], REPORT)
    made = page(PAGE.read_text(encoding="utf-8"), json.loads(REPORT.read_text(encoding="utf-8")))
    PAGE.write_text(made, encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")
