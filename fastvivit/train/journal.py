"""What a run says about itself while it runs: ``metrics.jsonl``, TensorBoard events, the console."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastvivit._folders import file_written_whole
from fastvivit.train.meter import Window
from fastvivit.train.progress import make_bar
from fastvivit.train.say import show_duration, show_number

METRICS, EVENTS = "metrics.jsonl", "events"
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}  {postfix}"


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


def best_score(rows: Iterable[dict[str, Any]], headline: tuple[str, bool]) -> dict[str, Any] | None:
    """The first of the rows with the best held-out score, or None where there is none.

    Args:
        rows: lines of ``read_metrics``.
        headline: name of the score, and whether more of it is better.
    """
    name, more = f"eval_{headline[0]}", headline[1]
    scored = [row for row in rows if name in row]
    return max(scored, key=lambda row: row[name] if more else -row[name], default=None)


class Silence:
    """The journal of the ranks that keep none."""

    def step(self, row: dict[str, Any]) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def sync(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Journal:
    """Writes each step once: a line in a file, flushed at once; TensorBoard events; the console.

    On a terminal the console shows a progress bar (with tqdm), otherwise plain lines. Their rates are those of the
    last steps (``Window``), and the time left counts pauses for scores and checkpoints as they have been so far.

    Args:
        run: the run's folder.
        start: steps already taken; later lines of an earlier process are cut off, since they come again.
        steps: of the whole run.
        log_every: steps between plain lines.
        tensorboard: whether to write events, where tensorboard is installed.
        headline: the held-out score by which steps are compared, and whether more of it is better.
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
        headline: tuple[str, bool] = ("loss", False),
        quiet: bool = False,
        name: str = "train",
    ) -> None:
        self.steps, self.log_every, self.quiet, self.name = steps, log_every, quiet, name
        self._headline, self._window = headline, Window()
        self._began, self._taken, self._in_steps = time.monotonic(), 0, 0.0
        kept = [row for row in read_metrics(run) if row["step"] <= start]
        self._best = best_score(kept, headline)
        with file_written_whole(run / METRICS) as partial:
            partial.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        self._file = (run / METRICS).open("a", encoding="utf-8")
        self._events = None
        if tensorboard and find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(run / EVENTS, purge_step=start + 1)
        self._bar = make_bar(steps, name, "step", initial=start, quiet=quiet, layout=_BAR)

    def step(self, row: dict[str, Any]) -> None:
        """Note a step: a flat dict of numbers, ``step``, ``loss`` and those of ``Meter.row`` among them."""
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()
        if self._events is not None:
            for name, value in row.items():
                if name not in ("step", "epoch"):
                    self._events.add_scalar(
                        name.replace("_", "/", 1) if name.startswith("eval_") else name, value, row["step"]
                    )
        self._window.add(row)
        self._taken += 1
        self._in_steps += row["seconds"]
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {row['loss']:.4f}  {self._rates(row['step'])}", refresh=False)
            self._bar.update(row["step"] - self._bar.n)
        elif row["step"] % self.log_every == 0 or row["step"] == self.steps:
            self.say(f"step {row['step']}/{self.steps}  loss {row['loss']:.4f}  {self._rates(row['step'])}")
        self._score(row)

    def _rates(self, step: int) -> str:
        window = self._window
        parts = [f"{show_number(window.mean('clips_per_second'))} clips/s"]
        parts.append(f"{show_number(window.mean('tokens_per_second'))} tokens/s")
        if (mfu := window.mean("mfu")) is not None:
            parts.append(f"MFU {mfu:.0%}")
        parts.append(f"data wait {window.mean('data_wait'):.0%}")
        pause = max(0.0, time.monotonic() - self._began - self._in_steps) / self._taken
        parts.append(f"{show_duration((window.seconds + pause) * (self.steps - step))} left")
        return "  ".join(parts)

    def _score(self, row: dict[str, Any]) -> None:
        name = self._headline[0]
        if f"eval_{name}" not in row:
            return
        self._best = best_score([*([self._best] if self._best else []), row], self._headline)
        value, best = row[f"eval_{name}"], self._best
        compared = "the best so far" if best is row else f"best {best[f'eval_{name}']:.4g} at step {best['step']}"
        self.say(f"step {row['step']}/{self.steps}  held-out {name} {value:.4g}, {compared}")

    def say(self, text: str) -> None:
        """Print a line beside the bar."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.write(f"{self.name}: {text}", file=sys.stderr)
        else:
            print(f"{self.name}: {text}", file=sys.stderr, flush=True)

    def sync(self) -> None:
        """Bring the lines so far to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Bring everything to the disk."""
        self.sync()
        self._file.close()
        if self._events is not None:
            self._events.close()
        if self._bar is not None:
            self._bar.close()
