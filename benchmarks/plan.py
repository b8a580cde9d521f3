"""What ``fastvivit.plan`` predicts beside what a step really takes.

    python -m benchmarks.plan [--only WORD ...] [--device cuda|cpu] [--save [DIR ...]] [--quick]

On a GPU: ``torch.cuda.max_memory_allocated`` of a step after the first, and its time. On a CPU (``--quick``, tiny
encoders) every tensor that PyTorch allocates in a real step is counted instead, and nothing is timed: that proves the
accounting, and says nothing of kernels, an allocator or time. A line says which it holds.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from torch import nn

import fastvivit as fv
from fastvivit import tune
from fastvivit.contrastive import ContrastivePart, chunked_backward, contrastive_losses
from fastvivit.modules.clips import draw_keep
from fastvivit.planning.devices import BY_NAME, names_of, peak_flops
from fastvivit.planning.fakes import widen_norms
from fastvivit.planning.ledger import Ledger
from fastvivit.planning.memory import memory_of
from fastvivit.planning.parts import Part
from fastvivit.planning.seconds import model_flops, seconds_of
from fastvivit.planning.simulate import DIM, encoder_config
from fastvivit.planning.sizes import show_bytes, show_seconds
from fastvivit.planning.step import Step
from fastvivit.planning.texts import TEXTS, PlannedText, TextSize

from .measure import sample
from .provenance import RESULTS, provenance, results_file
from .sweep_measure import memory_bytes

TINY = {"size": 64, "width": 64, "depth": 6, "heads": 4, "ff": 256, "tubelet": (2, 8, 8)}
TINY_TEXT = TextSize(width=64, depth=4, heads=4, ff=256, vocabulary=100, tokens=12)

# Of stage image_to_video: clips beside images, each under its own mask.
MIXED = (Part(batch=48, mask_ratio=0.75), Part(batch=48, mask_ratio=0.5, images=True))


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A step by name; what the issue's figures rest on comes first."""

    name: str
    model: str
    frames: int
    step: dict[str, object]


SETTINGS = (
    Setting(
        name="ViT-L, 256 frames, 75 % masked, last 4",
        model="large",
        frames=256,
        step={"mask_ratio": 0.75, "tuning": "last_4", "batch": 32, "chunk": 8, "batch_on": "host"},
    ),
    Setting(
        name="ViT-L, 256 frames, unmasked, all layers, full",
        model="large",
        frames=256,
        step={"batch": 2, "chunk": 1, "checkpointing": "full"},
    ),
    Setting(name="ViT-B, 16 frames, unmasked", model="base", frames=16, step={"batch": 32}),
    Setting(name="ViT-B, 16 frames, 75 % masked", model="base", frames=16, step={"batch": 64, "mask_ratio": 0.75}),
    Setting(
        name="ViT-B, 16 frames, unmasked, selective",
        model="base",
        frames=16,
        step={"batch": 32, "checkpointing": "selective"},
    ),
    Setting(
        name="ViT-B, 128 frames, 75 % masked, last 4",
        model="base",
        frames=128,
        step={"batch": 32, "mask_ratio": 0.75, "tuning": "last_4"},
    ),
    Setting(
        name="ViT-B, 128 frames, unmasked, full, offloaded",
        model="base",
        frames=128,
        step={"batch": 4, "checkpointing": "full", "offload": True},
    ),
    Setting(
        name="ViT-L, 128 frames, 75 % masked, adapters",
        model="large",
        frames=128,
        step={"batch": 4, "mask_ratio": 0.75, "tuning": "adapters"},
    ),
    Setting(name="ViT-B, 16 frames beside images", model="base", frames=16, step={"batch": 96, "parts": MIXED}),
    Setting(
        name="ViT-B, 16 frames beside images, in chunks",
        model="base",
        frames=16,
        step={"batch": 96, "parts": MIXED, "chunk": 8, "batch_on": "host"},
    ),
)


def step_of(setting: Setting, *, quick: bool) -> Step:
    """The planned step; ``quick`` is tiny and in float32, as a CPU runs it."""
    make = {"base": fv.ViViTConfig.base, "large": fv.ViViTConfig.large}[setting.model]
    text = TEXTS["bert-base" if setting.model == "large" else "bert-medium"]
    if not quick:
        return Step(config=make(frames=setting.frames), text=text, **setting.step)
    config = make(frames=max(8, setting.frames // 16), **TINY)
    # Nothing moves between a CPU's memory and itself.
    here = {"offload": False, "precision": "float32", "batch_on": "device"}
    return Step(config=config, text=TINY_TEXT, **(setting.step | here))


def real_step(step: Step, device: str) -> tuple[nn.Module, list[torch.Tensor], Callable[[], object]]:
    """The model, tensors that are there before a step, and the step: as a training loop takes it."""
    torch.manual_seed(0)
    with torch.device(device):
        encoder = fv.ViViT(encoder_config(step))
        if step.method == "last":
            tune.last_layers(encoder, step.number, images=step.trains_images)
        elif step.method == "adapters":
            tune.add_adapters(encoder, step.number, images=step.trains_images)
        model = fv.VideoTextModel(encoder, PlannedText(step.text), DIM).train()
    if step.checkpointing != "none":
        model.set_grad_checkpointing(True, step.checkpointing, offload=step.offload)
    if step.precision == "bfloat16" and device == "cpu":
        widen_norms(model)
    parts = [_part_of(one, device) for one in step.each]
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-6, fused=True)

    def run() -> None:
        optimiser.zero_grad(set_to_none=True)
        half = step.precision == "bfloat16"
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=half):
            if step.chunked:
                chunked_backward(model, parts, chunk=[one.chunk for one in step.each], prefix=step.prefix)
            else:
                loss = contrastive_losses(model, parts)["loss"]
        if not step.chunked:
            loss.backward()
        nn.utils.clip_grad_norm_(trained, 2.0)
        optimiser.step()

    ids = [part.keep.ids for part in parts if part.keep is not None]
    return model, [*model.parameters(), *(part.video for part in parts), *ids], run


def _part_of(one: Step, device: str) -> ContrastivePart:
    """What comes from one source: pixels where the step has them, and masks."""
    shape = one.config.size if one.images else (one.config.frames, *one.config.size)
    video = torch.randint(256, (one.batch, 3, *shape), dtype=torch.uint8)
    video = video.pin_memory() if one.batch_on == "host" and device != "cpu" else video.to(device)
    keep = draw_keep(one.batch, one.views, one.mask_ratio).to(device) if one.mask_ratio else None
    return ContrastivePart(video, ["a caption"] * one.batch, keep=keep)


def measured(step: Step, device: str) -> dict[str, object]:
    """``bytes`` at the peak of a step after the first, how they were counted, and ``seconds`` on a GPU."""
    model, known, run = real_step(step, device)
    try:
        run()  # compiles, and makes the optimiser's states
        gc.collect()
        if device == "cpu":
            for parameter in model.parameters():
                parameter.grad = None
            states = 8 * sum(p.numel() for p in model.parameters() if p.requires_grad)
            with Ledger(known, {}) as ledger:
                run()
            total = ledger.peak + sum(t.numel() * t.element_size() for t in known) + states
            return {"bytes": total, "counted": "every tensor that PyTorch allocates, on a CPU", "seconds": None}
        torch.cuda.reset_peak_memory_stats()
        run()
        peak = torch.cuda.max_memory_allocated()
        return {
            "bytes": peak,
            "counted": "max_memory_allocated",
            "seconds": median(sample(run, 1, device) for _ in range(3)),
        }
    except torch.OutOfMemoryError:
        return {"bytes": None, "counted": "out of memory", "seconds": None}
    finally:
        del model, known, run
        gc.collect()
        if device != "cpu":
            torch.cuda.empty_cache()


def row_of(setting: Setting, device: str, named: str, *, quick: bool) -> dict[str, object]:
    """A line of results."""
    step, where = step_of(setting, quick=quick), BY_NAME[named]
    memory = memory_of(step, None if device == "cpu" else where)
    seconds = seconds_of(step, where)
    row: dict[str, object] = {"kind": "plan", "name": setting.name, "step": asdict(step), "planned_for": named}
    row |= {"predicted": asdict(memory) | {"total": memory.total}, "predicted_seconds": asdict(seconds)}
    found = measured(step, device)
    row |= {f"measured_{key}": value for key, value in found.items()}
    row["ratio"] = None if found["bytes"] is None else memory.total / found["bytes"]
    row["mfu"] = None
    if found["seconds"] is not None:
        # Of the GPU that it is, which need not be the one that is planned for.
        peak = peak_flops(torch.cuda.get_device_name(device))
        row["mfu"] = None if peak is None else model_flops(step) / (found["seconds"] * peak)
        row["clips_per_second"] = step.batch / found["seconds"]
    return row | {"predicted_total_seconds": seconds.total}


def line_of(row: dict[str, object]) -> str:
    """A row for people."""
    planned = show_bytes(row["predicted"]["total"])
    if row["measured_bytes"] is None:
        return f"{row['name']:<52}{planned:>10}  {row['measured_counted']}"
    line = f"{row['name']:<52}{planned:>10}{show_bytes(row['measured_bytes']):>10}{row['ratio']:>7.3f}"
    if row["measured_seconds"] is None:
        return line
    times = f"{show_seconds(row['predicted_total_seconds']):>10}{show_seconds(row['measured_seconds']):>10}"
    return f"{line}{times}" + ("" if row["mfu"] is None else f"{row['mfu']:>7.1%}")


def named_device(device: str) -> str:
    """The device of ``fastvivit.plan`` that a GPU is, by its name; "h100" where it is none."""
    if device == "cpu":
        return "h100"
    found = names_of(torch.cuda.get_device_name(device)) or ["h100"]
    return min(found, key=lambda name: abs(BY_NAME[name].memory - memory_bytes(device)))


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status: 1 where a plan is more than a tenth off."""
    parser = argparse.ArgumentParser(prog="benchmarks.plan", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="settings whose name has one of these")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--save", nargs="*", metavar="DIR", help=f"append to <date>_<device>_<commit>_plan.jsonl there ({RESULTS})"
    )
    parser.add_argument("--quick", action="store_true", help="tiny encoders in float32, which a CPU can run")
    parser.add_argument("--commit", help="which one this is, in a copy without its history")
    given = parser.parse_args(argv)
    if given.device == "cpu" and not given.quick:
        parser.error("--device cpu runs tiny encoders alone: --quick")
    dtype = torch.float32 if given.quick else torch.bfloat16
    run = provenance(given.device, quick=given.quick, dtype=dtype, named=given.commit)
    files = []
    if given.save is not None:
        files = [results_file(run, Path(folder)) for folder in given.save or [RESULTS]]
        files = [file.with_name(f"{file.stem}_plan.jsonl") for file in files]
    named = named_device(given.device)
    print(f"{run['device']}, torch {run['torch']}, fastvivit {run['commit']}; planned for {named}")
    print(f"{'':<52}{'planned':>10}{'real':>10}{'ratio':>7}{'planned':>10}{'real':>10}{'MFU':>7}")
    worst = 1.0
    for setting in SETTINGS:
        if given.only and not any(word in setting.name for word in given.only):
            continue
        row = row_of(setting, given.device, named, quick=given.quick)
        print(line_of(row), flush=True)
        if row["ratio"] is not None:
            worst = max(worst, row["ratio"], 1 / row["ratio"])
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a", encoding="utf-8") as target:
                target.write(json.dumps(row | run, ensure_ascii=False) + "\n")
    print(f"worst: {100 * (worst - 1):.1f} % off")
    return 0 if worst <= 1.1 else 1


if __name__ == "__main__":
    sys.exit(main())
