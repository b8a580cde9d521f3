"""``fastvivit train``: a run as a TOML file says."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fastvivit.train import OutOfMemory, TrainConfig, fit, read_metrics
from fastvivit.train.ranks import is_first
from fastvivit.train.report import REPORT


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a model as a TOML file says; Ctrl-C saves a checkpoint. On several GPUs: torchrun -m fastvivit train.

    Attributes:
        config: the TOML file; docs: fastvivit.train.TrainConfig. Paths in it are relative to its folder.
        out: the run's folder; by default runs/<name of the config>.
        resume: go on with the run in that folder from its latest checkpoint.
        override: a change to the config, such as optimiser.lr=1e-4; may be given several times.
    """

    config: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CONFIG.toml")]
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    resume: bool = False
    override: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="A.B=C")] = ()


def run(arguments: list[str]) -> int:
    """Train, and say where the results are."""
    options = tyro.cli(Train, prog="fastvivit train", args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
    config = TrainConfig.from_toml(options.config, options.override)
    try:
        out = fit(config, options.out or Path("runs") / options.config.stem, resume=options.resume)
    except OutOfMemory as error:
        print(f"fastvivit train: {error}", file=sys.stderr)
        return 1
    if not is_first():
        return 0
    last = read_metrics(out)[-1]
    scores = {name.removeprefix("eval_"): value for name, value in last.items() if name.startswith("eval_")}
    print(f"step {last['step']}: loss {last['loss']:.4f}, {last['broken']} broken files")
    for name in ("t2v_r1", "t2v_r5", "v2t_r1", "v2t_r5", "twin"):
        if name in scores:
            print(f"  {name:<8}{scores[name]:6.1f} %")
    for name in ("loss", "cider_d", "rouge_l_coco", "bleu_4"):
        if name in scores:
            print(f"  {name:<13}{scores[name]:7.3f}")
    print(f"report: {out / REPORT}")
    return 0
