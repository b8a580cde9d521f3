"""Our own backends as contestants beside the one that auto takes: from the op's table, whatever it comes to hold."""

from __future__ import annotations

from fastvivit._backends import Op


def other_backends(op: Op, asked: tuple, device: str) -> list[str]:
    """Backends that can take the inputs ``asked`` and that auto does not take, without the definition."""
    able = [b for b in op.backends if b.name != "reference" and b.why_not(asked) is None]
    # Those of another device by name alone: Triton's interpreter is no contestant on a CPU.
    able = [b for b in able if b.auto is None or device in b.auto]
    chosen = op.choose("auto", device, *asked).__name__
    return [b.name for b in able if b.module != chosen]
