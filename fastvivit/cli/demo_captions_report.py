"""The page and the table that the demo of captions leaves."""

from __future__ import annotations

from pathlib import Path

from fastvivit.cli.demo_captions import CAPTIONERS, TEXT_SCORES, CaptionOutcome
from fastvivit.cli.demo_runs import MODELS
from fastvivit.train.page import Page, Strip
from fastvivit.train.report import REPORT, curves, some_frames

_LABELS = {
    "twin": "own caption likelier than the twin's",
    "motions": "both motions right, in order",
    "digits": "digits right, in their places",
    "named": "digits named, in any place",
    "exact": "every word right",
    "cider_d": "CIDEr-D",
    "rouge_l_coco": "ROUGE-L",
    "bleu_4": "BLEU-4",
}
_SHOWN = 8


def captions_summary(outcome: CaptionOutcome) -> str:
    """The table at the end of the demo, as text."""
    head, *rows = _table(outcome)
    clips = len(outcome.dataset)
    lines = [f"{f'captions of {clips} held-out clips':<38}" + "".join(f"{name:>14}" for name in head[1:])]
    lines += [f"{row[0]:<38}" + "".join(f"{cell:>14}" for cell in row[1:]) for row in rows]
    lines.append("\nwhat they write:")
    for place in _places(outcome, 4):
        lines.append(f"  {outcome.dataset.entries[place].captions[0]}")
        lines += [f"    {kind}: {one.texts[place]}" for kind, one in outcome.captioners.items()]
    lines.append(f"\nall of it took {outcome.seconds:.0f} s")
    return "\n".join(lines)


def write_captions_report(out: Path, outcome: CaptionOutcome) -> Path:
    """Write the page into the demo's folder."""
    page = Page("fastvivit demo: captions of moving digits")
    page.text(
        "Every clip shows two handwritten digits, one after the other, each moving one way. Its twin has the halves "
        "swapped: exactly the same set of frames, another caption. Two small encoders learned to match clips and "
        "captions, and were frozen. A small language model learned the captions as text, without any clip, and was "
        "frozen, too. What is trained last are layers between them: gated cross-attention, through which the language "
        "model sees all of the encoder's tokens. The handwriting of the held-out clips was never trained "
        "on."
    )
    page.table(["model", "what it sees"], list(MODELS.items()))
    page.heading(f"Captions of {len(outcome.dataset)} held-out clips, unmasked")
    head, *rows = _table(outcome)
    page.table(head, rows)
    page.text(
        "Frames on their own are the same for a clip and its twin, in another order. So the frame-level model finds "
        "the same caption likelier for both, and is right about one of the two: 50 %, but for what mp4 compression "
        "changes in a frame. It writes the same text for both, so motions in order can't pass 50 %. Chance is that of "
        "guessing among the captions that there can be; for CIDEr-D, ROUGE-L and BLEU-4 it is the score of another "
        "clip's caption."
    )
    page.heading("Written and true captions")
    for place in _places(outcome, _SHOWN):
        entry = outcome.dataset.entries[place]
        written = ". ".join(f"{kind}: “{one.texts[place]}”" for kind, one in outcome.captioners.items())
        page.strip(
            Strip(
                frames=some_frames(outcome.dataset[place]["video"]),
                caption=f"{entry.video.name}: “{entry.captions[0]}”. {written}",
            )
        )
    _training(page, outcome)
    return page.write(out / REPORT)


def _training(page: Page, outcome: CaptionOutcome) -> None:
    page.heading("Training")
    page.plot(curves(outcome.encoder_metrics, "loss"), "Contrastive loss of the encoders by step")
    rows = {kind: one.metrics for kind, one in outcome.captioners.items()}
    page.plot(curves(rows, "loss"), "Captioning loss by step, of training clips")
    heldout = {kind: [row for row in own if "eval_loss" in row] for kind, own in rows.items()}
    page.plot(curves(heldout, "eval_loss"), "Captioning loss by step, of held-out clips")
    for kind, one in outcome.captioners.items():
        encoder, before = outcome.encoders[kind], outcome.encoder_metrics[kind]
        config = one.config
        page.text(
            f"{kind}: {encoder.steps} contrastive steps of {encoder.batch_size} clips with "
            f"{encoder.mask.ratio:.0%} of their tokens dropped, in {_seconds(before)}; {config.steps} captioning "
            f"steps of {config.batch_size} clips with {config.mask.ratio:.0%} dropped, {config.vision.masks} masks a "
            f"clip, in {_seconds(one.metrics)}. The runs, with reports of their own, are in {kind} and "
            f"{CAPTIONERS[kind]}; `fastvivit caption CLIPS --model {CAPTIONERS[kind]}` describes files."
        )


def _seconds(rows: list[dict]) -> str:
    return f"{sum(row['seconds'] for row in rows):.0f} s"


def _table(outcome: CaptionOutcome) -> list[list[str]]:
    """A head, and a row a score."""
    table = [["score", *outcome.captioners, "chance"]]
    for name, label in _LABELS.items():
        values = [*(one.scores[name] for one in outcome.captioners.values()), outcome.chance[name]]
        table.append([label, *(f"{value:.2f}" if name in TEXT_SCORES else f"{value:.1f} %" for value in values)])
    return table


def _places(outcome: CaptionOutcome, count: int) -> list[int]:
    """Entries spread over the held-out clips, each beside its twin."""
    clips = len(outcome.dataset)
    firsts = range(0, clips, max(2, clips // count // 2 * 4))
    return [place for first in firsts for place in (first, first + 1)][:count]
