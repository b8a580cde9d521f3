"""A plan for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastvivit.planning.parts import shared
from fastvivit.planning.sizes import show_bytes, show_change, show_seconds
from fastvivit.planning.switches import needed, turned_by

if TYPE_CHECKING:
    from fastvivit.planning.plan import Plan
    from fastvivit.planning.step import Step

_WIDTH, _LINE = 28, 100
_WHAT = {
    "weights": "float32",
    "gradients": "of what is trained, at the peak",
    "optimiser": "AdamW's two moments",
    "activations": "of the clips in a pass",
    "batch": "uint8 pixels",
    "prefix": "frozen blocks' outputs",
    "casts": "16-bit weights and other copies",
    "kernels": "workspace of cuBLAS and kernels",
}
_TIMES = {
    "products": "linear layers",
    "attention": "attention",
    "embedding": "embedding",
    "rest": "norms, GELU, sums",
    "optimiser": "clipping, AdamW",
}


def table(plan: Plan) -> str:
    """The plan as text: what was planned, memory and time by part, what fits, what to turn."""
    notes = [f"note: {note}" for note in plan.notes]
    return "\n".join([*_head(plan), *notes, "", *_memory(plan), "", *_time(plan), "", *_fits(plan), *_switches(plan)])


def _head(plan: Plan) -> list[str]:
    step, config = plan.step, plan.step.config
    text = "no text tower" if step.text is None else f"text tower {step.text.width} x {step.text.depth}"
    chunks = " and ".join(dict.fromkeys(str(one.passes) for one in step.each))
    settings = [f"batch {step.batch}", *([f"chunks of {chunks}"] if step.chunked else []), f"tuning {step.tuning}"]
    settings += [step.precision, *([f"checkpointing {step.checkpointing}"] if step.checkpointing != "none" else [])]
    settings += ["offload"] * step.offload + ["8-bit states"] * (step.states == "8bit")
    return [
        f"{config.attention} ViViT {config.width} x {config.depth}, {text}: {_count(plan.parameters)} parameters, "
        f"{_count(plan.trainable)} trained",
        *_samples(step),
        ", ".join(settings),
    ]


def _samples(step: Step) -> list[str]:
    """What goes through the encoder; of a mixed batch, part by part, in one line where there is room."""
    found = []
    for one in step.each:
        size = " x ".join(map(str, one.config.size))
        what = f"images of {size}" if one.images else f"clips of {one.config.frames} x {size}"
        what += f", {one.mask_ratio:.0%} masked" if one.mask_ratio else ", unmasked"
        found.append(f"{one.batch} {what}: {one.tokens:,} tokens" if step.parts else what)
    if not step.parts:
        return found if step.images else [f"{found[0]}: {step.tokens:,} tokens a clip"]
    line = "; ".join(found)
    return [line] if len(line) <= _LINE else found


def _memory(plan: Plan) -> list[str]:
    parts = {name: getattr(plan.memory, name) for name in _WHAT}
    most = max(parts.values())
    lines = ["peak memory, predicted"]
    for name, size in parts.items():
        if size:
            bar = "█" * round(_WIDTH * size / most)
            lines.append(f"  {name:<12}{show_bytes(size):>9}  {bar or '▏'}  {_WHAT[name]}")
    lines.append(f"  {'total':<12}{show_bytes(plan.memory.total):>9}")
    beside = plan.needed - plan.memory.total
    answer = "fits" if plan.fits else "does not fit"
    lines.append(
        f"with {show_bytes(beside)} for the context and fragments: {show_bytes(plan.needed)} of "
        f"{show_bytes(plan.gpu_memory)}: {answer}"
    )
    return lines


def _time(plan: Plan) -> list[str]:
    seconds = plan.seconds
    shares = {what: getattr(seconds, name) / seconds.device for name, what in _TIMES.items()}
    clips, rate = "samples" if plan.step.parts else "clips", plan.clips_per_second
    rate = f"{rate:,.0f}" if rate >= 1000 else f"{rate:.3g}"
    parts = [f"{what} {share:.0%}" for what, share in shares.items() if share >= 0.005]
    bound = {"device": "", "transfers": "  (bound by transfers from the host)", "host": "  (bound by launches)"}
    lines = [
        f"time on {plan.device.name}, predicted{bound[seconds.bound]}",
        f"  {show_seconds(plan.step_seconds)} a step, {rate} {clips}/s, {plan.mfu:.0%} MFU",
        f"  {', '.join(parts)}",
    ]
    if plan.days is not None:
        lines.append(f"  {plan.steps:,} steps of {plan.step.batch}: {_days(plan.days)}")
    return lines


def _fits(plan: Plan) -> list[str]:
    step, memory = plan.step, show_bytes(plan.gpu_memory)
    chunks = f" in chunks of {step.chunk}" if step.chunk else ""
    none = "none: one of each part does not fit" if step.parts else "none: one clip does not fit"
    lines = [f"largest batch in {memory}{chunks}: {_shares(plan) or none}"]
    if step.batch > 1:
        whole = plan.largest_chunk == step.batch
        found = "the whole batch" if whole else plan.largest_chunk or none
        lines.append(f"largest chunk for a batch of {step.batch}: {found}")
    if plan.remedy:
        total = show_bytes(needed(turned_by(step, plan.remedy), plan.device))
        lines.append(f"to fit: {', '.join(map(str, plan.remedy))}: {total}")
    elif not plan.fits:
        lines.append("nothing that can be turned makes it fit")
    return lines


def _shares(plan: Plan) -> str:
    """The largest batch, and what it is of each part; empty where there is none."""
    most = plan.largest_batch
    if not plan.step.parts or not most:
        return str(most or "")
    return f"{most}, {' + '.join(map(str, shared(most, plan.step.parts)))}"


def _switches(plan: Plan) -> list[str]:
    if not plan.switches:
        return []
    wide = max(len(str(switch)) for switch in plan.switches)
    lines = ["", f"{'switches, one at a time':<{wide + 2}}{'saves':>10}{'total':>10}{'time':>8}"]
    for switch in plan.switches:
        notes = ["fits"] * (switch.fits and not plan.fits) + [switch.note] * bool(switch.note)
        time = show_change(switch.costs / plan.step_seconds)
        line = f"  {switch!s:<{wide}}{show_bytes(switch.saves):>10}{show_bytes(switch.total):>10}{time:>8}"
        lines.append(f"{line}  {', '.join(notes)}".rstrip())
    return lines


def _count(number: int) -> str:
    return f"{number / 1e6:.0f} M" if number >= 1e7 else f"{number / 1e6:.2g} M"


def _days(days: float) -> str:
    return f"{days:.1f} days" if days >= 1 else f"{24 * days:.1f} hours"
