"""The page and the summary that the demo leaves."""

from __future__ import annotations

from pathlib import Path

import torch

from fastvivit.cli.demo_long_report import long_section, long_summary, said
from fastvivit.cli.demo_runs import MODELS, MOTIONS_CHANCE, SHORT, TOP, Outcome, motions_found
from fastvivit.cli.demo_stages import LongOutcome
from fastvivit.data import read_clip
from fastvivit.search import search
from fastvivit.train.page import Page, Strip
from fastvivit.train.report import REPORT, curves, score_table, some_frames

_SHOWN = ("twin", "t2v_r1", "t2v_r5", "v2t_r1", "v2t_r5")
_LABELS = {
    "twin": "own caption above the twin's",
    "t2v_r1": "text -> clip, R@1",
    "t2v_r5": "text -> clip, R@5",
    "v2t_r1": "clip -> text, R@1",
    "v2t_r5": "clip -> text, R@5",
}


def summary(outcome: Outcome, long: LongOutcome) -> str:
    """The table at the end of the demo, as text."""
    kinds = list(outcome.trained)
    evaluations = [outcome.trained[kind].evaluation for kind in kinds]
    lines = [f"{'on ' + str(len(evaluations[0].entries)) + ' held-out clips':<32}"]
    lines[0] += "".join(f"{kind:>14}" for kind in (*kinds, "chance"))
    for name in _SHOWN:
        values = [evaluation.scores[name] for evaluation in evaluations] + [evaluations[0].chance[name]]
        lines.append(f"{_LABELS[name]:<32}" + "".join(f"{value:12.1f} %" for value in values))
    shares = [motions_found(evaluation, outcome.dataset.entries) for evaluation in evaluations]
    values = "".join(f"{share:12.1f} %" for share in (*shares, MOTIONS_CHANCE))
    lines.append(f"{'best match moves as asked':<32}{values}")
    lines.append(f"\n{long_summary(long)}")
    lines.append("\nsearches over the held-out files, and what the video-first model found first:")
    for answer in outcome.searches[SHORT]:
        entry = outcome.dataset.entries[answer.entries[0]]
        verdict = "motions as asked" if answer.motions[0] else "other motions"
        lines.append(f"  {answer.query}\n    {entry.video.name}, {verdict}: {entry.captions[0]}")
    return "\n".join(lines)


def write_demo_report(out: Path, outcome: Outcome, long: LongOutcome) -> Path:
    """Write the page into the demo's folder."""
    page = Page("fastvivit demo: moving digits")
    first = outcome.trained[SHORT]
    page.text(
        "Every clip shows two handwritten digits, one after the other, each moving one way. Its twin has "
        "the halves swapped: exactly the same set of frames, another caption. Two small encoders learned to "
        f"match clips and captions from mp4 files, with {first.config.mask.ratio:.0%} of the tokens of a "
        "training clip dropped before they are embedded. The video-first one had begun with stills of single digits, "
        "and met more of them beside its clips. The handwriting of the held-out clips was never trained on."
    )
    page.table(["model", "what it sees"], list(MODELS.items()))
    page.heading("Scores on held-out clips")
    score_table(page, {kind: one.evaluation for kind, one in outcome.trained.items()})
    page.text(
        "A model that averages over frames cannot tell a clip from its twin, so 50 % is the best that it can "
        "do in the first line. The video-first model can only pass it by seeing the order of things."
    )
    page.heading("Training")
    metrics = {kind: one.metrics for kind, one in outcome.trained.items()}
    page.plot(curves(metrics, "loss"), "Loss by step, a running mean over every step's own")
    for kind, one in outcome.trained.items():
        seconds = sum(row["seconds"] for row in one.metrics)
        page.text(
            f"{kind}: {one.config.steps} steps of {said(one.config)} in {seconds:.0f} s, "
            f"final loss {one.metrics[-1]['loss']:.3f}."
        )
    long_section(page, long)
    _searches(page, outcome)
    _own_clips(page, outcome)
    return page.write(out / REPORT)


def _searches(page: Page, outcome: Outcome) -> None:
    page.heading("Searching the held-out files by text")
    shares = {kind: motions_found(one.evaluation, outcome.dataset.entries) for kind, one in outcome.trained.items()}
    rows = [[kind, f"{share:.1f} %"] for kind, share in shares.items()]
    page.table(
        ["over all held-out captions", "best match moves as asked"],
        [*rows, ["chance", f"{MOTIONS_CHANCE:.1f} %"]],
    )
    for number, answer in enumerate(outcome.searches[SHORT]):
        page.heading(f"“{answer.query}”", 3)
        for kind, answers in outcome.searches.items():
            # The baseline's first answer is enough to see what it can't see.
            for rank in range(TOP if kind == SHORT else 1):
                _show(page, outcome, kind, answers[number], rank)


def _show(page: Page, outcome: Outcome, kind: str, answer, rank: int) -> None:
    if rank >= len(answer.entries):
        return
    entry = outcome.dataset.entries[answer.entries[rank]]
    verdict = "motions as asked" if answer.motions[rank] else "other motions"
    match = f"{kind}, {rank + 1}: {entry.video.name}, {answer.matches[rank].score:.2f}, {verdict}"
    frames = some_frames(outcome.dataset[answer.entries[rank]]["video"])
    page.strip(Strip(frames=frames, caption=f"{match}: {entry.captions[0]}"))


def _own_clips(page: Page, outcome: Outcome) -> None:
    if outcome.own is None:
        return
    one = outcome.trained[SHORT]
    page.heading("The same searches over your clips")
    page.text(
        "This model has seen nothing but moving digits, so these matches only show how files are cut into "
        "windows and searched."
    )
    for answer in outcome.searches[SHORT]:
        page.heading(f"“{answer.query}”", 3)
        with torch.no_grad():
            vector = one.model.encode_text([answer.query])[0]
        for match in search(outcome.own, vector, TOP):
            encoder = one.model.video.config
            clip = read_clip(match.file, encoder.frames, one.config.data.fps, encoder.size, match.start)
            caption = f"{Path(match.file).name}, {match.start:.1f} to {match.end:.1f} s, {match.score:.2f}"
            page.strip(Strip(frames=some_frames(clip), caption=caption))
