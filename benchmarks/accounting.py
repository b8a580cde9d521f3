"""What a training step of an encoder keeps and computes, without running it: fake tensors carry shapes alone.

Every storage is counted once, whoever shares it, at its own size. What is counted is what PyTorch's autograd and ours
ask for; what an op takes inside itself, and what an allocator adds to it, is not.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, shape_wrapper

import fastvivit.functional as F
from fastvivit import ViViT
from fastvivit.models import ViViTConfig
from fastvivit.modules.vivit import GROUPS
from fastvivit.tokens import Grouping, Tokens


@dataclass(frozen=True, kw_only=True)
class Account:
    """One training step: forward, a loss on the pooled clips, backward.

    Attributes:
        tokens: kept of a clip.
        parameters: of the encoder.
        weight_bytes: of the same.
        clip_bytes: of the uint8 clips.
        saved_bytes: what the forward leaves for the backward, beyond weights and clips and views of them.
        peak_bytes: most that is alive at once from the first op of the forward to the last of the backward, gradients
            of the weights with it, beyond weights and clips.
        flops_forward: of matrix products and attention.
        flops_step: the same of forward and backward.
        exponentials: attention's, of the forward.
    """

    tokens: int
    parameters: int
    weight_bytes: int
    clip_bytes: int
    saved_bytes: int
    peak_bytes: int
    flops_forward: int
    flops_step: int
    exponentials: int


def account(
    config: ViViTConfig,
    mask_ratio: float,
    *,
    clips: int = 1,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    checkpointing: bool = False,
) -> Account:
    """Account for a step on ``clips`` clips of ``config.frames`` frames.

    Args:
        config: of the encoder.
        mask_ratio: share of the tokens that are dropped.
        clips: B.
        dtype: float32, or 16 bits under autocast over float32 weights, as ``fastvivit train`` runs on a GPU.
        device: whose kernels would run; "cuda" needs a PyTorch that knows CUDA, since its fakes ask for the device.
        checkpointing: whether blocks keep their inputs alone.
    """
    lengths = attended(config, mask_ratio, clips)
    with torch.device("meta"):
        model = ViViT(config).train()
    model.set_grad_checkpointing(checkpointing)
    if dtype != torch.float32:
        widen_norms(model)
    with FakeTensorMode():
        fill(model, device)
        video = torch.empty(clips, config.channels, config.frames, *config.size, dtype=torch.uint8, device=device)
        with Ledger([*model.parameters(), video], attention_flops(config, lengths)) as ledger:
            with saved_storages([*model.parameters(), video]) as saved:
                loss = loss_of(model, video, mask_ratio, dtype)
            forward = ledger.flops
            loss.backward()
    return Account(
        tokens=kept_tokens(config, mask_ratio),
        parameters=sum(p.numel() for p in model.parameters()),
        weight_bytes=sum(p.numel() * p.element_size() for p in model.parameters()),
        clip_bytes=video.numel(),
        saved_bytes=sum(saved.values()),
        peak_bytes=ledger.peak,
        flops_forward=forward,
        flops_step=ledger.flops,
        exponentials=config.depth * config.heads * sum(lengths.values()),
    )


def loss_of(
    model: ViViT, video: Tensor, mask_ratio: float, dtype: torch.dtype, generator: torch.Generator | None = None
) -> Tensor:
    """The loss of the step that is accounted for, timed and measured."""
    half = dtype != torch.float32
    with torch.autocast(video.device.type, dtype if half else None, enabled=half):
        pooled = model(video, mask_ratio=mask_ratio, generator=generator).pooled
    return pooled.float().square().mean()


def widen_norms(model: nn.Module) -> None:
    """Give every LayerNorm float32, as a GPU's autocast does; a CPU's own leaves it in 16 bits."""
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))


def fill(model: nn.Module, device: str) -> None:
    """Give a model made on "meta" parameters of ``device``, of whatever kind ``torch.empty`` makes now."""
    for module in model.modules():
        for name, old in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty(old.shape, dtype=old.dtype, device=device)))


@contextmanager
def saved_storages(leave_out: Iterable[Tensor]):
    """Collect what is saved for a backward: bytes by the address of the storage, without those of ``leave_out``.

    The graph that is built inside has to outlive the reading, or an address may come back as another storage.
    """
    known = {_storage(t) for t in leave_out}
    found: dict[int, int] = {}

    def pack(saved: Tensor) -> Tensor:
        if _storage(saved) not in known:
            found[_storage(saved)] = saved.untyped_storage().nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        yield found


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class Ledger(TorchDispatchMode):
    """FLOPs of the ops that run in it, and bytes of the storages they made: alive ``now``, and at the ``peak``.

    PyTorch's own ``FlopCounterMode`` leaves cycles behind in which activations outlive their use.

    Args:
        leave_out: tensors whose storages, and views of them, are not counted.
        formulas: of FLOPs by op, from shapes, before those that ops have registered.
    """

    def __init__(self, leave_out: Iterable[Tensor], formulas: dict[object, Callable]) -> None:
        super().__init__()
        self.now = self.peak = self.flops = 0
        self._known = weakref.WeakSet(t.untyped_storage() for t in leave_out)
        self._formulas = flop_registry | {op: shape_wrapper(formula) for op, formula in formulas.items()}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = self._formulas.get(func.overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=result)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        self.peak = max(self.peak, self.now)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._known:
            self._known.add(storage)
            self.now += storage.nbytes()
            weakref.finalize(storage, self._gone, storage.nbytes()).atexit = False

    def _gone(self, size: int) -> None:
        self.now -= size


def kept_tokens(config: ViViTConfig, mask_ratio: float) -> int:
    """Tokens that a clip keeps; each tube is masked at the ratio."""
    sizes = [prod(grid) for grid in config.views]
    return sum(size - int(size * mask_ratio) for size in sizes)


def attended(config: ViViTConfig, mask_ratio: float, clips: int) -> dict[tuple[int, int], int]:
    """Sums of squared lengths of the groupings that attention runs in, by (sequences, longest): one seeded draw."""
    generator = torch.Generator().manual_seed(0)
    parts, start = [], 0
    for grid in config.views:
        size = prod(grid)
        parts.append(F.random_keep(clips, size, mask_ratio, generator=generator) + start)
        start += size
    ids = torch.cat(parts, 1)
    tokens = Tokens([config.views] * clips, [ids.shape[1]] * clips, ids.reshape(-1), ids.device)
    groups = [tokens.grouping(GROUPS[config.attention])]
    if config.attention == "factorised":
        groups.append(tokens.by_place)
    if config.cross_view:
        groups.append(tokens.by_clip)
    return {(group.sequences, group.max_seqlen): _squares(group) for group in groups}


def _squares(group: Grouping) -> int:
    return int(group.cu_seqlens.long().diff().square().sum())


def attention_flops(config: ViViTConfig, lengths: dict[tuple[int, int], int]) -> dict[object, Callable]:
    """Formulas that know the lengths: the op's own sees shapes, and takes sequences for equally long."""

    def forward(q, k, v, cu_seqlens_q, cu_seqlens_k, longest, *_rest, **_more) -> int:
        return 4 * config.width * lengths[cu_seqlens_q[0] - 1, longest]

    def backward(grad_out, grad_lse, q, k, v, out, lse, *settings, **_more) -> int:
        return 5 * forward(q, k, v, *settings) // 2

    return {torch.ops.fastvivit.varlen_attention: forward, torch.ops.fastvivit.varlen_attention_backward: backward}
