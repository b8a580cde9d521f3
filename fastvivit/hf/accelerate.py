"""``fv.accelerate`` and ``fv.restore``: transformers' video models on fastvivit's ops, in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import TypeVar

from torch import nn

from fastvivit.hf.call import Link, host, link_of, taken
from fastvivit.hf.embed import Norm
from fastvivit.hf.layers import patch_layers
from fastvivit.hf.patches import undo

# Family → its folder in transformers and our file, and the class of its bare model.
FAMILIES = {
    "ViViT": ("vivit", "VivitModel"),
    "VideoMAE": ("videomae", "VideoMAEModel"),
    "TimeSformer": ("timesformer", "TimesformerModel"),
    "V-JEPA 2": ("vjepa2", "VJEPA2Model"),
}

Model = TypeVar("Model", bound=nn.Module)


def accelerate(model: Model, *, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> Model:
    """Run a transformers ViViT, VideoMAE, TimeSformer or V-JEPA 2 model on fastvivit's kernels, in place.

    Tubelets are embedded by ``F.tubelet_embed``, attention is ``F.attention``, and float32 products on a CPU go to
    oneDNN; the class, the state dict and the outputs stay what they were. The model's forward also takes
    ``mask_ratio``, ``keep`` and ``generator``, and drops tokens before the patch product; clips of other sizes and
    lengths than the model's own, whose positions are resized on the true (T, H, W) grid (fewer frames: the first
    slots, unless ``interpolate_pos_encoding=True``; TimeSformer: the nearest in time and space, as in its own code;
    V-JEPA 2 has no table, its tokens turn by their true places); and uint8 pixels where mean and std are given.
    Attention that ours can't compute (probabilities asked for, dropout in training, a mask) is computed as before.
    Frames must fill whole tubelets: V-JEPA 2's own code drops the odd one of 5 frames, which is a ``ValueError`` here.
    Called again, it takes the new mean and std.

    A module around the model takes the three arguments too, and hands them in; one whose forward has an argument of
    such a name already keeps its forward as it is, and hands in what it likes. ``torch.nn.DataParallel`` is refused
    when it makes its replicas, which would run the first one's weights; ``DistributedDataParallel`` is the way.

    To know which tokens were kept, draw them: ``keep = F.random_keep(...)``; tokens come out in its order. V-JEPA 2's
    predictor then predicts ``target_mask`` (None: every token of the grid) from the kept ones. TimeSformer with
    "space_only" is a model of frames: each keeps equally many, and ``mask_ratio`` draws them frame by frame.

    Args:
        model: such a model, bare or with a head, or any module that contains some.
        mean: for uint8, in units of 0..1, one a channel; None with None for std refuses uint8. Floating
            pixels are taken as they are.
        std: see ``mean``.

    Returns:
        ``model``.

    Raises:
        ValueError: no such model within, only one of mean and std, a model whose class has a ``mask_ratio``,
            ``keep`` or ``generator`` of its own, one accelerated before whose forward was replaced since (see
            ``restore``). Nothing is changed then.
    """
    norm = Norm.of(mean, std)
    found = list(_find(model))
    if not found:
        raise ValueError(
            f"model: wanted a transformers model of {', '.join(FAMILIES)}, or a module that contains one, "
            f"got {type(model).__name__}"
        )
    for bare, _ in found:
        if (name := taken(bare)) is not None:
            raise ValueError(f"model: wanted a forward without a {name} of its own, got {type(bare).__name__}")
    link = link_of(model) or Link()
    undo(model)
    for bare, family in found:
        import_module(f"fastvivit.hf.{family}").patch(bare, link, norm)
        patch_layers(bare)
        host(bare, link, [module for module in bare.modules() if hasattr(module, "gradient_checkpointing")])
    for outer in _hosts(model, [bare for bare, _ in found]):
        for family in {family for bare, family in found if bare in outer.modules()}:
            patch_outer = getattr(import_module(f"fastvivit.hf.{family}"), "patch_outer", None)
            if patch_outer is not None:
                patch_outer(outer, link, norm)
        if taken(outer) is None:
            host(outer, link)
    return model


def restore(model: Model) -> Model:
    """Undo ``accelerate``: every module of ``model`` runs its own forward again.

    Args:
        model: accelerated or not.

    Returns:
        ``model``.

    Raises:
        ValueError: a forward that someone replaced after ``accelerate`` (an offloader, ``torch.compile``), and that
            may hold ours: take that away first. Nothing is changed then.
    """
    undo(model)
    return model


def _find(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Bare models within, each with the name of its family's file."""
    for module in model.modules():
        for folder, name in FAMILIES.values():
            wanted = (f"transformers.models.{folder}.modeling_{folder}", name)
            if any((cls.__module__, cls.__name__) == wanted for cls in type(module).__mro__):
                yield module, folder


def _hosts(model: nn.Module, found: Sequence[nn.Module]) -> Iterator[nn.Module]:
    """Modules around the bare models whose forward a user calls: ``model``, and transformers models on the way."""
    from transformers import PreTrainedModel

    for module in model.modules():
        if (module is model or isinstance(module, PreTrainedModel)) and module not in found:
            within = list(module.modules())
            if any(bare is inner for bare in found for inner in within):
                yield module
