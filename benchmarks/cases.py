"""Every case that ``benchmarks.run`` times. A new op adds its own: layer, bytes, FLOPs, peers."""

from __future__ import annotations

from .case import OURS, Bench, Case, Claim, Contestant, Options
from .families.attention import attention_cases
from .families.block import block_cases
from .families.caption import caption_cases
from .families.contrastive import contrastive_cases
from .families.data import data_cases
from .families.embed import embed_cases
from .families.encoder import encoder_cases
from .families.loss import loss_cases
from .families.manifest import manifest_cases
from .families.memory import memory_cases
from .families.models import model_cases
from .families.overhead import overhead_cases
from .families.rows import rows_cases

__all__ = ["OURS", "Bench", "Case", "Claim", "Contestant", "Options", "all_cases"]


def all_cases(options: Options) -> list[Case]:
    """The cases in the order in which they run: kernels first, whole models last."""
    kernels = (embed_cases, attention_cases, rows_cases, loss_cases, block_cases, overhead_cases)
    models = (encoder_cases, memory_cases, model_cases, caption_cases, contrastive_cases)
    families = (*kernels, *models, data_cases, manifest_cases)
    cases = [case for family in families for case in family(options)]
    names = [case.name for case in cases]
    assert len(set(names)) == len(names), sorted({name for name in names if names.count(name) > 1})
    return cases
