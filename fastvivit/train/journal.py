"""What a run says about itself while it runs: ``metrics.jsonl``, TensorBoard events, the console."""

from __future__ import annotations

import json
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastvivit.train.progress import make_bar

METRICS, EVENTS = "metrics.jsonl", "events"


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``, one a step; a last line that was cut off is left out."""
    file = run / METRICS
    if not file.is_file():
        return []
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


class Silence:
    """The journal of the ranks that keep none."""

    def step(self, row: dict[str, Any]) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Journal:
    """Writes each step once: a line in a file, flushed at once; TensorBoard events; the console.

    On a terminal the console shows a progress bar (with tqdm), otherwise plain lines.

    Args:
        run: the run's folder.
        start: steps already taken; later lines of an earlier process are cut off, since they come again.
        steps: of the whole run.
        log_every: steps between plain lines.
        tensorboard: whether to write events, where tensorboard is installed.
        quiet: say nothing on the console.
        name: what the console calls the run.
    """

    def __init__(
        self,
        run: Path,
        *,
        start: int,
        steps: int,
        log_every: int,
        tensorboard: bool,
        quiet: bool = False,
        name: str = "train",
    ) -> None:
        self.start, self.steps, self.log_every, self.quiet, self.name = start, steps, log_every, quiet, name
        self._began = time.monotonic()
        kept = [row for row in read_metrics(run) if row["step"] <= start]
        partial = run / f".{METRICS}"
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        partial.replace(run / METRICS)
        self._file = (run / METRICS).open("a", encoding="utf-8")
        self._events = None
        if tensorboard and find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(run / EVENTS, purge_step=start + 1)
        self._bar = make_bar(steps, name, "step", initial=start, quiet=quiet)

    def step(self, row: dict[str, Any]) -> None:
        """Note a step: a flat dict of numbers with ``step``, ``loss`` and ``clips_per_second`` among them."""
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()
        if self._events is not None:
            for name, value in row.items():
                if name not in ("step", "epoch"):
                    self._events.add_scalar(
                        name.replace("_", "/", 1) if name.startswith("eval_") else name, value, row["step"]
                    )
        if self._bar is not None:
            self._bar.update(row["step"] - self._bar.n)
            self._bar.set_postfix(loss=f"{row['loss']:.3f}", refresh=False)
        elif not self.quiet and (row["step"] % self.log_every == 0 or row["step"] == self.steps):
            spent = time.monotonic() - self._began
            left = spent / (row["step"] - self.start) * (self.steps - row["step"])
            self.say(
                f"step {row['step']}/{self.steps}  loss {row['loss']:.4f}  "
                f"{row['clips_per_second']:.0f} clips/s  {spent:.0f} s, {left:.0f} s left"
            )

    def say(self, text: str) -> None:
        """Print a line beside the bar."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.write(f"{self.name}: {text}", file=sys.stderr)
        else:
            print(f"{self.name}: {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Bring everything to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if self._events is not None:
            self._events.close()
        if self._bar is not None:
            self._bar.close()
