"""One tiny model of every kind that accelerate knows, each with clips of its size."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from torch import Tensor, nn

from tests.hf import test_timesformer, test_vjepa2, tiny


@dataclass(frozen=True)
class Family:
    """``make`` gives a model, ``clips`` (B, T, C, H, W) pixels with ``tokens`` each, ``first`` names its output."""

    make: Callable[[], nn.Module]
    clips: Callable[..., Tensor]
    tokens: int
    first: str = "logits"


def _timesformer(kind: str) -> Family:
    return Family(lambda: test_timesformer.made(kind), _batches(test_timesformer.clips), 36, "last_hidden_state")


def _batches(clips: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda count=2: clips(batch=count)


FAMILIES = {
    "vivit": Family(lambda: tiny.vivit(attn_implementation="sdpa"), tiny.clips, 32),
    "videomae": Family(lambda: tiny.videomae(attn_implementation="sdpa"), tiny.clips, 32),
    "vjepa2": Family(
        lambda: test_vjepa2.made(test_vjepa2.VJEPA2ForVideoClassification), _batches(test_vjepa2.clips), 27
    ),
    **{kind: _timesformer(kind) for kind in test_timesformer.KINDS},
}
each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
